"""From sizes and strides to Triton launches: specialisation, grids, workspace, limits.

A call is prepared once per distinct (shapes, strides, alignment, dtype); after that it costs the
allocation of its output and its launches. The compiled kernels are launched directly (driver.py): the JIT's
own launch binds and inspects every argument again on each call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction

from reference.problem import Chain
from runtime.layout import Layout, describe, pow2_at_least
from runtime.prepared import BackwardCall, ChainCall, TailCall, accumulator, check_grid
from runtime.slots import Slots
from triton_impl import driver, kernels, plan
from triton_impl.machine_code import machine_code

INTERPRETED = isinstance(kernels.multiply_gap, InterpretedFunction)
"""Whether TRITON_INTERPRET was set when the kernels were decorated: then they run on CPU tensors."""

BATCHES = 1, plan.CONTRACT_MANY.BN * (plan.MANY + 1)
"""Batch sizes that between them need every form of a kernel: only `contract` has more than one."""

_POINTER = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Specialization:
    """One kernel with all that fixes its code."""

    kernel: Any
    types: tuple[str, ...]
    """Triton types of the run-time parameters, in order."""
    constants: tuple[tuple[str, Any], ...]
    """The constexpr parameters."""
    divisible: tuple[tuple[str, int], ...]
    """Parameters known to be multiples of a number, for wide accesses."""
    warps: int
    registers: int | None = None
    """Most registers per thread, or None: what the compiler thinks best."""

    def source(self) -> ASTSource:
        names = self.kernel.arg_names
        signature = dict(zip(names, self.types, strict=False))
        constants = dict(self.constants)
        signature |= dict.fromkeys(constants, "constexpr")
        attrs = {(names.index(name),): [["tt.divisibility", by]] for name, by in self.divisible}
        return ASTSource(self.kernel, signature, constants, attrs)

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compiler options."""
        # Fusing a product into a sum is one rounding less; the default of this flag has changed
        # between Triton releases, the bits of a result should not.
        return {"num_warps": self.warps, "enable_fp_fusion": True, "maxnreg": self.registers}

    def compile(self, target: GPUTarget | None = None) -> Any:
        """The compiled kernel for `target`, or for the current device as Triton sees it."""
        return triton.compile(self.source(), target=target, options=self.options)


class Launch:
    """A prepared launch: which code and how many programs.

    Called as launch(device, stream, *tensors, *numbers), in the order of the kernel's parameters.
    """

    def __init__(self, special: Specialization, grid: tuple[int, int]) -> None:
        check_grid(grid)
        self.special = special
        self.grid = grid
        self._slots = Slots(driver.parameters)
        self._loaded: dict[int, driver.Kernel] = {}

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None:
        if INTERPRETED:
            self.special.kernel[self.grid](*arguments, **dict(self.special.constants))
            return
        if torch._C._cuda_getDevice() != device.index:
            with torch.cuda.device(device):
                self(device, stream, *arguments)
            return
        kernel = self._loaded.get(device.index)
        if kernel is None:
            kernel = self._loaded[device.index] = _compiled(self.special, device.index)
        kernel(self.grid, stream, self._slots.fill(arguments))

    def load(self, device: torch.device) -> None:
        """Compile and load, so that no launch with this code has to."""
        if not INTERPRETED:
            with torch.cuda.device(device):
                _compiled(self.special, device.index)


@cache
def _compiled(special: Specialization, device: int) -> driver.Kernel:
    """The kernel on a device, which has to be the current one. Launches that differ in their grids share it."""
    # Asked of torch: Triton would have a C compiler make a module to ask the driver.
    major, minor = torch.cuda.get_device_capability(device)
    code = machine_code(special.source(), GPUTarget("cuda", 10 * major + minor, 32), special.options)
    return driver.Kernel(device, code.cubin, code.name, code.threads, code.shared)


def _access(layout: Layout, pointer: str, itemsize: int) -> tuple[tuple[str, int], ...]:
    """The divisibility that lets the compiler use accesses of `layout.vector` elements."""
    return (pointer, layout.vector * itemsize), ("stride_n", layout.vector)


def _specialize(
    kernel: Any,
    types: list[str],
    constants: dict[str, Any],
    divisible: tuple[tuple[str, int], ...] = (),
    warps: int = plan.WARPS,
    registers: int | None = None,
) -> Specialization:
    return Specialization(kernel, tuple(types), tuple(constants.items()), divisible, warps, registers)


def _triton_type(dtype: torch.dtype) -> Any:
    return triton.language.float64 if dtype == torch.float64 else triton.language.float32


def _strides(layout: Layout) -> dict[str, int]:
    """The strides inside a sample."""
    _, stride_c, stride_h, stride_w = layout.stride
    return {"STRIDE_C": stride_c, "STRIDE_H": stride_h, "STRIDE_W": stride_w}


def _geometry(problem: Chain) -> dict[str, int]:
    (KH, KW), (SH, SW) = problem.kernel, problem.stride
    (PH, PW), (DH, DW) = problem.padding, problem.dilation
    sizes = {"H": problem.h, "W": problem.w, "H_OUT": problem.out_size(0), "W_OUT": problem.out_size(1)}
    return sizes | {"KH": KH, "KW": KW, "SH": SH, "SW": SW, "PH": PH, "PW": PW, "DH": DH, "DW": DW}


def _channels(problem: Chain) -> dict[str, int]:
    G = problem.groups
    return {"G": G, "CI": problem.c_in // G, "CO": problem.c_out // G}


@lru_cache(maxsize=4096)
def prepare_tail(
    shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, alignment: int, tensor: bool
) -> TailCall:
    """Prepare multiply + average pool of y [n, c, h, w]; `alignment` is the address modulo 16."""
    layout = describe(shape, stride, dtype.itemsize, alignment, whole_planes=True)
    acc = accumulator(dtype)
    if flat := plan.flat(layout, dtype.itemsize):
        return _prepare_flat(layout, flat, dtype, tensor)
    chosen = plan.tile(layout, layout.c, dtype.itemsize)
    pointer, acc_pointer = _POINTER[dtype], _POINTER[acc]
    types = [pointer, pointer, acc_pointer, "*i32", acc_pointer, *["i64"] * 3, "fp64"]
    constants = {
        "C": layout.c,
        "H": layout.h,
        "W": layout.w,
        **_strides(layout),
        "ROWS": chosen.ROWS,
        "TENSOR": tensor,
        "SINGLE": chosen.parts == 1,
        "ACC": _triton_type(acc),
        "BP": chosen.BP,
        "BR": chosen.BR,
        "BC": chosen.BC,
        "UNROLL": chosen.UNROLL,
        "FR": plan.finish_rows(chosen.BP, chosen.warps),
    }
    divisible = _access(layout, "y", dtype.itemsize)
    special = _specialize(kernels.multiply_gap, types, constants, divisible, chosen.warps, chosen.registers)
    tiles = layout.n * chosen.blocks(layout.c)
    single = chosen.parts == 1
    return TailCall(
        layout,
        Launch(special, (tiles * chosen.parts, 1)),
        0 if single else tiles * chosen.parts * chosen.BP,
        0 if single else tiles,
        plan.tail_depth(layout, chosen),
    )


def _prepare_flat(layout: Layout, flat: plan.Flat, dtype: torch.dtype, tensor: bool) -> TailCall:
    acc = accumulator(dtype)
    pointer, acc_pointer = _POINTER[dtype], _POINTER[acc]
    types = [pointer, pointer, acc_pointer, *["i64"] * 3, "fp64"]
    constants = {
        "C": layout.c,
        "PLANE": layout.h,
        "TENSOR": tensor,
        "ACC": _triton_type(acc),
        "GROUP": flat.GROUP,
        "GROUPS": flat.GROUPS,
        "PIECES": flat.PIECES,
        "VEC": flat.VEC,
    }
    divisible = ("y", flat.VEC * dtype.itemsize), ("stride_n", flat.VEC)
    special = _specialize(kernels.multiply_gap_flat, types, constants, divisible, flat.warps)
    return TailCall(
        layout,
        Launch(special, (layout.n * ceil(layout.c / (flat.GROUP * flat.GROUPS)), 1)),
        0,
        0,
        plan.tail_depth(layout, flat),
        True,
    )


@lru_cache(maxsize=4096)
def prepare_chain(
    problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int, tensor: bool
) -> ChainCall:
    """Prepare the chain on x of `problem.in_shape`; `alignment` is its address modulo 16."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    acc = accumulator(dtype)
    ACC, pointer, acc_pointer = _triton_type(acc), _POINTER[dtype], _POINTER[acc]
    KH, KW = problem.kernel
    G, CI, CO = problem.groups, problem.c_in // problem.groups, problem.c_out // problem.groups
    channels = _channels(problem)
    seen = problem.swapped() if layout.swapped else problem
    RIMS, MORE = plan.rims_at_once(seen)
    bands = {
        **_strides(layout), **_geometry(seen), "SWAPPED": layout.swapped, "RIMS": RIMS, "MORE": MORE,
    }  # fmt: skip
    output = {"TENSOR": tensor, "BIAS": problem.bias, "EMPTY": problem.has_empty_bands, "ACC": ACC}
    divisible = _access(layout, "x", dtype.itemsize)

    tile = plan.tile(layout, layout.c, dtype.itemsize, seen.kernel)
    many = min(pow2_at_least(tile.BP * KH * KW), plan.FINISH_WIDTH)
    band_sums = _specialize(
        kernels.band_sums,
        [pointer, acc_pointer, acc_pointer, "*i32", "i64"],
        {
            "G": G, "CI": CI, "ROWS": tile.ROWS, "ACC": ACC, **bands, "SINGLE": tile.parts == 1,
            "BP": tile.BP, "BR": tile.BR, "BC": tile.BC, "UNROLL": tile.UNROLL, "WIDTH": many,
            "FR": plan.finish_rows(many, tile.warps),
        },
        divisible,
        tile.warps,
        tile.registers,
    )  # fmt: skip
    step = plan.contraction(problem)
    samples, tiles, slices = plan.contract_grid(problem, step)
    contract = _specialize(
        kernels.contract,
        [
            acc_pointer, *[pointer] * 3, acc_pointer, "*i32", acc_pointer, "i64", "i64", "fp64", "fp64", "i32",
        ],
        {
            **channels, **output, **_geometry(problem), "BN": step.BN, "BCO": step.BCO,
            "TILES": step.TILES, "BK": step.BK, "STEPS": step.STEPS, "SLICE": plan.slice_of(problem),
            "WIDTH": plan.CONTRACT_WIDTH, "FR": plan.finish_rows(plan.CONTRACT_WIDTH),
        },
        (("sums", 16), ("weight", 16)),
        # Not in float64, whose numbers take two each.
        registers=None if dtype == torch.float64 else step.registers,
    )  # fmt: skip

    own = plan.tile(layout, 1, dtype.itemsize, seen.kernel)
    rows = CI * own.parts
    width = pow2_at_least(CO)
    fused = None
    if plan.one_launch(seen, layout, own):
        special = _specialize(
            kernels.band_sums_contract,
            [*[pointer] * 4, acc_pointer, "*i32", acc_pointer, *["i64"] * 3, "fp64", "fp64"],
            {
                **channels, "ROWS": own.ROWS, **output, **bands, "BR": own.BR, "BC": own.BC,
                "UNROLL": own.UNROLL,
                "BCO": width, "FR": plan.chain_finish_rows(seen, own),
            },
            divisible,
            own.warps,
            own.registers,
        )  # fmt: skip
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
        samples * tiles * slices * step.BN * step.TILES * step.BCO,
        samples * tiles,
        plan.chain_depth(seen, tile, own if fused else None),
    )


@lru_cache(maxsize=4096)
def prepare_backward(problem: Chain, stride: tuple[int, ...], dtype: torch.dtype) -> BackwardCall:
    """Prepare the gradients; dx has `stride` and, fresh from the allocator, an aligned address."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, 0, whole_planes=False)
    acc = accumulator(dtype)
    ACC, pointer, acc_pointer = _triton_type(acc), _POINTER[dtype], _POINTER[acc]
    KH, KW = problem.kernel
    G, CI, CO = problem.groups, problem.c_in // problem.groups, problem.c_out // problem.groups
    seen = problem.swapped() if layout.swapped else problem
    tile = plan.tile(layout, layout.c, dtype.itemsize, seen.kernel)
    step, grads = plan.EXPAND, plan.WEIGHT_GRAD
    expand = _specialize(
        kernels.expand,
        [acc_pointer, pointer, acc_pointer, "i64", "i64", "fp64", "i32"],
        {**_channels(problem), "ACC": ACC, "KK": KH * KW, "BN": step.BN, "BCO": step.BCO, "BK": step.BK},
    )
    band_fill = _specialize(
        kernels.band_fill,
        [acc_pointer, pointer, "i64"],
        {
            "G": G, "CI": CI, "ROWS": tile.ROWS, "ACC": ACC, **_strides(layout), **_geometry(seen),
            "SWAPPED": layout.swapped, "KHP": pow2_at_least(seen.kernel[0]), "BP": tile.BP, "BR": tile.BR,
            "BC": tile.BC,
        },
        _access(layout, "dx", dtype.itemsize),
        tile.warps,
    )  # fmt: skip
    KKP = pow2_at_least(KH * KW)
    BCO = max(1, min(grads.BCO, grads.BK // KKP))
    weight_grad = _specialize(
        kernels.weight_grad,
        [acc_pointer, acc_pointer, pointer, "i64", "i64", "fp64", "i32"],
        {
            **_channels(problem), "EMPTY": problem.has_empty_bands, "ACC": ACC, "KKP": KKP, **_geometry(problem),
            "BN": grads.BN, "BCO": BCO,
        },
    )  # fmt: skip
    return BackwardCall(
        layout,
        Launch(expand, (ceil(problem.n / step.BN), G * ceil(CI * KH * KW / step.BK))),
        Launch(band_fill, (problem.n * tile.blocks(layout.c) * tile.parts, 1)),
        Launch(weight_grad, (problem.c_in, ceil(CO / BCO))),
    )
