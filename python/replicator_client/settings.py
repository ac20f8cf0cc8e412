"""What the plug-ins are told by the environment; README.md has the table of the variables."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import expert_map
from .client import Client, check_address
from .expert_map import MAX_LAYERS, MAX_SLOTS, MapError
from .poster import Endpoint

API = "REPLICATOR_API"
TOKEN_FILE = "REPLICATOR_TOKEN_FILE"
CA_FILE = "REPLICATOR_CA_FILE"
MODEL = "REPLICATOR_MODEL"
NODES = "REPLICATOR_NODES"
RANKS_PER_NODE = "REPLICATOR_RANKS_PER_NODE"
POST_RANK = "REPLICATOR_POST_RANK"
FIRST_LAYER = "REPLICATOR_FIRST_LAYER"
FIRST_TABLE = "REPLICATOR_FIRST_TABLE"

VARIABLES = (API, TOKEN_FILE, CA_FILE, MODEL, NODES, RANKS_PER_NODE, POST_RANK, FIRST_LAYER, FIRST_TABLE)


class SettingsError(ValueError):
    """Settings that cannot be followed; the message names the variable."""


@dataclass(frozen=True)
class Placement:
    """Which node a rank is on: a list, or a file that is read again each time."""

    listed: tuple[str, ...] = ()
    file: Path | None = None

    def nodes(self, ranks: int) -> tuple[str, ...]:
        """The node of each of the first `ranks` ranks. Raises SettingsError where there are not as many."""
        known = self.listed if self.file is None else read_ranks(self.file)
        if len(known) < ranks:
            raise SettingsError(f"{NODES} says where {len(known)} ranks are, and the engine has {ranks}")
        return known[:ranks]


@dataclass(frozen=True)
class Settings:
    """All of them."""

    addresses: tuple[str, ...]
    placement: Placement
    token_file: Path | None = None
    ca_file: Path | None = None
    model: str | None = None
    post_ranks: frozenset[int] = field(default=frozenset({0}))
    first_layer: int = 0
    first_table: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings | None:
        """The settings, None where none is set. Raises SettingsError."""
        given = {name: environment[name].strip() for name in VARIABLES if environment.get(name, "").strip()}
        if not given:
            return None
        if API not in given:
            raise SettingsError(f"{API} is not set, and {', '.join(sorted(given))} is: say where to post to")
        if NODES not in given:
            raise SettingsError(f"{NODES} is not set: say on which node each rank is")
        ranks = [_number(POST_RANK, text, MAX_SLOTS - 1) for text in given.get(POST_RANK, "0").split(",")]
        model = given.get(MODEL)
        try:
            if model is not None:
                expert_map.check_model(model)
        except MapError as error:
            raise SettingsError(f"{MODEL}: {error}") from None
        try:
            addresses = tuple(text.strip() for text in given[API].split(",") if text.strip())
            for address in addresses:
                check_address(address)
        except ValueError as error:
            raise SettingsError(f"{API}: {error}") from None
        if not addresses:
            raise SettingsError(f"{API} has no address in it")
        if len(set(addresses)) != len(addresses):
            raise SettingsError(f"{API} has an address twice")
        return cls(
            addresses,
            parse_placement(given[NODES], given.get(RANKS_PER_NODE)),
            Path(given[TOKEN_FILE]) if TOKEN_FILE in given else None,
            Path(given[CA_FILE]) if CA_FILE in given else None,
            model,
            frozenset(ranks),
            _number(FIRST_LAYER, given.get(FIRST_LAYER, "0"), MAX_LAYERS - 1),
            _number(FIRST_TABLE, given[FIRST_TABLE], MAX_LAYERS - 1) if FIRST_TABLE in given else None,
        )

    def client(self, address: str, timeout: float = 30.0) -> Client:
        """A client with what the files have now. Raises SettingsError where they cannot be read."""
        over_tls = address.startswith("https://")
        token = read_token(self.token_file) if self.token_file is not None and over_tls else None
        return Client(address, token, None if self.ca_file is None else str(self.ca_file), timeout)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The addresses for a poster."""
        return tuple(Endpoint(address, functools.partial(self.client, address)) for address in self.addresses)


def parse_placement(nodes: str, ranks_per_node: str | None) -> Placement:
    """A path, which has a `/`, or node names with the number of ranks on each. Raises SettingsError."""
    if "/" in nodes:
        if ranks_per_node is not None:
            raise SettingsError(f"{RANKS_PER_NODE} goes with a list of nodes, and {NODES} is a file")
        return Placement(file=Path(nodes))
    if ranks_per_node is None:
        raise SettingsError(f"{RANKS_PER_NODE} is not set: say how many ranks are on each of {NODES}")
    names = [name.strip() for name in nodes.split(",") if name.strip()]
    listed = expert_map.spread(names, _number(RANKS_PER_NODE, ranks_per_node, MAX_SLOTS, least=1))
    try:
        expert_map.check_nodes(listed)
    except MapError as error:
        raise SettingsError(f"{NODES}: {error}") from None
    return Placement(listed)


def read_ranks(path: Path) -> tuple[str, ...]:
    """The node of each rank from a JSON file. Raises SettingsError."""
    try:
        return expert_map.ranks(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{NODES}: {path}: {error}") from None


def read_token(path: Path) -> str:
    """The token in a file. Raises SettingsError, which does not have the token in it."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "is no text"
        raise SettingsError(f"{TOKEN_FILE}: {path}: {what}") from None


def _number(name: str, text: str, most: int, least: int = 0) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
        raise SettingsError(f"{name} is {text!r}; it must be a whole number from {least} to {most}")
    return int(text)
