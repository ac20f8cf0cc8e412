"""The control API of the replicator: a client, and what posts the expert maps of serving frameworks to it."""

from .client import DEFAULT_ADDRESS, Client
from .errors import BadAnswer, Refused, ReplicatorError, Unreachable
from .expert_map import ExpertMap, MapError
from .poster import Poster

__all__ = [
    "DEFAULT_ADDRESS",
    "BadAnswer",
    "Client",
    "ExpertMap",
    "MapError",
    "Poster",
    "Refused",
    "ReplicatorError",
    "Unreachable",
]
__version__ = "0.1.0"
