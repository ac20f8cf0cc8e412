"""What one endpoint is to be sent next, and what follows from its answer. Nothing here waits or sends."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .board import View
from .errors import Refused, ReplicatorError
from .expert_map import MAX_EPOCH, Row, fault

FIRST_DELAY = 0.5
"""Seconds before the first repetition, which double up to LAST_DELAY."""
LAST_DELAY = 30.0
REFUSED_DELAY = 60.0
"""Seconds after a refusal that the same request would meet again, until someone mends what is wrong."""
LONGEST_RETRY_AFTER = 300.0
"""No endpoint can put requests off for longer."""
STALE_AT_ONCE = 3
"""Stale epochs in a row that are answered at once: more of them are another's posts."""

_TEMPORARY = {408, 425, 429, 500, 502, 503, 504, 507}
_OF_THE_WHOLE_MAP = ("ranks", "logical_experts", "first_table")


@dataclass(frozen=True)
class Pending:
    """Layers to send."""

    commit: int
    epoch: int
    full: bool
    layers: Mapping[int, Row]
    left_out: Mapping[int, str]
    """Layers that cannot be sent as they are, each with the reason."""


@dataclass
class Outbox:
    """What an endpoint has taken, and how to go on with it."""

    jitter: Callable[[], float] = random.random
    """From 0 to 1."""
    _done: int = 0
    """Commits up to this one need nothing more."""
    _floor: int = -1
    """The largest epoch that the endpoint is known to have."""
    _full_next: bool = False
    _failures: int = field(default=0)
    _stale: int = field(default=0)

    def next(self, view: View) -> Pending | None:
        """What to send; None where the endpoint has it all, or nothing can be sent as it is."""
        if view.commit <= self._done:
            return None
        full = self._full_next or view.full > self._done
        layers: dict[int, Row] = {}
        left_out: dict[int, str] = {}
        for number, entry in view.layers.items():
            if not full and entry.commit <= self._done:
                continue
            row = entry.row() if callable(entry.row) else entry.row
            what = fault(row, view.ranks, view.logical_experts)
            if what is None:
                layers[number] = row
            else:
                left_out[number] = what
        epoch = max(view.epoch, self._floor + 1)
        return Pending(view.commit, min(epoch, MAX_EPOCH), full, layers, left_out)

    def skipped(self, pending: Pending) -> None:
        """Nothing of it can be sent. A full map is still due."""
        self._full_next = pending.full
        self._done = pending.commit

    def taken(self, pending: Pending) -> None:
        """The endpoint has put it in force."""
        self._done = pending.commit
        self._floor = max(self._floor, pending.epoch)
        self._full_next = False
        self._failures = self._stale = 0

    def failed(self, pending: Pending, error: ReplicatorError) -> float:
        """Seconds until the next attempt, which sends what is newest then."""
        if not isinstance(error, Refused):
            return self._backoff()
        if error.code == "stale-epoch" and error.epoch is not None:
            self._floor = max(self._floor, error.epoch)
            self._stale += 1
            return 0.0 if self._stale <= STALE_AT_ONCE else self._backoff()
        if not pending.full and (error.code == "unknown-model" or _is_of_another_shape(error)):
            self._full_next = True
            return 0.0
        if error.retry_after is not None:
            # All that were put off come back at different times.
            return min(error.retry_after, LONGEST_RETRY_AFTER) + self.jitter()
        if error.status in _TEMPORARY:
            return self._backoff()
        return REFUSED_DELAY * (1 + 0.2 * self.jitter())

    def _backoff(self) -> float:
        delay = min(FIRST_DELAY * 2.0 ** min(self._failures, 16), LAST_DELAY)
        self._failures += 1
        return delay * (0.5 + 0.5 * self.jitter())


def _is_of_another_shape(error: Refused) -> bool:
    """Whether a partial map was refused for what a full one may change."""
    paths = [fault.path for fault in error.faults]
    return error.code == "invalid-map" and any(path.startswith(_OF_THE_WHOLE_MAP) for path in paths)
