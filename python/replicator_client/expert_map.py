"""The canonical expert map (docs/expert-map.md), made from `physical_to_logical_map` and the ranks' nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 16 * 1024 * 1024
"""The longest document."""
MAX_EPOCH = 2**53 - 1
"""The largest epoch."""
MAX_EXPERTS = 1024
"""Logical experts of a layer."""
MAX_SLOTS = 4096
"""Slots of a layer, and ranks."""
MAX_LAYERS = 2048
"""Layers; their numbers are below it. The same goes for tables."""
MAX_NODES = 255
"""Different nodes of a map."""

Document = dict[str, Any]
"""A map as `json` reads and writes it."""

Row = Sequence[int]
"""The logical expert in each slot of a layer; -1 is a slot without one."""

_NODE = re.compile(r"[A-Za-z0-9._-]{1,63}")


class MapError(ValueError):
    """Something that no map can be made of."""


@dataclass(frozen=True)
class ExpertMap:
    """A map without its epoch. Layers are by number; `nodes` has the node of each rank."""

    model: str
    logical_experts: int
    nodes: Sequence[str]
    layers: Mapping[int, Row]
    first_table: int | None = None

    def document(self, epoch: int, *, partial: bool) -> Document:
        """The document. Raises MapError with the first thing that is wrong."""
        check_model(self.model)
        check_nodes(self.nodes)
        if not 0 <= epoch <= MAX_EPOCH:
            raise MapError(f"epoch {epoch} is not from 0 to 2^53 - 1")
        if not 1 <= self.logical_experts <= MAX_EXPERTS:
            raise MapError(f"{self.logical_experts} experts; there must be 1 to {MAX_EXPERTS}")
        if self.first_table is not None and not 0 <= self.first_table < MAX_LAYERS:
            raise MapError(f"first table {self.first_table} is not from 0 to {MAX_LAYERS - 1}")
        if not self.layers:
            raise MapError("no layer; a map has at least one")
        for number, row in self.layers.items():
            if not 0 <= number < MAX_LAYERS:
                raise MapError(f"layer {number} is not from 0 to {MAX_LAYERS - 1}")
            if (what := fault(row, len(self.nodes), self.logical_experts)) is not None:
                raise MapError(f"layer {number}: {what}")
        document: Document = {
            "version": 1,
            "model": self.model,
            "epoch": epoch,
            "logical_experts": self.logical_experts,
        }
        if partial:
            document["partial"] = True
        if self.first_table is not None:
            document["first_table"] = self.first_table
        document["ranks"] = [{"rank": rank, "node": node} for rank, node in enumerate(self.nodes)]
        document["layers"] = {
            str(number): {"physical_to_logical_map": list(self.layers[number])} for number in sorted(self.layers)
        }
        return document


def fault(row: Row, ranks: int, experts: int) -> str | None:
    """Why a layer cannot be sent, if it cannot. Every expert needs a slot: without one, tokens for it would be lost."""
    if not 1 <= len(row) <= MAX_SLOTS or len(row) % ranks:
        return f"{len(row)} slots on {ranks} ranks; each rank must have the same number, {MAX_SLOTS} in all at most"
    hosted = set(row)
    strange = [expert for expert in hosted if not -1 <= expert < experts]
    if strange:
        return f"expert {min(strange)} is not from 0 to {experts - 1}, nor -1 for none"
    missing = [expert for expert in range(experts) if expert not in hosted]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        return f"no slot has expert {', '.join(map(str, missing[:8]))}{more}"
    return None


def check_model(name: str) -> None:
    """Raises MapError where it is no name of a model."""
    if not 1 <= len(name) <= 63 or not name.isprintable() or name.strip() != name:
        raise MapError(f"{name!r} cannot name a model: 1 to 63 printable characters can")


def check_nodes(nodes: Sequence[str]) -> None:
    """Raises MapError where these cannot be the nodes of ranks."""
    if not 1 <= len(nodes) <= MAX_SLOTS:
        raise MapError(f"{len(nodes)} ranks; there must be 1 to {MAX_SLOTS}")
    for node in nodes:
        check_node(node)
    if (different := len(set(nodes))) > MAX_NODES:
        raise MapError(f"{different} nodes, and a table reaches {MAX_NODES}")


def check_node(name: str) -> None:
    """Raises MapError where it is no name of a node."""
    if not _NODE.fullmatch(name):
        raise MapError(f"{name!r} cannot name a node: 1 to 63 of the characters a-z, A-Z, 0-9, `.`, `_` and `-` can")


def encode(document: Document) -> bytes:
    """The body of a request. Raises MapError where it is longer than a replicator reads."""
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    if len(body) > MAX_BYTES:
        raise MapError(f"the map has {len(body)} bytes; a replicator reads {MAX_BYTES}: send fewer layers at a time")
    return body


def spread(nodes: Iterable[str], ranks_per_node: int) -> tuple[str, ...]:
    """The node of each rank where consecutive ranks are on consecutive nodes, the same number on each."""
    return tuple(node for node in nodes for _ in range(ranks_per_node))


def ranks(value: object) -> tuple[str, ...]:
    """The node of each rank from the list that a map has under `ranks`. Raises MapError."""
    if not isinstance(value, list) or not value:
        raise MapError('no list of ranks, such as [{"rank": 0, "node": "node1"}]')
    nodes: dict[int, str] = {}
    for item in value:
        rank, node = (item.get("rank"), item.get("node")) if isinstance(item, dict) else (None, None)
        if not isinstance(rank, int) or isinstance(rank, bool) or not isinstance(node, str) or len(item) != 2:
            raise MapError(f'{json.dumps(item)[:100]} is no rank; write {{"rank": 0, "node": "node1"}}')
        if not 0 <= rank < len(value) or rank in nodes:
            raise MapError(f"rank {rank}: give every rank from 0 to {len(value) - 1} one entry")
        nodes[rank] = node
    listed = tuple(nodes[rank] for rank in range(len(value)))
    check_nodes(listed)
    return listed


def rows(value: object) -> list[list[int]]:
    """The layers of a framework's JSON: `physical_to_logical_map`, DeepSeek's `phy2log`, or the list alone.

    Raises MapError.
    """
    if isinstance(value, dict):
        names = [name for name in ("physical_to_logical_map", "phy2log") if name in value]
        if len(names) != 1:
            raise MapError("the file has neither `physical_to_logical_map` nor `phy2log`, or both of them")
        value = value[names[0]]
    if not isinstance(value, list) or not value:
        raise MapError("no list of layers, each a list with the expert of each slot")
    for number, row in enumerate(value):
        if not isinstance(row, list) or not all(type(expert) is int for expert in row):
            raise MapError(f"layer {number} of the file is no list of whole numbers")
    return value
