"""From sizes and strides to CUDA launches: specialisation, grids, workspace, limits.

A call is prepared once per distinct (shapes, strides, alignment, dtype); after that it costs the
allocation of its output and its launches. CUDA tensors go to NVRTC's code through CuPy's RawKernel,
CPU tensors to the same source through `interpret`. Memory comes from torch alone, never from CuPy's
pool: one allocator knows about streams and graph capture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import torch

from cupy_impl import plan
from reference.problem import Chain
from runtime.layout import Layout, describe, pow2_at_least
from runtime.prepared import CPU, BackwardCall, ChainCall, TailCall, accumulator, check_grid
from runtime.slots import Slots

BATCHES = 1, plan.CONTRACT_MANY.BN * (plan.MANY + 1)
"""Batch sizes that between them need every form of a kernel: only `contract` has more than one."""

OPTIONS = ("--std=c++17",)
"""NVRTC's, without the architecture."""

_ELEMENT = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "half",
    torch.bfloat16: "bfloat16",
}
_AXIS = {"planes": 1, "rows": 2, "columns": 3, "none": 3}


@cache
def kernel_source() -> str:
    """kernels.cu, which needs a device header before it: device.cuh, or the interpreter's own."""
    return Path(__file__).with_name("kernels.cu").read_text()


@cache
def _device_header() -> str:
    return Path(__file__).with_name("device.cuh").read_text()


@dataclass(frozen=True)
class Specialization:
    """One kernel with all that fixes its code."""

    kernel: str
    constants: tuple[tuple[str, Any], ...]

    @property
    def threads(self) -> int:
        """Threads per block."""
        return dict(self.constants)["THREADS"]

    @property
    def macros(self) -> dict[str, Any]:
        """Names and values of the macros that the source is compiled with."""
        values = ((name, int(v) if isinstance(v, bool) else v) for name, v in self.constants)
        return {f"KERNEL_{self.kernel}": 1, **dict(values)}


def device_source(special: Specialization, kernels: str | None = None) -> str:
    """The translation unit for NVRTC; `kernels` takes the place of kernels.cu."""
    # Macros are in the text because CuPy runs NVRTC once per set of options, only to see its version.
    macros = "".join(f"#define {name} {value}\n" for name, value in special.macros.items())
    return f"{macros}#line 1\n{_device_header()}{kernels or kernel_source()}"


def interpreted(special: Specialization, kernels: str | None = None) -> Any:
    """The kernel on the CPU, as run(grid, threads, arguments); `kernels` takes the place of kernels.cu."""
    from cupy_impl import interpret

    macros = tuple(f"-D{name}={value}" for name, value in special.macros.items())
    return interpret.Module(kernels or kernel_source(), macros).function(special.kernel)


class _Stream:
    """What CuPy asks of a stream: its raw handle."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class Launch:
    """A prepared launch: which code and how many blocks.

    Called as launch(device, stream, *tensors, *numbers), in the order of the kernel's parameters.
    """

    def __init__(self, special: Specialization, grid: tuple[int, int]) -> None:
        check_grid(grid)
        self.special = special
        self.grid = grid
        self._block = (special.threads,)
        self._slots = Slots(_parameters)
        self._on_cuda: Any = None
        self._on_cpu: Any = None

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None:
        if device == CPU:
            if self._on_cpu is None:
                self._on_cpu = interpreted(self.special)
            pointers = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
            self._on_cpu(self.grid, self.special.threads, pointers)
            return
        if torch._C._cuda_getDevice() != device.index:
            with torch.cuda.device(device):
                self(device, stream, *arguments)
            return
        if self._on_cuda is None:
            self._on_cuda = _compiled(self.special)
        self._on_cuda(self.grid, self._block, self._slots.fill(arguments), stream=_Stream(stream))

    def load(self, device: torch.device) -> None:
        """Compile and load, so that no launch with this code has to."""
        if device != CPU:
            with torch.cuda.device(device):
                _compiled(self.special).compile()


def _parameters(slots: list[int]) -> list[Any]:
    """Addresses of parameters as CuPy takes them: of numbers it would make these anew for every launch."""
    from cupy.cuda.function import CPointer

    return [CPointer(slot) for slot in slots]


@cache
def _compiled(special: Specialization) -> Any:
    """The kernel by NVRTC, for every CUDA device: CuPy loads it on each as it is first called there. Launches that
    differ in their grids share it."""
    import cupy

    return cupy.RawKernel(device_source(special), special.kernel, options=OPTIONS)


def _specialize(
    kernel: str,
    layout: Layout,
    tile: plan.Tile | None,
    dtype: torch.dtype,
    constants: dict[str, Any],
    blocks: int = plan.BLOCKS,
    finish: int = plan.FINISH,
) -> Specialization:
    threads = plan.THREADS
    if tile is not None:
        threads, blocks = tile.stream.threads, tile.stream.blocks
    _, stride_c, stride_h, stride_w = layout.stride
    fixed: dict[str, Any] = {
        "ELEMENT": _ELEMENT[dtype],
        "ACC": _ELEMENT[accumulator(dtype)],
        # A merged plane can be longer than 2^31; everything else keeps 32-bit rows and columns.
        "SIZE": "index_t" if max(layout.h, layout.w) >= 2**31 else "int",
        "C": layout.c,
        "H": layout.h,
        "W": layout.w,
        "STRIDE_C": f"{stride_c}LL",
        "STRIDE_H": f"{stride_h}LL",
        "STRIDE_W": f"{stride_w}LL",
        "THREADS": threads,
        "BLOCKS": blocks,
        # In flight in the finish: as many registers whatever the accumulator.
        "FR": finish // (2 if dtype == torch.float64 else 1),
    }
    if tile is not None:
        fixed |= {"VEC": layout.vector, "AXIS": _AXIS[layout.unit], "ROWS": tile.ROWS}
        fixed |= {"BP": tile.BP, "BR": tile.BR, "BC": tile.BC}
    return Specialization(kernel, tuple((fixed | constants).items()))


def _geometry(problem: Chain, swapped: bool = False) -> dict[str, int]:
    (KH, KW), (SH, SW) = problem.kernel, problem.stride
    (PH, PW), (DH, DW) = problem.padding, problem.dilation
    G, CI, CO = problem.groups, problem.c_in // problem.groups, problem.c_out // problem.groups
    channels = {"G": G, "CI": CI, "CO": CO, "SWAPPED": swapped, "EMPTY": problem.has_empty_bands}
    sizes = {"H": problem.h, "W": problem.w, "H_OUT": problem.out_size(0), "W_OUT": problem.out_size(1)}
    taps = {"KH": KH, "KW": KW, "SH": SH, "SW": SW, "PH": PH, "PW": PW, "DH": DH, "DW": DW}
    return channels | sizes | taps


@lru_cache(maxsize=4096)
def prepare_tail(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, alignment: int, tensor: bool
) -> TailCall:
    """Prepare multiply + average pool of y [n, c, h, w]; `alignment` is the address modulo 16."""
    layout = describe(shape, stride, dtype.itemsize, alignment, whole_planes=True)
    if flat := plan.flat(layout, dtype.itemsize):
        constants = {"BP": flat.BP, "PLANE": layout.h, "FOLD": flat.FOLD, "VEC": flat.VEC, "TENSOR": tensor}
        special = _specialize("multiply_gap_flat", layout, None, dtype, constants)
        return TailCall(
            layout,
            Launch(special, (layout.n * ceil(layout.c / flat.BP), 1)),
            0,
            0,
            plan.tail_depth(layout, flat),
            True,
        )
    tile = plan.tile(layout, layout.c, dtype.itemsize)
    single = tile.parts == 1
    constants = {"TENSOR": tensor, "SINGLE": single}
    special = _specialize("multiply_gap", layout, tile, dtype, constants)
    tiles = layout.n * tile.blocks(layout.c)
    return TailCall(
        layout,
        Launch(special, (tiles * tile.parts, 1)),
        0 if single else tiles * tile.parts * tile.BP,
        0 if single else tiles,
        plan.tail_depth(layout, tile),
    )


@lru_cache(maxsize=4096)
def prepare_chain(
    problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int, tensor: bool
) -> ChainCall:
    """Prepare the chain on x of `problem.in_shape`; `alignment` is its address modulo 16."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    G, CI, CO = problem.groups, problem.c_in // problem.groups, problem.c_out // problem.groups
    KH, KW = problem.kernel
    seen = problem.swapped() if layout.swapped else problem
    bands = _geometry(seen, layout.swapped)
    output = {"TENSOR": tensor, "BIAS": problem.bias}

    tile = plan.tile(layout, layout.c, dtype.itemsize, seen.kernel)
    band_sums = _specialize("band_sums", layout, tile, dtype, bands, finish=plan.BANDS_FINISH)
    step = plan.contraction(problem)
    samples, tiles, slices = plan.contract_grid(problem, step)
    constants = {
        **output, **_geometry(problem), "BN": step.BN, "BCO": step.BCO, "BK": step.BK, "STEPS": step.STEPS,
        "SLICE": plan.slice_of(problem),
    }  # fmt: skip
    # Numbers of float64 take two registers each.
    blocks = step.BLOCKS // (2 if dtype == torch.float64 else 1)
    contract = _specialize("contract", layout, None, dtype, constants, blocks)

    own = plan.own_tile(seen, layout, dtype.itemsize)
    rows = CI // own.stream.planes * own.parts
    width = pow2_at_least(CO)
    fused = None
    if plan.one_launch(seen, layout, own):
        constants = {**output, **bands, "BCO": width, "PLANES": own.stream.planes}
        special = _specialize("band_sums_contract", layout, own, dtype, constants)
        fused = Launch(special, (problem.n * G * rows, 1))
    planes = problem.n * tile.blocks(layout.c)
    return ChainCall(
        layout,
        Launch(band_sums, (planes * tile.parts, 1)),
        Launch(contract, (samples, tiles * slices)),
        fused,
        problem.n * G * rows * width,
        problem.n * G,
        0 if tile.parts == 1 else planes * tile.parts * tile.BP * KH * KW,
        0 if tile.parts == 1 else planes,
        samples * tiles * slices * step.BN * step.BCO,
        samples * tiles,
        plan.chain_depth(seen, layout, tile, own if fused else None),
    )


@lru_cache(maxsize=4096)
def prepare_backward(problem: Chain, stride: tuple[int, ...], dtype: torch.dtype) -> BackwardCall:
    """Prepare the gradients; dx has `stride` and, fresh from the allocator, an aligned address."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, 0, whole_planes=False)
    KH, KW = problem.kernel
    G, CI, CO = problem.groups, problem.c_in // problem.groups, problem.c_out // problem.groups
    seen = problem.swapped() if layout.swapped else problem
    tile = plan.tile(layout, layout.c, dtype.itemsize, seen.kernel)
    step = plan.EXPAND
    expand = _specialize(
        "expand",
        layout,
        None,
        dtype,
        {"G": G, "CI": CI, "CO": CO, "KK": KH * KW, "BN": step.BN, "BCO": step.BCO, "BK": step.BK},
        step.BLOCKS,
    )
    band_fill = _specialize("band_fill", layout, tile, dtype, _geometry(seen, layout.swapped))
    weight_grad = _specialize(
        "weight_grad", layout, None, dtype, _geometry(problem) | {"BN": plan.WEIGHT_GRAD}
    )
    return BackwardCall(
        layout,
        Launch(expand, (ceil(problem.n / step.BN), G * ceil(CI * KH * KW / step.BK))),
        Launch(band_fill, (problem.n * tile.blocks(layout.c) * tile.parts, 1)),
        Launch(weight_grad, (problem.c_in, ceil(CO * KH * KW / plan.THREADS))),
    )
