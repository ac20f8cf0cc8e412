from dataclasses import dataclass
from typing import Any

CURRENT = None


@dataclass
class ExpertLocationMetadata:
    physical_to_logical_map: Any
    physical_to_logical_map_cpu: Any
    logical_experts: int
    ep_size: int

    @property
    def num_logical_experts(self):
        return self.logical_experts


def set_global_expert_location_metadata(value, allow_overwrite=False):
    global CURRENT
    CURRENT = value
