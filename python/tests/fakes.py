"""Tensors, and the frameworks' packages of `frameworks/` as long as a test wants them."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FRAMEWORKS = Path(__file__).parent / "frameworks"


class Tensor:
    """Integers in the host's memory or, with what it takes to get them, on a device."""

    def __init__(self, values: list[Any], device: str = "cpu") -> None:
        self.values = values
        self.device = types.SimpleNamespace(type=device)
        self.dtype = "int64"

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.values[0] if self.values else None
        return (len(self.values), len(first)) if isinstance(first, list) else (len(self.values),)

    def detach(self) -> Tensor:
        return self

    def tolist(self) -> list[Any]:
        if self.device.type != "cpu":
            raise AssertionError("this waits for the device")
        return [list(row) if isinstance(row, list) else row for row in self.values]

    def __getitem__(self, number: int) -> Tensor:
        return Tensor(self.values[number], self.device.type)

    def set_row(self, number: int, row: Tensor) -> None:
        self.values[number] = list(row.values)


class Torch(types.ModuleType):
    """As much of torch as a copy from a device needs; `finish` is when the device comes to it."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.copies: list[tuple[Host, list[Any]]] = []
        self.pinned: list[bool] = []
        torch = self

        class Event:
            def __init__(self, device: str) -> None:
                self.device = device

            def record(self) -> None:
                pass

            def synchronize(self) -> None:
                torch.finish()

        self.Event = Event

    def empty(self, shape: tuple[int, ...], *, dtype: str, device: str, pin_memory: bool) -> Host:
        self.pinned.append(pin_memory)
        return Host(self)

    def finish(self) -> None:
        for host, values in self.copies:
            host.values = values
        self.copies.clear()


class Host(Tensor):
    """Pinned memory that is filled when the device comes to it."""

    def __init__(self, torch: Torch) -> None:
        super().__init__([])
        self._torch = torch

    def copy_(self, tensor: Tensor, *, non_blocking: bool) -> None:
        assert non_blocking, "this waits for the device"
        # What the tensor has at this moment: later work of the stream comes after the copy.
        self._torch.copies.append((self, [list(row) if isinstance(row, list) else row for row in tensor.values]))


@contextlib.contextmanager
def framework(name: str) -> Iterator[None]:
    """The package `name` of `frameworks/` can be imported, fresh."""
    before = {module: sys.modules.pop(module) for module in list(sys.modules) if module.split(".")[0] == name}
    sys.path.insert(0, str(FRAMEWORKS))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(FRAMEWORKS))
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[module]
        sys.modules.update(before)
