"""CuPy's RawKernel without a GPU: CUDA C++ of others, run by this project's interpreter on tensors of the CPU.

Only what a file needs around a RawKernel is here. What the interpreter cannot run raises `Unsupported`: such a file can
be judged on a GPU only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from cupy_impl.interpret import Module, unavailable


class Unsupported(RuntimeError):
    """This needs a GPU; the message says what for."""


class RawKernel:
    """One kernel of a CUDA C++ text. Launched as kernel(grid, block, arguments, shared_mem=0, stream=None)."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), **_: Any) -> None:
        self.code, self.name, self.options = code, name, options
        self._kernel: Any = None

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile for the CPU. Unsupported for what the interpreter does not know."""
        if self._kernel is not None:
            return
        if reason := unavailable():
            raise Unsupported(reason)
        if "extern __shared__" in self.code:
            raise Unsupported("the interpreter of CUDA C++ has no shared memory whose size the launch decides")
        text = re.sub(r"^\s*#\s*include\b.*$", "", self.code, flags=re.MULTILINE)
        try:
            macros = tuple(option for option in self.options if option.startswith("-D"))
            self._kernel = Module(text, macros).function(self.name)
        except RuntimeError as error:
            raise Unsupported(f"the interpreter of CUDA C++ does not take this source: {error}") from None

    def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int = 0, stream: Any = None, **_: Any) -> None:
        self.compile()
        if shared_mem:
            raise Unsupported("the interpreter of CUDA C++ has no shared memory whose size the launch decides")
        sizes = (block,) if isinstance(block, int) else tuple(block)
        if any(size != 1 for size in sizes[1:]):
            raise Unsupported(f"the interpreter of CUDA C++ runs blocks of one dimension, this one is {sizes}")
        grids = (grid,) if isinstance(grid, int) else tuple(int(n) for n in grid)
        self._kernel(grids, int(sizes[0]), tuple(map(_argument, args)))


class RawModule:
    """A CUDA C++ text with several kernels."""

    def __init__(self, code: str = "", options: tuple[str, ...] = (), **_: Any) -> None:
        self.code, self.options = code, options

    def get_function(self, name: str) -> RawKernel:
        """The kernel of that name."""
        return RawKernel(self.code, name, self.options)


class _Array:
    """What stands for a CuPy array that shares a tensor's memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.data, self.shape = tensor, self, tuple(tensor.shape)
        self.ptr = tensor.data_ptr()


def _argument(value: Any) -> Any:
    return value.tensor if isinstance(value, _Array) else value


@contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


class _Stream:
    """The only stream that a CPU has."""

    cuda_stream = ptr = 0

    def synchronize(self) -> None:
        """Everything is done already."""


def install() -> ModuleType:
    """Put a `cupy` of the above into sys.modules, and give torch.cuda.current_stream() an answer; the module."""
    module: Any = ModuleType("cupy")
    module.RawKernel, module.RawModule = RawKernel, RawModule
    module.asarray = module.from_dlpack = module.ascontiguousarray = _Array
    for name in ("float16", "float32", "float64", "int32", "int64", "uint32", "uint64"):
        setattr(module, name, getattr(np, name))
    cuda: Any = ModuleType("cupy.cuda")
    cuda.ExternalStream = cuda.Device = _nothing
    cuda.Stream = _Stream
    module.cuda = cuda
    sys.modules["cupy"], sys.modules["cupy.cuda"] = module, cuda
    torch.cuda.current_stream = lambda device=None: _Stream()
    return module
