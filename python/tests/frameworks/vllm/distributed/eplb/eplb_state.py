from dataclasses import dataclass
from typing import Any

from vllm.distributed.parallel_state import get_ep_group


@dataclass
class EplbModelState:
    physical_to_logical_map: Any
    model_name: str
    model: Any


class EplbState:
    def __init__(self, parallel_config, device):
        self.model_states: dict[str, EplbModelState] = {}

    def add_model(self, model, model_config, model_name=None):
        self.model_states[model_config.compute_hash()] = EplbModelState(
            model_config.initial, model_name or model_config.model, model
        )

    def rearrange(self, new_maps):
        get_ep_group()
        for state, new_map in zip(self.model_states.values(), new_maps):
            _commit_eplb_maps(state, new_physical_to_logical_map=new_map)

    def step(self, state, new_map, layer):
        return _move_to_workspace(state, new_map, layer)


def _commit_eplb_maps_for_layer(
    model_state: EplbModelState,
    new_physical_to_logical_map: Any,
    layer: int,
) -> None:
    model_state.physical_to_logical_map.set_row(layer, new_physical_to_logical_map)


def _commit_eplb_maps(
    model_state: EplbModelState,
    new_physical_to_logical_map: Any,
) -> None:
    model_state.physical_to_logical_map = new_physical_to_logical_map


def _move_to_workspace(model_state, new_map, layer):
    _commit_eplb_maps_for_layer(model_state, new_physical_to_logical_map=new_map, layer=layer)
    return "moved"
