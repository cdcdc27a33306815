"""From sizes and strides to CUDA launches: one prepare_* function for each kernel.

A call is prepared once per distinct (sizes, strides, alignment, dtype). Its kind, which is all that is compiled,
depends on the sizes only through the class of its tile. No choice that changes an answer's bits depends on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch

from cupy_impl import constants as c
from cupy_impl import parameters, products, tiles
from cupy_impl.launch import Code, Launch
from reference.problem import Chain, Tail
from runtime.layout import Layout, describe, pow2_at_least, pow2_at_most
from runtime.prepared import Prepared

Stride = tuple[int, ...]


def seen(problem: Chain, layout: Layout) -> Chain:
    """The problem as the kernel sees it: rows and columns exchanged where they are in memory."""
    return problem.swapped() if layout.swapped else problem


def _place(layout: Layout, tile: tiles.Tile) -> tuple[int, ...]:
    return (
        layout.h,
        layout.w,
        *layout.stride,
        tile.rows,
        tile.cols,
        divisor(tile.cols),
        tile.step,
        tile.accesses,
    )


def divisor(d: int) -> int:
    """What kernels.cu's `quotient` multiplies by (below) and how far it shifts (above), to divide by d < 2^31."""
    shift = (d - 1).bit_length()
    return shift << 32 | -(-(1 << 31 + shift) // d)


def _pairs(*counts: int) -> tuple[int, ...]:
    """Each number with its divisor."""
    return tuple(value for count in counts for value in (count, divisor(count)))


def _dealt(tile: tiles.Tile, blocks: int) -> tuple[int, ...]:
    """How planes are dealt out: the last arguments of what reads them."""
    shift = 31 if tile.planes == 1 else tile.lanes.bit_length() - 1
    return tile.lanes, shift, tile.planes, *_pairs(blocks, tile.parts, tile.cuts)


def finish(threads: int, width: int) -> tuple[int, int]:
    """How the last block adds up rows of `width` partial results: 1 << the first threads side by side, and how many
    threads share a column."""
    wide = min(pow2_at_least(width), pow2_at_most(threads))
    return wide.bit_length() - 1, min(c.SHARES, pow2_at_most(threads // wide))


def _form(tile: tiles.Tile) -> str:
    """How planes are read, in words."""
    if tile.axis == 1:
        return f"{tile.planes} neighbouring planes a block, for their elements are adjacent in memory"
    parts = "" if tile.parts == 1 else f", cut in {tile.parts} parts"
    lie = "as a run of memory" if tile.run else "row by row"
    return f"{tile.planes} plane{'s' * (tile.planes > 1)} a block, read {lie} in accesses of {tile.vec} elements{parts}"


@lru_cache(maxsize=4096)
def prepare_multiply_gap(problem: Tail, stride: Stride, dtype: torch.dtype, alignment: int, tensor: bool) -> Prepared:
    """Prepare multiply + average pool of y; `alignment` is the address modulo 16."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=True)
    if flat := tiles.flat(layout, dtype.itemsize):
        code = parameters.code(
            "multiply_gap_flat",
            dtype,
            c.THREADS,
            64,
            {"VEC": flat.vec, "FOLD": flat.fold, "LOADS": flat.loads},
        )
        blocks = ceil(layout.c / flat.planes)
        sizes = (
            layout.c,
            layout.h,
            layout.stride[0],
            flat.planes,
            *_pairs(blocks),
            flat.lanes.bit_length() - 1,
            int(tensor),
        )
        launch = Launch(code, layout.n * blocks, c.THREADS, sizes)
        return Prepared(launch, 0, 0, f"planes of {layout.h} elements lie one behind the other: read as one run")
    tile = tiles.tile(layout, layout.c, dtype.itemsize)
    blocks = tile.blocks(layout.c)
    count = layout.n * blocks
    sizes = (
        layout.c, *_place(layout, tile), *_dealt(tile, blocks), *finish(tile.threads, tile.planes), int(tensor)
    )  # fmt: skip
    launch = Launch(
        parameters.reading("multiply_gap", dtype, tile, parameters.one_band(layout.h)),
        count * tile.parts,
        tile.threads,
        sizes,
    )
    cut = tile.parts > 1
    return Prepared(launch, cut * count * tile.parts * tile.planes, cut * count, _form(tile))


@lru_cache(maxsize=4096)
def prepare_band_sums(problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int) -> Prepared:
    """Prepare the band sums of x; `alignment` is its address modulo 16."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    own = seen(problem, layout)
    tile = tiles.tile(layout, layout.c, dtype.itemsize, own)
    blocks = tile.blocks(layout.c)
    count = layout.n * blocks
    wide = tile.planes * products.sums_of(problem)
    sizes = layout.c, *_place(layout, tile), *_dealt(tile, blocks), *finish(tile.threads, wide)
    code = parameters.reading("band_sums", dtype, tile, parameters.bands(own, layout.swapped))
    launch = Launch(code, count * tile.parts, tile.threads, sizes)
    cut = tile.parts > 1
    partials = cut * count * tile.parts * tile.planes * products.sums_of(problem)
    return Prepared(launch, partials, cut * count, _form(tile))


def _channels(problem: Chain) -> tuple[int, int, int, int]:
    return problem.n, problem.groups, problem.c_in // problem.groups, problem.c_out // problem.groups


@lru_cache(maxsize=4096)
def prepare_contract(problem: Chain, dtype: torch.dtype, tensor: bool) -> Prepared:
    """Prepare the product of band sums and folded weights."""
    shape = products.contraction(problem, dtype.itemsize)
    code = parameters.multiplied("contract", dtype, problem, shape, {})
    return _product(
        code,
        problem,
        shape,
        tensor,
        (problem.h, problem.w),
        products.slice_of(problem),
        "band sums times folded weights",
    )


def _product(
    code: Code,
    problem: Chain,
    shape: products.Product,
    tensor: bool,
    place: tuple[int, ...],
    slice_: int,
    what: str,
) -> Prepared:
    N, G, CI, CO = _channels(problem)
    slices, tiles_, samples = ceil(CI / slice_), ceil(CO / shape.BN), ceil(N / shape.BM)
    sizes = N, G, CI, CO, *place, slice_, *_pairs(slices, tiles_, samples), int(problem.bias), int(tensor)
    why = f"{what}: {shape.BM} samples by {shape.BN} outputs a block, {slices} slices of the input planes"
    return _sliced(code, shape.THREADS, sizes, samples * G * tiles_, slices, shape.BM * shape.BN, why)


def _sliced(
    code: Code, threads: int, sizes: tuple[int, ...], tiles_: int, slices: int, size: int, why: str
) -> Prepared:
    """The launch of a product of `tiles_` tiles of `size` numbers, each the sum of `slices` slices."""
    cut = tiles_ if slices > 1 else 0
    return Prepared(Launch(code, tiles_ * slices, threads, sizes), cut * slices * size, cut, why)


@lru_cache(maxsize=4096)
def prepare_band_sums_contract(
    problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int, tensor: bool
) -> Prepared | None:
    """Prepare the chain in one launch, or say None where two are better."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    if found := products.small_planes(problem, layout, dtype.itemsize):
        shape, planes, registers = found
        code = parameters.multiplied("planes_contract", dtype, problem, shape, vars(planes), registers)
        place = problem.h, problem.w, divisor(problem.w), *stride
        return _product(
            code,
            problem,
            shape,
            tensor,
            place,
            products.slice_of(problem, problem.h * problem.w > c.TINY_PLANE),
            "band sums of small planes times folded weights",
        )
    one = one_launch(problem, layout, dtype.itemsize)
    if one is None:
        return None
    tile, turns, own = one.tile, one.turns, seen(problem, layout)
    N, G, CI, CO = _channels(problem)
    blocks = CI // turns
    shared = ceil((CO * products.taps_of(problem) * dtype.itemsize + c.ACCESS) / c.ACCESS) * c.ACCESS
    cut = *_pairs(blocks, tile.parts, tile.cuts), divisor(G)
    sizes = (
        G, CI, CO, *_place(layout, tile), turns, *cut, *finish(tile.threads, CO), int(problem.bias), int(tensor)
    )  # fmt: skip
    code = parameters.reading(
        "band_sums_contract", dtype, tile, parameters.bands(own, layout.swapped) | parameters.taps(own)
    )
    launch = Launch(code, N * G * blocks * tile.parts, tile.threads, sizes, shared)
    why = f"weights are small beside the planes: each block contracts what it has summed; {_form(tile)}"
    return Prepared(launch, N * G * blocks * tile.parts * CO, N * G, why)


@dataclass(frozen=True)
class OneLaunch:
    """How band_sums_contract reads: one plane at a time, `turns` of them a block."""

    tile: tiles.Tile
    turns: int


def one_launch(problem: Chain, layout: Layout, itemsize: int) -> OneLaunch | None:
    """How each block contracts its own band sums, the last one of a sample finishing, or None if it should not.

    That reads the weights of a plane once per sample and part, so they must be small beside the part
    (a half: L2 gives that away), one thread per output, and leave few rows to the finish. Where neighbouring planes
    share lines, it would waste them.
    """
    own = seen(problem, layout)
    stream, turns = tiles.own_stream(own, layout, itemsize)
    tile = tiles.tile(layout, 1, itemsize, own, stream)
    taps, sums = products.taps_of(problem), products.sums_of(problem)
    _, _, CI, CO = _channels(problem)
    part = min(tile.rows, layout.h) * min(tile.cols, layout.w)
    serves = (
        layout.unit != "planes"
        and CO * taps * 2 <= part
        and CO * taps * itemsize <= c.FUSED_BYTES
        and sums <= c.FUSED_SUMS
        and pow2_at_least(CO) <= pow2_at_most(tile.threads)
        and CI // turns * tile.parts * CO <= c.FUSED_ROWS
    )
    return OneLaunch(tile, turns) if serves else None


@lru_cache(maxsize=4096)
def prepare_expand(problem: Chain, dtype: torch.dtype) -> Prepared:
    """Prepare the gradient of the band sums."""
    shape = products.expansion(problem, dtype.itemsize)
    N, G, CI, CO = _channels(problem)
    tiles_, samples = ceil(CI / shape.PLANES), ceil(N / shape.BM)
    blocks = G * tiles_ * ceil(products.sums_of(problem) / shape.BANDS)
    # The batch is not asked: bits depend on the slices.
    read = shape.PLANES * shape.KS * products.taps_of(problem)
    least = 1 if products.is_large(problem) else ceil(c.SLICE_WEIGHTS / read)
    slice_, slices = products.gradient_slices(CO, shape.KS, blocks, least)
    sizes = N, G, CI, CO, problem.h, problem.w, slice_, slices, divisor(slices), tiles_, samples
    code = parameters.multiplied("expand", dtype, problem, shape, {})
    why = f"gradients times folded weights: {shape.BM} samples a block, {slices} slices of the outputs"
    return _sliced(code, shape.THREADS, sizes, samples * blocks, slices, shape.BM * shape.BN, why)


@lru_cache(maxsize=4096)
def prepare_band_fill(problem: Chain, stride: Stride, dtype: torch.dtype) -> Prepared:
    """Prepare dx, which has `stride` and, fresh from the allocator, an aligned address."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, 0, whole_planes=False)
    own = seen(problem, layout)
    tile = tiles.tile(layout, layout.c, dtype.itemsize, own, runs=False)
    blocks = tile.blocks(layout.c)
    sizes = layout.c, *_place(layout, tile), *_dealt(tile, blocks)
    # It streams nothing: how far ahead makes no other code.
    more = {"KEPT": c.KEPT, "UNROLL": c.AHEAD}
    code = parameters.reading("band_fill", dtype, tile, parameters.bands(own, layout.swapped) | more)
    return Prepared(Launch(code, layout.n * blocks * tile.parts, tile.threads, sizes), 0, 0, _form(tile))


@lru_cache(maxsize=4096)
def prepare_weight_grad(problem: Chain, dtype: torch.dtype) -> Prepared:
    """Prepare the gradients of the weight, from band sums, and of the bias."""
    shape = products.weight_gradient(problem, dtype.itemsize)
    N, G, CI, CO = _channels(problem)
    tiles_, outputs = ceil(CI / shape.PLANES), ceil(CO / shape.BM)
    chunks, cuts = ceil(products.sums_of(problem) / shape.BANDS), ceil(products.taps_of(problem) / c.CUT)
    blocks = G * tiles_ * chunks * outputs * cuts
    slice_, slices = products.gradient_slices(N, shape.KS, blocks, c.GRADIENT_STEPS)
    sizes = N, G, CI, CO, problem.h, problem.w, slice_, slices, divisor(slices), tiles_, outputs, cuts
    code = parameters.multiplied("weight_grad", dtype, problem, shape, {"CUT": c.CUT})
    why = f"gradients times band sums: {shape.BM} outputs a block, {slices} slices of the samples"
    # The gradients of BM biases lie behind those of the weights.
    return _sliced(code, shape.THREADS, sizes, blocks, slices, shape.BM * (shape.BN + 1), why)
