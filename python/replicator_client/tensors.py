"""Tensors as rows, without waiting for a device on the engine's thread. Imports torch only where one is on a device."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

from .board import LazyRow


def rows(tensor: Any) -> list[LazyRow]:
    """The rows of a matrix of integers: at once where it is in the host's memory, else as copies under way."""
    held = tensor.detach()
    if held.device.type == "cpu":
        return list(held.tolist())
    matrix = _copy(held)
    return [_row(matrix, number) for number in range(int(held.shape[0]))]


def row(tensor: Any) -> LazyRow:
    """A vector of integers, in the same way."""
    held = tensor.detach()
    if held.device.type == "cpu":
        return list(held.tolist())
    return _copy(held)


def _row(matrix: Callable[[], Any], number: int) -> Callable[[], list[int]]:
    return lambda: list(matrix()[number])


def _copy(tensor: Any) -> Callable[[], Any]:
    """Starts a copy in the stream of the engine, behind what fills the tensor; what is returned waits for it."""
    torch: Any = importlib.import_module("torch")
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.Event(device=tensor.device.type)
    event.record()
    lock = threading.Lock()
    values: list[Any] = []

    def wait() -> Any:
        with lock:
            if not values:
                event.synchronize()
                values.append(host.tolist())
            return values[0]

    return wait
