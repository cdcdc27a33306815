"""How a block multiplies: its shape, from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd

import torch

from cupy_impl import constants as c
from reference.problem import Chain
from runtime.layout import Layout, pow2_at_least, pow2_at_most


@dataclass(frozen=True)
class Product:
    """The numbers that kernels.cu explains under "Products"; all are fixed in the code."""

    THREADS: int
    BM: int
    BN: int
    PN: int
    KS: int
    PLANES: int
    OUTS: int
    BANDS: int
    LANES: int


def sums_of(problem: Chain) -> int:
    """Band sums of a plane."""
    return len(problem.distinct(0)) * len(problem.distinct(1))


def taps_of(problem: Chain) -> int:
    """Taps of a pair of planes."""
    return problem.kernel[0] * problem.kernel[1]


def is_large(problem: Chain) -> bool:
    """Whether the taps of a pair of planes are more than a thread holds."""
    return taps_of(problem) > c.HELD_TAPS


def _rows(count: int, itemsize: int, blocks: int) -> tuple[int, int]:
    """Rows of a block (samples, or outputs) and columns of a thread: few where there are few rows, or would be few
    blocks (`blocks` for each block of rows). It changes no bit."""
    many, few = (c.MANY_ROWS, c.FEW_ROWS) if itemsize < 8 else (c.MANY_ROWS // 2, c.FEW_ROWS // 2)
    if count > few and ceil(count / many) * blocks >= c.FILL:
        return many, 8
    return few, 4 if itemsize < 8 else 8


def lanes_of(problem: Chain) -> int:
    """Threads that share the taps of one band: each has a few, and asks for all of them at once."""
    each = taps_of(problem) // sums_of(problem) // c.LANE_TAPS
    return min(c.WARP, pow2_at_most(each)) if is_large(problem) else 1


def _held_bytes(taps: int, itemsize: int) -> int:
    """Bytes of a register that each weight takes on its way: four, of a kernel that no wide access brings."""
    return itemsize if gcd(taps, c.ACCESS // itemsize) > 1 else max(4, itemsize)


def contraction(problem: Chain, itemsize: int) -> Product:
    """For `contract`: samples by outputs."""
    sums, taps = sums_of(problem), taps_of(problem)
    if is_large(problem):
        bands, threads = min(sums, c.BANDS), 2 * c.PRODUCT_THREADS
        # Where bands are few, several planes a step, so that every warp has something to multiply.
        planes = pow2_at_most(max(1, min(threads // c.WARP // bands, slice_of(problem))))
        return Product(threads, 32, 8, 2, planes * bands, planes, 8, bands, lanes_of(problem))
    BN = 32
    held = c.HELD_REGISTERS * c.PRODUCT_THREADS * 4 // (BN * taps * _held_bytes(taps, itemsize))
    held = min(held, c.HELD_KERNELS * c.PRODUCT_THREADS // BN)
    if held > 4:
        held &= -4  # whole rounds of threads fold them
    planes = max(1, min(c.PRODUCT_STEP // (itemsize // 4 or 1) // sums, held))
    CI, CO = problem.c_in // problem.groups, problem.c_out // problem.groups
    blocks = problem.groups * ceil(CO / BN) * ceil(CI / slice_of(problem))
    samples, columns = _rows(problem.n, itemsize, blocks)
    return Product(c.PRODUCT_THREADS, samples, BN, columns, planes * sums, planes, BN, sums, 1)


def least_registers(problem: Chain, product: Product, dtype: torch.dtype) -> int:
    """Registers that a thread must have for the weights on their way, where that is more than its kernel gives it."""
    weights = product.PLANES * product.OUTS * taps_of(problem) // product.THREADS
    return c.PLANES_REGISTERS if dtype == torch.bfloat16 and weights >= c.WIDENED else 0


def slice_of(problem: Chain, planes: bool = False) -> int:
    """Input planes whose products one block adds up (planes: of planes_contract). No number of samples is asked:
    bits depend on it."""
    count = problem.c_in // problem.groups
    if is_large(problem):
        return ceil(count / c.LARGE_SLICES)
    least = c.FEW_PLANES_SLICE if count <= c.FEW_PLANES else c.MIN_SLICE
    if planes:
        return max(ceil(count / c.PLANES_SLICES), min(count, c.MIN_PLANES_SLICE))
    return max(ceil(count / c.SLICES), min(count, least))


def gradient_slices(count: int, step: int, blocks: int, least: int) -> tuple[int, int]:
    """Terms of a slice, in whole steps, and slices of sums of `count` terms, for gradients: as many as fill a card
    where `blocks` are too few, of `least` steps or more."""
    steps = max(1, ceil(count / step))
    share = ceil(steps / max(1, min(steps // least, c.GRADIENT_SLICES, c.GRADIENT_BLOCKS // blocks)))
    return share * step, ceil(steps / share)


def expansion(problem: Chain, itemsize: int) -> Product:
    """For `expand`: samples by pairs of an input plane and a band."""
    bands = min(sums_of(problem), c.BANDS)
    planes = max(1, c.BANDS // sums_of(problem))
    samples, columns = _rows(problem.n, itemsize, problem.groups * ceil(problem.c_in // problem.groups / planes))
    step = 8 if is_large(problem) or planes * 16 * taps_of(problem) * itemsize > 160 * c.PRODUCT_THREADS else 16
    return Product(c.PRODUCT_THREADS, samples, 32, columns, step, planes, step, bands, lanes_of(problem))


def weight_gradient(problem: Chain, itemsize: int) -> Product:
    """For `weight_grad`: outputs by pairs of an input plane and a band."""
    bands = min(sums_of(problem), c.BANDS)
    planes = max(1, min(c.BANDS // sums_of(problem), 2 * c.CUT // taps_of(problem)))
    outputs, columns = _rows(
        problem.c_out // problem.groups,
        itemsize,
        ceil(problem.c_in // problem.groups / planes) * problem.groups,
    )
    return Product(c.PRODUCT_THREADS, outputs, 32, columns, 16, planes, 0, bands, 1)


@dataclass(frozen=True)
class Planes:
    """How `planes_contract` reads small planes: SHARE threads a plane, each LOADS accesses of ACROSS elements."""

    ACROSS: int
    SHARE: int
    LOADS: int


def small_planes(problem: Chain, layout: Layout, itemsize: int) -> tuple[Product, Planes, int] | None:
    """For `planes_contract`, with the registers that a thread may have, or None where band sums and contract are
    better."""
    area, sums, taps = problem.h * problem.w, sums_of(problem), taps_of(problem)
    outputs = problem.c_out // problem.groups
    if area > c.SMALL_PLANE or is_large(problem) or sums > c.FEW_SUMS or (layout.unit == "planes" and area > 1):
        return None
    BN = 64 if 32 < outputs <= 64 else 32
    if area > c.TINY_PLANE and ceil(outputs / BN) > c.PLANE_TILES:
        return None
    CI = problem.c_in // problem.groups
    blocks = problem.groups * ceil(outputs / BN) * ceil(CI / slice_of(problem, area > c.TINY_PLANE))
    BM, columns = c.PLANES_ROWS, BN // 8
    least = most = BM
    if BN == 32 and area <= c.TINY_PLANE:
        BM, columns = _rows(problem.n, itemsize, blocks)
        least, most = c.FEW_ROWS, c.MANY_ROWS
    across = layout.vector if layout.unit == "columns" and not layout.swapped else 1
    share = pow2_at_least(ceil(area / across / 4))
    loads = ceil(area / across / share)
    threads = 2 * c.PRODUCT_THREADS
    if share > c.WARP or itemsize == 8:
        return None
    best = held = 0
    planes = 1
    each = _held_bytes(taps, itemsize)
    room = (c.WIDE_PLANES_HELD if BN == 64 else c.PLANES_HELD) - most * BN / c.WARP
    # The order of additions depends on how many planes a step takes: as many as any number of rows has threads and room
    # for, so that bits do not depend on the batch.
    while planes <= 32:
        mine = most * planes * share / threads
        registers = mine * loads * ceil(across * itemsize / 4) + planes * BN * taps * each / 4 / threads
        shared = least * planes * share >= threads and planes * sums <= 72
        if shared and (registers <= room or not best):
            best, held = planes, registers
        planes *= 2
    if not best:
        return None
    product = Product(threads, BM, BN, columns, best * sums, best, BN, sums, 1)
    # Half formats are widened on the way, and spill with few registers.
    allowed = c.PRODUCT_REGISTERS if held <= c.HELD_FEW and itemsize == 4 else c.PLANES_REGISTERS
    return product, Planes(across, share, loads), allowed
