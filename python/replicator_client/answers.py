"""The bodies of answers. Keys that are not known here are not looked at: a later daemon may have more of them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerTable:
    """A layer's table in force."""

    epoch: int
    """The epoch that the layer is of."""
    bift_id: int
    """BIFT-id of this epoch's table: what senders that follow epochs write."""
    alias: int
    """BIFT-id that stays the same and always leads to the newest table."""
    table: int
    """Number of the layer's table."""
    generation: int
    """Generation of this epoch's table."""


@dataclass(frozen=True)
class Installed:
    """The tables of a model that are in force, and how senders name them."""

    model: str
    epoch: int
    """Its newest epoch."""
    bit_string_length: int
    """Bits of the BitString that frames for its tables carry."""
    layers: Mapping[int, LayerTable]


@dataclass(frozen=True)
class Deleted:
    """A model that was taken out of force."""

    model: str
    epoch: int
    """The epoch it had."""


@dataclass(frozen=True)
class ModelSummary:
    """A model in a list."""

    model: str
    epoch: int
    logical_experts: int
    layers: int
    """Layers with a table."""


@dataclass(frozen=True)
class ModelList:
    """The models there are, in the order of their names."""

    models: tuple[ModelSummary, ...]


@dataclass(frozen=True)
class Superseded:
    """A table that a newer one has taken the place of."""

    epoch: int
    bift_id: int
    seconds_left: float
    """Until it is taken out of force, unless its room is needed before."""


@dataclass(frozen=True)
class LayerEpochs:
    """The epochs of a layer."""

    epoch: int | None
    """None where the newest map has no such layer."""
    superseded: tuple[Superseded, ...] = ()
    """Older tables still in force for senders that have not moved on, oldest first."""


@dataclass(frozen=True)
class Epochs:
    """The epochs of a model's layers."""

    model: str
    epoch: int
    """Its newest epoch: the next has to be larger."""
    layers: Mapping[int, LayerEpochs]


@dataclass(frozen=True)
class Interface:
    """An interface with the replicator on it."""

    name: str
    ifindex: int
    mode: str


@dataclass(frozen=True)
class Count:
    """Some of all."""

    total: int
    resolved: int


@dataclass(frozen=True)
class StatusReport:
    """The daemon and what it looks after."""

    version: str
    pid: int
    uptime_seconds: float
    origin: str | None
    interfaces: tuple[Interface, ...]
    neighbors: Count
    models: tuple[ModelSummary, ...]
    configured_tables: int
    bift_ids: int
    superseded: int
    behind: bool


@dataclass(frozen=True)
class Resolution:
    """Whether copies can go to a neighbor: `state` is `ready`, with device and MAC address, or `pending`, with why."""

    state: str
    ifindex: int | None = None
    mac: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Neighbor:
    """A neighbor."""

    name: str
    id: int
    resolution: Resolution


@dataclass(frozen=True)
class NeighborList:
    """The neighbors, in the order of the configuration."""

    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True)
class Traffic:
    """What was sent to a neighbor."""

    copies: int
    bytes: int
    """Ethernet headers included."""


@dataclass(frozen=True)
class Stats:
    """What the datapath counted since its maps were made, over all CPUs."""

    uptime_seconds: float
    outcomes: Mapping[str, int]
    """Outcome -> frames, copies or bits."""
    neighbors: Mapping[str, Traffic]


@dataclass(frozen=True)
class Readiness:
    """Whether frames can be replicated."""

    ready: bool
    missing: tuple[str, ...] = ()
    """What is missing, a sentence each."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a document."""

    path: str
    """The keys and indices that lead to it; empty for the document as a whole."""
    message: str


@dataclass(frozen=True)
class Problem:
    """Why a request was refused (RFC 9457)."""

    code: str
    status: int
    detail: str
    epoch: int | None = None
    faults: tuple[Fault, ...] = ()
    more_faults: int = 0


T = typing.TypeVar("T")


class DecodeError(ValueError):
    """JSON that is not of the form it should have; the message has the path to it."""


def decode(form: type[T], value: object, path: str = "answer") -> T:
    """Makes a dataclass of this module from parsed JSON.

    Raises DecodeError with the path to what is missing or of another type.
    """
    return typing.cast(T, _decode(form, value, path))


def _decode(form: object, value: object, path: str) -> object:
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if origin is types.UnionType:
        (some,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _decode(some, value, path)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {_key(arguments[0], key, path): _decode(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(form, type) and dataclasses.is_dataclass(form) and isinstance(value, dict):
        return _object(form, value, path)
    if form is float and _is_int(value):
        return float(typing.cast(int, value))
    # Before Python 3.11, `tuple[int, ...]` says that it is a type.
    if origin is None and isinstance(form, type) and isinstance(value, form) and (form is not int or _is_int(value)):
        return value
    raise DecodeError(f"{path}: {_kind(value)} is not what the API says")


def _object(form: type, value: dict[str, object], path: str) -> object:
    hints = typing.get_type_hints(form)
    present = {}
    for field in dataclasses.fields(form):
        if field.name in value:
            present[field.name] = _decode(hints[field.name], value[field.name], f"{path}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise DecodeError(f"{path}: lacks `{field.name}`")
    return form(**present)


def _key(form: object, key: str, path: str) -> object:
    if form is str:
        return key
    try:
        return int(key)
    except ValueError:
        raise DecodeError(f"{path}: {key!r} is no number") from None


def _is_int(value: object) -> bool:
    # JSON's true is an int to Python.
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
