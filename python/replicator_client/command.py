"""`replicator-plugin`: what a plug-in would send, and whether it could."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import expert_map, settings
from .client import DEFAULT_ADDRESS, Client, Request, patch_request, put_request
from .contract import FRAMEWORKS
from .errors import ReplicatorError
from .expert_map import ExpertMap, MapError
from .feed import version_of
from .settings import Settings, SettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 where all is well, 1 where something is not as it should be, 2 where it cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        return _show(options) if options.command == "show" else _check()
    except (ReplicatorError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="replicator-plugin",
        description="What the plug-ins for vLLM and SGLang send to replicators. Both read the variables REPLICATOR_*, "
        "for which README.md has the table.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="whether the settings, the replicators and the frameworks here will do")
    show = commands.add_parser("show", help="what would be sent for a map in a file, or send it")
    show.add_argument("file", type=Path, help="JSON: physical_to_logical_map, DeepSeek's phy2log, or the list alone")
    show.add_argument("--model", help="default: $REPLICATOR_MODEL")
    show.add_argument("--nodes", help="the nodes in the order of their ranks; default: $REPLICATOR_NODES")
    show.add_argument("--ranks-per-node", metavar="N", help="default: $REPLICATOR_RANKS_PER_NODE")
    show.add_argument("--ranks", metavar="FILE", type=Path, help="JSON with the node of each rank, instead of these two")
    show.add_argument("--experts", type=int, metavar="N", help="logical experts of a layer; default: those of the file")
    show.add_argument("--epoch", type=int, metavar="N", help="default: microseconds since 1970")
    show.add_argument("--first-layer", type=int, metavar="N", help="default: $REPLICATOR_FIRST_LAYER or 0")
    show.add_argument("--first-table", type=int, metavar="N", help="default: $REPLICATOR_FIRST_TABLE or none")
    show.add_argument("--api", metavar="ADDRESS", help=f"default: $REPLICATOR_API or {DEFAULT_ADDRESS}")
    show.add_argument("--method", choices=("put", "patch"), help="show this request alone")
    show.add_argument("--send", action="store_true", help="send it, too: the PUT where --method does not say otherwise")
    return parser


def _show(options: argparse.Namespace) -> int:
    given = _defaults(options)
    environment = {**os.environ, **given}
    if options.ranks is not None:
        environment[settings.NODES] = str(options.ranks.absolute())
        environment.pop(settings.RANKS_PER_NODE, None)
    environment.setdefault(settings.API, DEFAULT_ADDRESS)
    resolved = Settings.from_environment(environment)
    if resolved is None or resolved.model is None:
        raise SettingsError("--model is not given, and REPLICATOR_MODEL is not set")
    rows = expert_map.rows(json.loads(options.file.read_text()))
    experts = options.experts or max((expert for row in rows for expert in row), default=0) + 1
    nodes = _nodes(resolved, rows)
    epoch = time.time_ns() // 1000 if options.epoch is None else options.epoch
    methods = [options.method] if options.method else ["put"] if options.send else ["put", "patch"]
    layers = dict(enumerate(rows, start=resolved.first_layer))
    whole = ExpertMap(resolved.model, experts, nodes, layers, resolved.first_table)
    for address in resolved.addresses:
        client = resolved.client(address)
        for method in methods:
            document = whole.document(epoch, partial=method == "patch")
            request = patch_request(document) if method == "patch" else put_request(document)
            print(_text(client, request))
            if options.send:
                print(f"-> {client.send(request).body.decode()}\n")
    return 0


def _defaults(options: argparse.Namespace) -> dict[str, str]:
    """Options in the place of the variables that they stand for."""
    variables = {
        settings.MODEL: options.model,
        settings.NODES: options.nodes,
        settings.RANKS_PER_NODE: options.ranks_per_node,
        settings.FIRST_LAYER: options.first_layer,
        settings.FIRST_TABLE: options.first_table,
        settings.API: options.api,
    }
    return {name: str(value) for name, value in variables.items() if value is not None}


def _nodes(resolved: Settings, rows: Sequence[Sequence[int]]) -> Sequence[str]:
    """The node of each rank. A file of maps does not say how many ranks there are: all that are known."""
    placement = resolved.placement
    known = placement.listed if placement.file is None else settings.read_ranks(placement.file)
    for number, row in enumerate(rows, start=resolved.first_layer):
        if len(row) % len(known):
            raise MapError(f"layer {number} has {len(row)} slots, and there are {len(known)} ranks: correct --nodes")
    return known


def _text(client: Client, request: Request) -> str:
    headers = client.headers(request)
    if "Authorization" in headers:
        headers["Authorization"] = "Bearer ..."
    body = request.body or b""
    headers["Content-Length"] = str(len(body))
    lines = [f"# {client.address}", f"{request.method} {request.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\n".join([*lines, "", body.decode(), ""])


def _check() -> int:
    well = _check_settings()
    for framework in FRAMEWORKS:
        source = framework.installed()
        if source is None:
            print(f"{framework.name}: not installed here")
            continue
        faults = framework.faults(source)
        well &= not faults
        version = version_of(framework.name)
        print(f"{framework.name} {version}: {'has what the plug-in hooks' if not faults else 'is not as needed'}")
        for what in faults:
            print(f"  {what}")
    return 0 if well else 1


def _check_settings() -> bool:
    try:
        resolved = Settings.from_environment()
    except SettingsError as error:
        print(f"settings: {error}")
        return False
    if resolved is None:
        print("settings: none, so the plug-ins do nothing; set REPLICATOR_API")
        return True
    for member in dataclasses.fields(resolved):
        if member.name not in ("addresses", "placement"):
            value = getattr(resolved, member.name)
            shown = ",".join(map(str, sorted(value))) if isinstance(value, frozenset) else value
            print(f"{member.name.replace('_', ' ')}: {'none' if shown is None else shown}")
    well = True
    try:
        nodes = _nodes(resolved, [])
        print(f"ranks: {len(nodes)} on {', '.join(dict.fromkeys(nodes))}")
    except SettingsError as error:
        print(f"ranks: {error}")
        well = False
    for address in resolved.addresses:
        try:
            client = resolved.client(address, timeout=10.0)
            readiness = client.ready()
            models = ", ".join(f"{model.model} at epoch {model.epoch}" for model in client.models())
        except (ReplicatorError, ValueError) as error:
            print(f"{address}: {error}")
            well = False
            continue
        state = "ready" if readiness.ready else f"not ready: {'; '.join(readiness.missing)}"
        print(f"{address}: {state}; models: {models or 'none'}")
    return well
