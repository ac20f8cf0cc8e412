"""SGLang: posts the expert map when layers of it were put in force.

`contract.SGLANG` says what is needed. SGLang keeps a copy of its maps in the host's memory; only that is read.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import tensors
from .contract import LOCATION, SGLANG, UPDATER
from .feed import Feed, feed_from_environment, log, quietly, version_of

_UPDATE = "sglang.srt.eplb.expert_location_updater.ExpertLocationUpdater.update"
_SET = "sglang.srt.eplb.expert_location.set_global_expert_location_metadata"

_registered_with: Any = None


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`. May be called more than once."""
    quietly("sglang", _register)()


def _register() -> None:
    global _registered_with
    feed = feed_from_environment("SGLang")
    if feed is None:
        return
    hooks: Any = importlib.import_module("sglang.srt.plugins.hook_registry")
    absences = SGLANG.absences(UPDATER, importlib.import_module("sglang.srt.eplb.expert_location_updater"))
    absences += SGLANG.absences(LOCATION, importlib.import_module("sglang.srt.eplb.expert_location"))
    if absences:
        log.warn(
            "sglang contract",
            f"expert maps are not posted: SGLang {version_of('sglang')} is not as this plug-in needs it: "
            f"{'; '.join(absences)}",
        )
        return
    if _registered_with is hooks.HookRegistry:
        return
    _registered_with = hooks.HookRegistry
    updates = Updates(feed, importlib.import_module("sglang.srt.runtime_context"))
    hooks.HookRegistry.register(_UPDATE, quietly("sglang", updates.some_layers), hooks.HookType.AFTER)
    hooks.HookRegistry.register(_SET, quietly("sglang", updates.all_layers), hooks.HookType.AFTER)


class Updates:
    """Takes what the hooked functions were called with; the first argument is what they returned.

    What the methods here return would take its place: they return None. Parameters have the names that SGLang gives
    them.
    """

    def __init__(self, feed: Feed, context: Any) -> None:
        self._feed = feed
        self._context = context

    def some_layers(
        self,
        _result: Any,
        _updater: Any,
        routed_experts_weights_of_layer: Any,
        new_expert_location_metadata: Any,
        update_layer_ids: Any,
        nnodes: int,
        rank: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """After `ExpertLocationUpdater.update`."""
        if self._feed.posts_from(int(rank)):
            self._post(new_expert_location_metadata, [int(number) for number in update_layer_ids], full=False)

    def all_layers(self, _result: Any, value: Any, *_: Any, **__: Any) -> None:
        """After `set_global_expert_location_metadata`: the map to start with, or one with more ranks."""
        if value is None:
            return
        parallel = self._context.get_parallel()
        # Ranks that joined later count on from those before.
        rank = int(parallel.tp_rank) + int(getattr(parallel, "ep_join_rank_offset", 0) or 0)
        if self._feed.posts_from(rank):
            self._post(value, list(range(int(value.physical_to_logical_map_cpu.shape[0]))), full=True)

    def _post(self, metadata: Any, numbers: list[int], *, full: bool) -> None:
        matrix = metadata.physical_to_logical_map_cpu
        # SGLang numbers layers as the model does; those before the first with experts have rows too.
        numbers = [number for number in numbers if number >= self._feed.settings.first_layer]
        self._feed.post(
            str(self._context.get_serving().served_model_name) if self._feed.settings.model is None else "",
            {number: tensors.row(matrix[number]) for number in numbers},
            ranks=int(metadata.ep_size),
            logical_experts=int(metadata.num_logical_experts),
            full=full,
        )
