"""What the plug-ins share: one feed in a process, which takes maps from the hooks and never disturbs the engine."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from .board import LazyRow
from .expert_map import MapError, check_model
from .once import OnceLog
from .poster import Poster
from .settings import VARIABLES, Settings, SettingsError

P = ParamSpec("P")
R = TypeVar("R")

log = OnceLog(logging.getLogger("replicator_client"))
"""The log of all plug-ins."""

_told: set[int] = set()


class Feed:
    """Posts the map of the one model that a process serves, from the ranks that are to."""

    def __init__(self, settings: Settings, poster: Callable[..., Poster] = Poster) -> None:
        self.settings = settings
        self._make = poster
        self._poster: Poster | None = None

    def posts_from(self, rank: int) -> bool:
        """Whether this rank posts."""
        return rank in self.settings.post_ranks

    def post(
        self, model: str, layers: Mapping[int, LazyRow], *, ranks: int, logical_experts: int, full: bool
    ) -> None:
        """Posts layers by their number in the model. `model` is the engine's name of it."""
        if self._poster is None:
            name = self.settings.model or model
            try:
                check_model(name)
            except MapError as error:
                log.warn("model", f"no expert map is posted: {error}; set REPLICATOR_MODEL")
                return
            self._poster = self._make(
                name,
                self.settings.placement.nodes,
                self.settings.endpoints(),
                first_table=self.settings.first_table,
                log=log,
            )
        self._poster.post(layers, ranks=ranks, logical_experts=logical_experts, full=full)


def feed_from_environment(framework: str) -> Feed | None:
    """A feed as the environment wants it; None, said once in a process, where it wants none."""
    process = os.getpid()
    first = process not in _told
    _told.add(process)
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        if first:
            log.warn("settings", f"expert maps are not posted: {error}")
        return None
    if settings is None and first:
        log.inform("settings", f"expert maps of {framework} are not posted: {VARIABLES[0]} is not set")
    return None if settings is None else Feed(settings)


def quietly(kind: str, function: Callable[P, R]) -> Callable[P, R | None]:
    """The function, with whatever it raises in the log instead of the engine."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001
            log.warn(f"{kind} {type(error).__name__}", f"{kind}: a map is not posted: {type(error).__name__}: {error}")
            return None

    return guarded


def followed_by(original: Callable[..., Any], after: Callable[..., object]) -> Callable[..., Any]:
    """`original`, then `after` with the same arguments."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        after(*args, **kwargs)
        return result

    setattr(wrapper, _MARK, True)
    return wrapper


def is_wrapped(function: object) -> bool:
    """Whether `followed_by` made it."""
    return getattr(function, _MARK, False) is True


def version_of(distribution: str) -> str:
    """The installed version of a framework, for the log."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


_MARK = "_posts_to_replicator"
