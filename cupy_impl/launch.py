"""What is compiled, and how it is launched: CUDA tensors by NVRTC's code through CuPy's RawKernel, CPU tensors by the
same source through `interpret`. Memory comes from torch alone, never from CuPy's pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from math import ceil
from threading import Lock
from typing import Any

import torch

from cupy_impl import constants
from cupy_impl.signatures import with_constants
from runtime import private
from runtime.names import importable
from runtime.prepared import CPU, Unlaunchable
from runtime.slots import Slots

OPTIONS = ("--std=c++17",)
"""NVRTC's, without the architecture."""

MOST_BLOCKS = 2**31 - 1
"""Blocks of a grid along x, which is the only axis that is used."""


@cache
def kernel_source() -> str:
    """kernels.cu, which needs a device header before it: device.cuh, or the interpreter's own."""
    return (files(importable("cupy_impl")) / "kernels.cu").read_text()


@cache
def _device_header() -> str:
    return (files(importable("cupy_impl")) / "device.cuh").read_text()


@dataclass(frozen=True, eq=False)
class Code:
    """One kernel with all that fixes its code: names and values of the macros that it is compiled with.

    sizes: what its last parameters are, where the code is made for just these; empty where it takes any.
    """

    kernel: str
    constants: tuple[tuple[str, str], ...]
    sizes: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Code) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _key(self) -> tuple[str, tuple[tuple[str, str], ...], tuple[int, ...]]:
        return self.kernel, self.constants, self.sizes

    @cached_property
    def _hash(self) -> int:
        # Looked up on every call: worked out once.
        return hash(self._key)

    @property
    def macros(self) -> dict[str, str]:
        """Names and values of the macros."""
        return {f"KERNEL_{self.kernel}": "1", **dict(self.constants)}

    def text(self, kernels: str | None = None) -> str:
        """What is compiled, without the device header; `kernels` takes the place of kernels.cu."""
        text = kernels or kernel_source()
        return with_constants(text, self.kernel, self.sizes) if self.sizes else text


kind = lru_cache(maxsize=4096)(Code)
"""The code of a kind for any sizes, one object a kind: the prepared launches of a thousand sizes hold the same few, and
Python's collector has no more to walk over."""


def device_source(code: Code, kernels: str | None = None) -> str:
    """The translation unit for NVRTC; `kernels` takes the place of kernels.cu."""
    # Macros are in the text because CuPy runs NVRTC once per set of options, only to see its version.
    macros = "".join(f"#define {name} {value}\n" for name, value in code.macros.items())
    return f"{macros}#line 1\n{_device_header()}{code.text(kernels)}"


def interpreted(code: Code, kernels: str | None = None) -> Any:
    """The kernel on the CPU, as run(grid, threads, arguments); `kernels` takes the place of kernels.cu."""
    from cupy_impl import interpret

    macros = tuple(f"-D{name}={value}" for name, value in code.macros.items())
    return interpret.Module(code.text(kernels), macros).function(code.kernel)


class _Stream:
    """What CuPy asks of a stream: its raw handle."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class Launch:
    """A prepared launch: which code, how many blocks and threads, and the sizes, which are the last arguments.

    Called as launch(device, stream, *tensors, *numbers), in the order of the kernel's parameters.
    """

    def __init__(self, code: Code, blocks: int, threads: int, sizes: tuple[int, ...], shared: int = 0) -> None:
        if blocks > MOST_BLOCKS:
            raise Unlaunchable(f"sizes: expected at most {MOST_BLOCKS} blocks of {code.kernel}, they need {blocks}")
        self.kind = self._any_size = code
        self.kernel = code.kernel
        self.grid = blocks, 1
        self.sizes = sizes
        self.threads = threads
        self.shared = shared
        self._block = (threads,)
        self._slots = Slots(_parameters)
        self._on_cuda: Any = None
        self._on_cpu: Any = None

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None:
        if device == CPU:
            if self._on_cpu is None:
                self._on_cpu = interpreted(self.kind)
            on_cpu(self._on_cpu, self, arguments)
            return
        if private.current_device() != device.index:
            with torch.cuda.device(device):
                self(device, stream, *arguments)
            return
        if self._on_cuda is None:
            self._on_cuda = _loaded(self.kind)
        filled = self._slots.fill((*arguments, *self.sizes))
        self._on_cuda(self.grid, self._block, filled, shared_mem=self.shared, stream=_Stream(stream))

    @property
    def fixed(self) -> bool:
        """Whether the code is made for just these sizes."""
        return bool(self.kind.sizes)

    def fix(self, device: torch.device) -> None:
        """Compile the code for just these sizes and launch that from now on: the same bits, fewer instructions."""
        if self.fixed:
            return
        block = "BLOCK", str(self.threads)
        code = Code(self.kernel, (*self.kind.constants, block), self.sizes)
        # Changed only when all is there: other threads may be launching it.
        if device == CPU:
            self._on_cpu = interpreted(code)
        else:
            self._load(code, device)
            self._on_cuda = _compiled(code)
        self.kind = code

    def unfix(self) -> None:
        """Launch the code for any sizes again."""
        if self.fixed:
            self._on_cuda = self._on_cpu = None
            self.kind = self._any_size

    def load(self, device: torch.device) -> None:
        """Compile and load, so that no launch with this code has to."""
        self._load(self.kind, device)

    def _load(self, code: Code, device: torch.device) -> None:
        if device != CPU:
            with torch.cuda.device(device):
                _loaded(code)

    def handle(self, device: torch.device) -> tuple[int, int, int]:
        """(CUfunction as a number, threads of a block, bytes of dynamic shared memory). Raises RuntimeError on the
        CPU."""
        if device == CPU:
            raise RuntimeError("interpreted kernels have no CUfunction")
        if private.current_device() != device.index:
            with torch.cuda.device(device):
                return self.handle(device)
        return _loaded(self.kind).kernel.ptr, self.threads, self.shared


def on_cpu(kernel: Any, launch: Launch, arguments: Sequence[Any]) -> None:
    """Run an interpreted kernel as the launch says. Wide accesses outside the tensors raise RuntimeError."""
    pointers = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    extents = [_extent(a) for a in arguments if isinstance(a, torch.Tensor)]
    kernel(launch.grid, launch.threads, (*pointers, *launch.sizes), extents)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first address of a tensor, and the first one behind its last element."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1 + sum((size - 1) * stride for size, stride in sizes) if tensor.numel() else 0
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


def _parameters(slots: list[int]) -> list[Any]:
    """Addresses of parameters as CuPy takes them: of numbers it would make these anew for every launch."""
    from cupy.cuda.function import CPointer

    return [CPointer(slot) for slot in slots]


@cache
def _compiled(code: Code) -> Any:
    """The kernel by NVRTC, for every CUDA device: CuPy loads it on each as it is first called there."""
    import cupy

    return cupy.RawKernel(device_source(code), code.kernel, options=OPTIONS)


_locks: dict[Code, Lock] = {}


def _loaded(code: Code) -> Any:
    """The kernel, on the current device. Threads that ask for the same code compile it once."""
    with _locks.setdefault(code, Lock()):
        kernel = _compiled(code)
        kernel.compile()
        return kernel


def warps(threads: int) -> int:
    """The least number of threads, no smaller than `threads`, that fills whole warps."""
    return ceil(threads / constants.WARP) * constants.WARP
