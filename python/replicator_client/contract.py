"""What the plug-ins need of each framework, and whether a version has it: its source is parsed, never imported.

`python3 -m replicator_client.contract` checks published wheels; `replicator-plugin check` what is installed.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Source = Callable[[str], str | None]
"""The source of a file of a framework, by its path; None where it is not there."""


@dataclass(frozen=True)
class Function:
    """A function, or a method as `Class.name`, that takes these parameters first, in this order."""

    file: str
    name: str
    parameters: tuple[str, ...]
    called: bool = False
    """Whether its own module has to call it by its bare name: a wrapper in the module is seen by no other call."""

    def fault(self, tree: ast.Module) -> str | None:
        """What is not so."""
        found = _definition(tree, self.name)
        if not isinstance(found, ast.FunctionDef):
            return f"{self.file}: there is no function {self.name}"
        names = tuple(argument.arg for argument in found.args.posonlyargs + found.args.args)
        if names[: len(self.parameters)] != self.parameters:
            return f"{self.file}: {self.name} takes ({', '.join(names)}), not ({', '.join(self.parameters)}) first"
        beyond = len(names) - len(self.parameters)
        if beyond > len(found.args.defaults):
            return f"{self.file}: {self.name} wants more than ({', '.join(self.parameters)})"
        if self.called and not any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == self.name
            for node in ast.walk(tree)
        ):
            return f"{self.file}: nothing there calls {self.name}"
        return None

    def absence(self, module: object) -> str | None:
        """The same of a module that is loaded."""
        found = module
        for part in self.name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            return f"there is no function {self.name}"
        names = tuple(inspect.signature(found).parameters)
        if names[: len(self.parameters)] != self.parameters:
            return f"{self.name} takes ({', '.join(names)}), not ({', '.join(self.parameters)}) first"
        return None


@dataclass(frozen=True)
class Attribute:
    """A name of a module, or a field, property or member of a class as `Class.name`."""

    file: str
    name: str

    def fault(self, tree: ast.Module) -> str | None:
        """What is not so."""
        owner, _, name = self.name.rpartition(".")
        place = _definition(tree, owner) if owner else tree
        if not isinstance(place, ast.Module | ast.ClassDef) or name not in set(_names(place)):
            return f"{self.file}: there is no {self.name}"
        return None


Need = Function | Attribute


@dataclass(frozen=True)
class Framework:
    """A framework, all that its plug-in needs of it, and the versions that it is known to be in."""

    name: str
    versions: tuple[str, ...]
    needs: tuple[Need, ...]

    def faults(self, source: Source) -> list[str]:
        """What is not so, a sentence each."""
        faults = []
        for need in self.needs:
            text = source(need.file)
            what = f"there is no {need.file}" if text is None else need.fault(ast.parse(text))
            if what is not None and what not in faults:
                faults.append(what)
        return faults

    def absences(self, file: str, module: object) -> list[str]:
        """Functions of a file that are not so in its module, loaded as it is."""
        functions = (need for need in self.needs if isinstance(need, Function) and need.file == file)
        return [what for need in functions if (what := need.absence(module)) is not None]

    def installed(self) -> Source | None:
        """The source that is installed here; None where the framework is not."""
        spec = importlib.util.find_spec(self.name)
        if spec is None or not spec.submodule_search_locations:
            return None
        roots = [Path(location).parent for location in spec.submodule_search_locations]
        return lambda file: next((path.read_text() for root in roots if (path := root / file).is_file()), None)


EPLB = "vllm/distributed/eplb/eplb_state.py"
VLLM_MODEL = "vllm/model_executor/models/interfaces.py"
UPDATER = "sglang/srt/eplb/expert_location_updater.py"
LOCATION = "sglang/srt/eplb/expert_location.py"
HOOKS = "sglang/srt/plugins/hook_registry.py"

VLLM = Framework(
    "vllm",
    ("0.33.0",),
    (
        Function(EPLB, "_commit_eplb_maps", ("model_state", "new_physical_to_logical_map"), called=True),
        Function(
            EPLB,
            "_commit_eplb_maps_for_layer",
            ("model_state", "new_physical_to_logical_map", "layer"),
            called=True,
        ),
        Function(EPLB, "EplbState.add_model", ("self", "model", "model_config")),
        Attribute(EPLB, "EplbState.model_states"),
        Attribute(EPLB, "get_ep_group"),
        Attribute(EPLB, "EplbModelState.model"),
        Attribute(EPLB, "EplbModelState.model_name"),
        Attribute(EPLB, "EplbModelState.physical_to_logical_map"),
        Attribute(VLLM_MODEL, "MixtureOfExperts.num_logical_experts"),
        Attribute(VLLM_MODEL, "MixtureOfExperts.num_local_physical_experts"),
        Function("vllm/plugins/__init__.py", "load_general_plugins", ()),
    ),
)

SGLANG = Framework(
    "sglang",
    ("0.5.23",),
    (
        Function(
            UPDATER,
            "ExpertLocationUpdater.update",
            (
                "self",
                "routed_experts_weights_of_layer",
                "new_expert_location_metadata",
                "update_layer_ids",
                "nnodes",
                "rank",
            ),
        ),
        Function(LOCATION, "set_global_expert_location_metadata", ("value",)),
        Attribute(LOCATION, "ExpertLocationMetadata.physical_to_logical_map_cpu"),
        Attribute(LOCATION, "ExpertLocationMetadata.ep_size"),
        Attribute(LOCATION, "ExpertLocationMetadata.num_logical_experts"),
        Function(HOOKS, "HookRegistry.register", ("cls", "target", "hook", "hook_type")),
        Attribute(HOOKS, "HookType.AFTER"),
        Function("sglang/srt/plugins/__init__.py", "load_plugins", ()),
        Function("sglang/srt/runtime_context.py", "get_parallel", ()),
        Function("sglang/srt/runtime_context.py", "get_serving", ()),
    ),
)

FRAMEWORKS = (VLLM, SGLANG)


def _definition(tree: ast.Module, name: str) -> ast.AST | None:
    place: ast.AST | None = tree
    for part in name.split("."):
        body = place.body if isinstance(place, ast.Module | ast.ClassDef) else []
        definitions = (node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        place = next((node for node in definitions if node.name == part), None)
    return place


def _names(place: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Names that a module or a class has, those that methods give to `self` among them."""
    for node in place.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
    for inner in ast.walk(place) if isinstance(place, ast.ClassDef) else iter(place.body):
        targets: Sequence[ast.expr] = ()
        if isinstance(inner, ast.Assign):
            targets = inner.targets
        elif isinstance(inner, ast.AnnAssign):
            targets = [inner.target]
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id
            elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                yield target.attr


def published(requirement: str, folder: Path) -> Path:
    """The wheel of `NAME==VERSION` without what it depends on, by pip."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", f"--dest={folder}", requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def source_of(wheel: zipfile.ZipFile) -> Source:
    """The source in a wheel."""
    names = set(wheel.namelist())
    return lambda file: wheel.read(file).decode() if file in names else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks wheels; 1 where something is missing in one."""
    known = [f"{framework.name}=={version}" for framework in FRAMEWORKS for version in framework.versions]
    parser = argparse.ArgumentParser(
        prog="python3 -m replicator_client.contract",
        description="Downloads wheels with pip and checks that they have what the plug-ins hook. Nothing is installed.",
    )
    parser.add_argument("requirements", nargs="*", default=known, metavar="NAME==VERSION", help=f"default: {known}")
    failed = False
    for requirement in parser.parse_args(arguments).requirements:
        name = requirement.partition("==")[0]
        framework = next((framework for framework in FRAMEWORKS if framework.name == name), None)
        if framework is None:
            parser.error(f"{name} is none of {', '.join(framework.name for framework in FRAMEWORKS)}")
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(published(requirement, Path(folder))) as wheel:
                faults = framework.faults(source_of(wheel))
        failed |= bool(faults)
        print(f"{requirement}: {'as needed' if not faults else f'{len(faults)} of {len(framework.needs)} are not there'}")
        for what in faults:
            print(f"  {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
