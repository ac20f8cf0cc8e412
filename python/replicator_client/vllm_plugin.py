"""vLLM: posts the expert map when the load balancer has put it in force.

The commit functions are private to `vllm.distributed.eplb.eplb_state`; `contract.VLLM` says what is needed of them.
They run on the thread of the forward pass, with maps that are in the host's memory.
"""

from __future__ import annotations

import importlib
import weakref
from typing import Any

from . import tensors
from .contract import EPLB, VLLM
from .feed import Feed, feed_from_environment, followed_by, is_wrapped, log, quietly, version_of

_DRAFT = " (draft)"
"""What vLLM appends to the name of a model that drafts for another."""


def register() -> None:
    """Entry point of the group `vllm.general_plugins`. May be called more than once."""
    quietly("vllm", _register)()


def _register() -> None:
    feed = feed_from_environment("vLLM")
    if feed is None:
        return
    module: Any = importlib.import_module("vllm.distributed.eplb.eplb_state")
    absences = VLLM.absences(EPLB, module)
    if not hasattr(module, "get_ep_group"):
        absences.append("there is no get_ep_group")
    if absences:
        log.warn(
            "vllm contract",
            f"expert maps are not posted: vLLM {version_of('vllm')} is not as this plug-in needs it: "
            f"{'; '.join(absences)}",
        )
        return
    if is_wrapped(module._commit_eplb_maps):
        return
    commits = Commits(feed, module)
    module._commit_eplb_maps = followed_by(module._commit_eplb_maps, quietly("vllm", commits.all_layers))
    module._commit_eplb_maps_for_layer = followed_by(
        module._commit_eplb_maps_for_layer, quietly("vllm", commits.one_layer)
    )
    state = module.EplbState
    state.add_model = followed_by(state.add_model, quietly("vllm", commits.added))


class Commits:
    """Takes what the commit functions are called with. Parameters have the names that vLLM gives them."""

    def __init__(self, feed: Feed, module: Any) -> None:
        self._feed = feed
        self._module = module
        self._served: weakref.ref[Any] | None = None
        self._slots: int | None = None

    def all_layers(self, model_state: Any, new_physical_to_logical_map: Any) -> None:
        """After `_commit_eplb_maps`."""
        if self._posts(model_state):
            another = int(new_physical_to_logical_map.shape[1]) != self._slots
            self._post_matrix(model_state, new_physical_to_logical_map, full=another)

    def one_layer(self, model_state: Any, new_physical_to_logical_map: Any, layer: int) -> None:
        """After `_commit_eplb_maps_for_layer`."""
        if not self._posts(model_state):
            return
        slots = int(new_physical_to_logical_map.shape[0])
        if slots != self._slots:
            # Ranks came: the other layers have as many slots now, the new ones without experts.
            self._post_matrix(model_state, model_state.physical_to_logical_map, full=True)
            return
        number = self._feed.settings.first_layer + int(layer)
        self._post(model_state, {number: tensors.row(new_physical_to_logical_map)}, slots, full=False)

    def added(self, eplb_state: Any, *_: Any, **__: Any) -> None:
        """After `EplbState.add_model`: the map that the engine starts with is never committed."""
        for model_state in eplb_state.model_states.values():
            if self._posts(model_state):
                self._post_matrix(model_state, model_state.physical_to_logical_map, full=True)

    def _posts(self, model_state: Any) -> bool:
        # The rank may change while vLLM adds and removes ranks.
        rank = int(self._module.get_ep_group().device_group.rank())
        return self._feed.posts_from(rank) and self._is_served(model_state)

    def _is_served(self, model_state: Any) -> bool:
        """Whether it is the model itself. One that drafts for it comes first, and has fewer layers with experts."""
        if str(model_state.model_name).endswith(_DRAFT):
            return False
        served = None if self._served is None else self._served()
        if served is None or _layers(model_state) > _layers(served):
            self._served = weakref.ref(model_state)
            self._slots = None
        elif served is not model_state:
            log.inform("vllm draft", f"the expert map of {model_state.model_name}, which has fewer layers, is not posted")
            return False
        return True

    def _post_matrix(self, model_state: Any, matrix: Any, *, full: bool) -> None:
        first = self._feed.settings.first_layer
        layers = dict(enumerate(tensors.rows(matrix), start=first))
        self._slots = int(matrix.shape[1])
        self._post(model_state, layers, self._slots, full=full)

    def _post(self, model_state: Any, layers: dict[int, Any], slots: int, *, full: bool) -> None:
        # Before ranks go, a map has fewer of them than the group: what stays the same is the slots of each.
        model = model_state.model
        each = int(model.num_local_physical_experts)
        if slots % each:
            raise ValueError(f"{slots} slots, and each rank has {each}")
        experts = int(model.num_logical_experts)
        self._feed.post(
            str(model_state.model_name), layers, ranks=slots // each, logical_experts=experts, full=full
        )


def _layers(model_state: Any) -> int:
    return int(model_state.physical_to_logical_map.shape[0])
