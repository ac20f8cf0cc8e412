"""Posts committed maps from threads of its own: the engine's thread only leaves them on the board."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .board import Board, LazyRow
from .client import Client, Request, patch_request, put_request
from .errors import ReplicatorError
from .expert_map import ExpertMap
from .once import OnceLog
from .outbox import REFUSED_DELAY, Outbox

FLUSH_SECONDS = 2.0
"""How long an ending process waits for what is not sent yet."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """A replicator to post to."""

    name: str
    """For the log."""
    connect: Callable[[], Client]
    """Called for each request, so that a new token or certificate is used as soon as it is there."""


class Poster:
    """Brings every endpoint to the newest map of one model, for as long as the process lives.

    Each endpoint has a thread. Of a layer, only the newest map is kept; what came in since the last request goes into
    the next. No method raises. After a fork, the child posts what is given to it there and nothing of before.
    """

    def __init__(
        self,
        model: str,
        nodes: Callable[[int], Sequence[str]],
        endpoints: Sequence[Endpoint],
        *,
        first_table: int | None = None,
        log: OnceLog | None = None,
        outbox: Callable[[], Outbox] = Outbox,
    ) -> None:
        """`nodes` gives the node of each rank for a number of ranks; it is called on the threads and may raise."""
        self._model = model
        self._nodes = nodes
        self._endpoints = tuple(endpoints)
        self._first_table = first_table
        self._log = OnceLog(logger) if log is None else log
        self._new_outbox = outbox
        self._reset()
        _posters.add(self)
        atexit.register(_close, weakref.ref(self))

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._board = Board()
        self._threads: list[threading.Thread] = []
        self._idle: set[str] = set()
        self._closing = False

    def after_fork(self) -> None:
        """In the child: threads and whatever held the lock are not there any more."""
        self._log.after_fork()
        self._reset()

    def post(self, layers: Mapping[int, LazyRow], *, ranks: int, logical_experts: int, full: bool) -> None:
        """Takes layers by number, all of the model where it is `full`. A row must not change any more."""
        try:
            with self._changed:
                if self._closing:
                    return
                self._board.put(layers, ranks=ranks, logical_experts=logical_experts, full=full)
                self._idle.clear()
                if not self._threads:
                    self._start()
                self._changed.notify_all()
        except Exception as error:  # noqa: BLE001
            self._log.warn(f"post {type(error).__name__}", f"a map is not posted: {error}")

    def close(self, timeout: float = FLUSH_SECONDS) -> bool:
        """Tries once more to send what is not sent, then ends the threads. Whether all of it was sent in time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads, self._threads = self._threads, []
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            return not threads or len(self._idle) == len(self._endpoints)

    def flush(self, timeout: float) -> bool:
        """Waits until every endpoint has what was posted. Whether it came to that in time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._board.commit == 0 or len(self._idle) == len(self._endpoints), timeout
            )

    def _start(self) -> None:
        for number, endpoint in enumerate(self._endpoints):
            thread = threading.Thread(
                target=self._run, args=(endpoint, str(number)), name=f"replicator-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _run(self, endpoint: Endpoint, key: str) -> None:
        outbox = self._new_outbox()
        delay = 0.0
        while True:
            last = self._sleep(delay)
            try:
                delay, done = self._step(endpoint, outbox)
            except Exception as error:  # noqa: BLE001
                # Whatever it is, the next map may do.
                self._trouble(endpoint, type(error).__name__, f"{type(error).__name__}: {error}")
                delay, done = REFUSED_DELAY, None
            if done is not None and self._rest(key, done, last):
                return
            if done is None and last:
                return

    def _sleep(self, delay: float) -> bool:
        """Waits before a repetition. Whether the poster is closing, so that the next attempt is the last."""
        with self._changed:
            if delay > 0:
                self._changed.wait_for(lambda: self._closing, delay)
            return self._closing

    def _rest(self, key: str, done: int, last: bool) -> bool:
        """Waits until there is more than commit `done`. Whether to end instead."""
        with self._changed:
            if self._board.commit <= done:
                self._idle.add(key)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing or self._board.commit > done)
            return last or (self._closing and self._board.commit <= done)

    def _step(self, endpoint: Endpoint, outbox: Outbox) -> tuple[float, int | None]:
        """One request at most: seconds until the next, or the commit up to which all is done."""
        with self._changed:
            view = self._board.view()
        pending = None if view is None else outbox.next(view)
        if view is None or pending is None:
            return 0.0, 0 if view is None else view.commit
        for number, what in pending.left_out.items():
            self._log.warn(f"layer {number}.", f"layer {number} of {self._model} is left out: {what}")
        if not pending.layers:
            outbox.skipped(pending)
            return 0.0, pending.commit
        nodes = self._nodes(view.ranks)
        expert_map = ExpertMap(self._model, view.logical_experts, nodes, pending.layers, self._first_table)
        try:
            request = _request(expert_map, pending.epoch, pending.full)
            endpoint.connect().send(request)
        except ReplicatorError as error:
            delay = outbox.failed(pending, error)
            if delay > 0:
                kind = getattr(error, "code", type(error).__name__)
                self._trouble(endpoint, kind, f"{error}; trying again in {delay:.1f} s")
            return delay, None
        outbox.taken(pending)
        for number in pending.layers:
            self._log.over(f"layer {number}.")
        if self._log.over(f"endpoint {endpoint.name} "):
            self._log.note(f"{endpoint.name}: takes maps of {self._model} again")
        return 0.0, pending.commit

    def _trouble(self, endpoint: Endpoint, kind: str, message: str) -> None:
        self._log.warn(f"endpoint {endpoint.name} {kind}", f"{endpoint.name}: {message}")


def _request(expert_map: ExpertMap, epoch: int, full: bool) -> Request:
    document = expert_map.document(epoch, partial=not full)
    return put_request(document) if full else patch_request(document)


_posters: weakref.WeakSet[Poster] = weakref.WeakSet()


def _after_fork() -> None:
    for poster in list(_posters):
        poster.after_fork()


def _close(poster: weakref.ref[Poster]) -> None:
    if (there := poster()) is not None:
        there.close()


os.register_at_fork(after_in_child=_after_fork)
