"""The newest map of each layer: what the engine hands over, and what every endpoint is to have."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .expert_map import MAX_LAYERS, Row

LazyRow = Row | Callable[[], Row]
"""A row, or what waits for it: a copy from a device may be under way when a map is handed over."""


@dataclass(frozen=True)
class Entry:
    """A layer, and the number of the commit that it came with."""

    row: LazyRow
    commit: int


@dataclass(frozen=True)
class View:
    """The board at a moment."""

    commit: int
    """The newest commit."""
    full: int
    """The newest commit that took the place of all layers."""
    epoch: int
    """The epoch of the newest commit."""
    ranks: int
    logical_experts: int
    layers: Mapping[int, Entry]


@dataclass
class Board:
    """Takes commits. It never has more than the layers of a model, whatever becomes of the endpoints."""

    now: Callable[[], int] = lambda: time.time_ns() // 1000
    """Microseconds since 1970."""
    _commit: int = 0
    _full: int = 0
    _epoch: int = -1
    _shape: tuple[int, int] | None = None
    _layers: dict[int, Entry] = field(default_factory=dict)

    def put(self, layers: Mapping[int, LazyRow], *, ranks: int, logical_experts: int, full: bool) -> None:
        """Takes layers by number, all there are where it is `full`.

        Layers of before are forgotten where the number of ranks or experts is another: their slots mean other places.
        """
        strange = [number for number in layers if not 0 <= number < MAX_LAYERS]
        if strange:
            raise ValueError(f"layer {strange[0]} is not from 0 to {MAX_LAYERS - 1}")
        self._commit += 1
        # The clock may stand or be set back; epochs ascend.
        self._epoch = max(self._epoch + 1, self.now())
        another = self._shape is not None and self._shape != (ranks, logical_experts)
        self._shape = (ranks, logical_experts)
        if full or another:
            self._full = self._commit
            self._layers = {}
        self._layers.update({number: Entry(row, self._commit) for number, row in layers.items()})

    @property
    def commit(self) -> int:
        """The number of the newest commit; 0 where there is none."""
        return self._commit

    def view(self) -> View | None:
        """The board as it is; None where nothing was taken yet."""
        if self._shape is None:
            return None
        return View(self._commit, self._full, self._epoch, *self._shape, dict(self._layers))
