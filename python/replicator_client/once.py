"""Each kind of trouble in the log once, until it is over."""

from __future__ import annotations

import logging
import threading


class OnceLog:
    """Warnings by kind. Nothing here raises."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def warn(self, kind: str, message: str) -> None:
        """A warning the first time, a debug message while it lasts."""
        self._say(logging.WARNING, kind, message)

    def inform(self, kind: str, message: str) -> None:
        """The same with an information."""
        self._say(logging.INFO, kind, message)

    def note(self, message: str) -> None:
        """An information that is no trouble."""
        self._log(logging.INFO, message)

    def over(self, prefix: str) -> bool:
        """Kinds that start so are told again when they come back. Whether there were any."""
        with self._lock:
            kinds = {kind for kind in self._told if kind.startswith(prefix)}
            self._told -= kinds
        return bool(kinds)

    def after_fork(self) -> None:
        """In the child: a thread that is not there may hold the lock."""
        self._lock = threading.Lock()

    def _say(self, level: int, kind: str, message: str) -> None:
        with self._lock:
            first = kind not in self._told
            self._told.add(kind)
        self._log(level if first else logging.DEBUG, message)

    def _log(self, level: int, message: str) -> None:
        # Logging raises where a filter or a handler does.
        try:
            self._logger.log(level, "%s", message)
        except Exception:  # noqa: BLE001
            pass
