"""The native path on CPU tensors: a stand-in for the driver (stand_in.c), and planners and memory of the test's own."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from struct import pack
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import _empty_strided_cpu  # pyright: ignore[reportAttributeAccessIssue]

from convgap.plans import INTEGER, MEAN, OUTPUT, POINTER, SCALE, X
from runtime import native

CPU = 1
"""DLPack's number."""


class Noted(ctypes.Structure):
    """One launch as stand_in.c notes it."""

    _fields_ = tuple(
        (name, ctypes.c_uint64 * count if count else ctypes.c_uint64)
        for name, count in (
            ("function", 0), ("grid", 3), ("block", 3), ("shared", 0), ("stream", 0), ("parameter", 32),
        )
    )  # fmt: skip


class Driver:
    """stand_in.c, compiled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        self._noted = (Noted * 64).in_dll(library, "noted")
        self._numbers = {
            name: ctypes.c_int.in_dll(library, name)
            for name in ("launches", "device", "capturing", "status", "context_status", "parameters")
        }

    def set(self, **numbers: int) -> None:
        for name, value in numbers.items():
            self._numbers[name].value = value

    def launched(self) -> list[Noted]:
        """What was launched since the last time that this was asked."""
        found = list(self._noted[: self._numbers["launches"].value])
        self.set(launches=0)
        return found


def compiled(folder: Path) -> Path:
    """The stand-in's library."""
    path = folder / "stand_in.so"
    source = Path(__file__).with_name("stand_in.c")
    subprocess.run([*native.compiler(), "-shared", "-fPIC", "-o", path, source], check=True)
    return path


def loaded() -> ModuleType:
    """native.c, built."""
    build = native.Build()
    assert build.done(wait=True)
    return native.load(build.target)


class Calls:
    """The module with planners and memory of the test's own."""

    def __init__(self, module: ModuleType, driver: Driver) -> None:
        self.module, self.driver = module, driver
        self.planned: list[tuple[Any, ...]] = []
        self.rooms: list[tuple[int, int, int]] = []
        self.plan: Any = None
        native.configure(
            module, self._planner, self._planner, self._planner, driver=str(driver.path), device_type=CPU,
            empty_strided=_empty_strided_cpu, room=self._room,
        )  # fmt: skip

    def _planner(self, *arguments: Any) -> Any:
        self.planned.append(arguments)
        if isinstance(self.plan, BaseException):
            raise self.plan
        return self.plan

    def _room(self, stream: int, counters: int, space: int) -> tuple[Tensor, Tensor, int, int]:
        self.rooms.append((stream, counters, space))
        zeros = torch.zeros(max(counters, 1), dtype=torch.int32)
        return zeros, torch.empty(max(space, 1), dtype=torch.uint8), counters, space


def plan(
    *launches: Any,
    size: tuple[int, ...] = (2, 3, 1, 1),
    workspace: int = 0,
    counters: int = 0,
    node: Any = None,
) -> Any:
    stride = (3, 1, 1, 1)[4 - len(size) :]
    return ((size, stride, torch.float32),), 20.0, workspace, counters, launches, node


ONE = (
    77,
    5,
    6,
    128,
    4096,
    ((POINTER, X), (OUTPUT, 0), (INTEGER, -9), (MEAN, 0), (SCALE, 0), *[(INTEGER, 0)] * 3),
)


def double(value: float) -> int:
    return int.from_bytes(pack("d", value), "little")


def y_like(*shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, 4, 5))
