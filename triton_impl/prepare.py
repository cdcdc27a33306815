"""From sizes and strides to launches of the Triton kernels: one prepare_* function for each.

A call is prepared once per distinct (sizes, strides, alignment, dtype). Its kind, which is all that is
compiled, depends on the sizes only through the class of its tile. No choice that changes an answer's bits
depends on the batch.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Any

import torch

from reference.problem import Chain, Tail
from runtime.layout import Layout, describe, pow2_at_least
from runtime.prepared import Prepared, accumulator
from triton_impl import constants as c
from triton_impl import kernels, one_launch, parameters, slices, tiles
from triton_impl.launch import INTERPRETED, POINTER, Launch, divisor, specialize

__all__ = ["INTERPRETED"]


def _bands_text(tile: tiles.Tile) -> str:
    if tile.WHOLE:
        return f"planes are small: a program sums the bands of {tile.BP} of them from one load each"
    form = "rows lie one behind the other" if tile.RUN else "rows have gaps between them or are strided"
    return f"{form}: {tile.BP} planes a program, {tile.parts} parts a plane, accesses of {tile.VEC} elements"


@lru_cache(maxsize=4096)
def prepare_multiply_gap(
    problem: Tail, stride: tuple[int, ...], dtype: torch.dtype, alignment: int, tensor: bool
) -> Prepared:
    """Prepare multiply + average pool of y; `alignment` is the address modulo 16."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=True)
    call = {"y": POINTER[dtype], **parameters.output_types(dtype)}
    fixed = {"TENSOR": tensor, "ACC": parameters.accumulator_type(dtype)}
    if flat := tiles.flat(layout, dtype.itemsize):
        blocks = ceil(layout.c / flat.PLANES)
        special, sizes = specialize(
            kernels.multiply_gap_flat,
            call,
            {
                "C": layout.c,
                "plane": layout.h,
                "stride_n": layout.stride[0],
                "blocks": blocks,
                "blocks_by": divisor(blocks),
            },
            fixed | vars(flat),
            {"y": layout.vector * dtype.itemsize, "stride_n": layout.vector, "plane": layout.vector},
            1,
        )
        why = f"planes of {layout.h} elements lie one behind the other: read as one run"
        return Prepared(Launch(special, (layout.n * blocks, 1), sizes), 0, 0, why)
    seen, tile = tiles.gap(layout, layout.c, dtype.itemsize)
    blocks = tile.blocks(layout.c)
    special, sizes = specialize(
        kernels.multiply_gap,
        call,
        {"C": layout.c, "blocks": blocks, "blocks_by": divisor(blocks), **tile.sizes(seen)},
        fixed | parameters.tile_constants(tile, seen) | {"FR": parameters.finish_rows(tile.BP, tile.warps)},
        tiles.divisible(seen, tile, "y", dtype.itemsize) | {"partials": 16},
        tile.warps,
        None if dtype == torch.float64 and tile.registers == 255 else tile.registers,
    )
    programs = layout.n * blocks * tile.parts
    partials, counters = (programs * tile.BP, layout.n * blocks) if tile.parts > 1 else (0, 0)
    why = f"{tile.BP} planes a program, {tile.parts} parts a plane, accesses of {max(tile.VEC, layout.vector)} elements"
    return Prepared(Launch(special, (programs, 1), sizes), partials, counters, why)


@lru_cache(maxsize=4096)
def prepare_band_sums(
    problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int
) -> Prepared:
    """Prepare the band sums of x; `alignment` is its address modulo 16."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    seen = parameters.as_seen(problem, layout)
    tile = tiles.bands(layout, layout.c, dtype.itemsize, whole=True)
    acc = POINTER[accumulator(dtype)]
    blocks, bands = tile.blocks(layout.c), parameters.count_bands(problem)
    width = min(pow2_at_least(tile.BP * bands), c.FINISH_WIDTH)
    special, sizes = specialize(
        kernels.band_sums,
        {"x": POINTER[dtype], "sums": acc, "partials": acc, "counters": "*i32"},
        {"C": layout.c, "blocks": blocks, "blocks_by": divisor(blocks), **tile.sizes(layout)},
        {
            "ACC": parameters.accumulator_type(dtype),
            **parameters.band_tables(seen),
            "SWAPPED": layout.swapped,
            "WHOLE": tile.WHOLE,
            "SPLIT": tile.parts > 1,
            **parameters.tile_constants(tile, layout),
            "RIMS": parameters.rim_rows(seen),
            "LR": tile.LR,
            "WIDTH": width,
            "FR": parameters.finish_rows(width, tile.warps),
        },
        tiles.divisible(layout, tile, "x", dtype.itemsize),
        tile.warps,
        tile.registers,
    )
    programs = layout.n * blocks * tile.parts
    partials, counters = (programs * tile.BP * bands, layout.n * blocks) if tile.parts > 1 else (0, 0)
    return Prepared(Launch(special, (programs, 1), sizes), partials, counters, _bands_text(tile))


@lru_cache(maxsize=4096)
def prepare_contract(problem: Chain, dtype: torch.dtype, tensor: bool) -> Prepared:
    """Prepare the product of band sums and weight."""
    fold = slices.folds(problem)
    cut = slices.product_slices(problem) if fold else slices.tap_slices(problem)
    BN = slices.samples(problem, cut) if fold else c.TAP_SAMPLES
    acc = POINTER[accumulator(dtype)]
    special, sizes = specialize(
        kernels.contract,
        {"sums": acc, **parameters.chain_output_types(dtype)},
        slices.product_sizes(problem, cut, BN),
        {
            "TENSOR": tensor,
            "BIAS": problem.bias,
            "ACC": parameters.accumulator_type(dtype),
            **parameters.product_tables(problem),
            "EMPTY": problem.has_empty_bands,
            "FOLD": fold,
            "KK": pow2_at_least(problem.kernel[0] * problem.kernel[1]),
            "BN": BN,
            "BCO": cut.BCO,
            "BCI": slices.fold_channels(dtype),
            "BK": c.TAP_STEP,
            "STEPS": c.TAP_STEPS,
            "FR": slices.slices_at_once(BN, cut.BCO, c.PRODUCT_WARPS, dtype),
        },
        {"sums": 16, "weight": 16, "partials": 16, "share": 16},
        c.PRODUCT_WARPS,
        c.FOLD_REGISTERS if fold or dtype == torch.float64 else c.TAP_REGISTERS,
        fused=True,
    )
    how = "taps of one band are added, then multiplied" if fold else "each tap is multiplied by itself"
    why = f"{how}: {BN} samples x {cut.BCO} outputs a program, products in {cut.slices} slices"
    return _product(special, sizes, problem, cut, BN, why)


def _product(
    special: Any, sizes: tuple[int, ...], problem: Chain, cut: slices.Slices, BN: int, why: str
) -> Prepared:
    tiles_ = ceil(problem.n / BN) * problem.groups * ceil(problem.c_out // problem.groups / cut.BCO)
    partials, counters = (tiles_ * cut.slices * BN * cut.BCO, tiles_) if cut.slices > 1 else (0, 0)
    return Prepared(Launch(special, (tiles_ * cut.slices, 1), sizes), partials, counters, why)


@lru_cache(maxsize=4096)
def prepare_band_sums_contract(
    problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int, tensor: bool
) -> Prepared | None:
    """Prepare the chain in one launch, or None where two are better."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    if one_launch.planes_fit(problem):
        return _planes_contract(problem, layout, dtype, tensor)
    seen = parameters.as_seen(problem, layout)
    own = tiles.bands(layout, 1, dtype.itemsize, whole=False)
    if not one_launch.own_fits(problem, layout, own):
        return None
    CI, CO, G = problem.c_in // problem.groups, problem.c_out // problem.groups, problem.groups
    BCO = pow2_at_least(CO)
    special, sizes = specialize(
        kernels.band_sums_contract,
        {"x": POINTER[dtype], **parameters.chain_output_types(dtype)},
        {"G": G, "G_by": divisor(G), "CI": CI, "CI_by": divisor(CI), "CO": CO, **own.sizes(layout)},
        {
            "TENSOR": tensor,
            "BIAS": problem.bias,
            "ACC": parameters.accumulator_type(dtype),
            **parameters.band_tables(seen),
            **parameters.tap_tables(seen),
            "SWAPPED": layout.swapped,
            **{name: value for name, value in parameters.tile_constants(own, layout).items() if name != "BP"},
            "RIMS": parameters.rim_rows(seen),
            "LR": own.LR,
            "BCO": BCO,
            "KK": pow2_at_least(problem.kernel[0] * problem.kernel[1]),
            "FR": parameters.own_finish_rows(BCO, own),
        },
        tiles.divisible(layout, own, "x", dtype.itemsize) | {"partials": 16},
        own.warps,
        own.registers,
    )
    rows = CI * own.parts
    why = f"weights are small beside planes: each program contracts its own band sums; {rows} partial outputs are added"
    launch = Launch(special, (problem.n * G * rows, 1), sizes)
    return Prepared(launch, problem.n * G * rows * BCO, problem.n * G, why)


def _planes_contract(problem: Chain, layout: Layout, dtype: torch.dtype, tensor: bool) -> Prepared:
    seen = parameters.as_seen(problem, layout)
    plane = layout.h * layout.w
    VEC = layout.vector if layout.unit == "columns" else 1
    run = layout.unit == "columns" and (layout.h == 1 or layout.stride[2] == layout.w)
    # Planes of 1, 4, 16 and 64 elements, so that there are few kinds.
    positions = max(VEC, 4 ** ceil((pow2_at_least(plane).bit_length() - 1) / 2))
    cut = slices.product_slices(problem)
    BN, warps = slices.samples(problem, cut), c.PRODUCT_WARPS
    stride = dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), layout.stride, strict=True))
    special, sizes = specialize(
        kernels.planes_contract,
        {"x": POINTER[dtype], **parameters.chain_output_types(dtype)},
        slices.product_sizes(problem, cut, BN)
        | stride
        | {"H": layout.h, "W": layout.w, "cols_by": divisor(layout.w)},
        {
            "TENSOR": tensor,
            "BIAS": problem.bias,
            "ACC": parameters.accumulator_type(dtype),
            **parameters.band_tables(seen),
            **parameters.tap_tables(problem),
            "PAIR": parameters.PAIR,
            "EMPTY": problem.has_empty_bands,
            "SWAPPED": layout.swapped,
            "RUN": run,
            "P": positions,
            "VEC": VEC,
            "KK": pow2_at_least(problem.kernel[0] * problem.kernel[1]),
            **tiles.unit_strides(layout),
            "BN": BN,
            "BCO": cut.BCO,
            "BCI": slices.fold_channels(dtype),
            "FR": slices.slices_at_once(BN, cut.BCO, warps, dtype),
        },
        {"x": VEC * dtype.itemsize, "stride_n": VEC, "stride_c": VEC, "W": VEC, "weight": 16, "partials": 16},
        warps,
        fused=True,
    )
    why = f"planes of {plane} elements: band sums stay in the program, which multiplies them for {cut.BCO} outputs"
    return _product(special, sizes, problem, cut, BN, why)


@lru_cache(maxsize=4096)
def prepare_expand(problem: Chain, dtype: torch.dtype) -> Prepared:
    """Prepare the gradient of the band sums."""
    acc = POINTER[accumulator(dtype)]
    bands = parameters.count_bands(problem)
    BN = c.FEW_SAMPLES if problem.n <= c.FEW_SAMPLES else 2 * c.FEW_SAMPLES
    most = max(b - a for a, b in zip(problem.distinct(0).taps, problem.distinct(0).taps[1:]))
    most *= max(b - a for a, b in zip(problem.distinct(1).taps, problem.distinct(1).taps[1:]))
    CI, G = problem.c_in // problem.groups, problem.groups
    n_blocks, blocks = ceil(problem.n / BN), ceil(CI / c.CHANNELS)
    special, sizes = specialize(
        kernels.expand,
        {"grad": acc, "weight": POINTER[dtype], "d": acc, "grad_n": "i64", "grad_c": "i64", "scale": "fp64"},
        {
            "N": problem.n,
            "G": G,
            "CI": CI,
            "CO": problem.c_out // G,
            "H": problem.h,
            "W": problem.w,
            "n_blocks": n_blocks,
            "n_blocks_by": divisor(n_blocks),
            "blocks": blocks,
            "blocks_by": divisor(blocks),
        },
        {
            "ACC": parameters.accumulator_type(dtype),
            **parameters.band_tables(problem),
            **parameters.tap_tables(problem),
            "BANDS_BY": divisor(bands),
            "BN": BN,
            "BCI": c.CHANNELS,
            "BCO": c.CHANNELS,
            "BT": min(c.EXPAND_TAPS, pow2_at_least(most)),
        },
        {"weight": 16},
        c.PRODUCT_WARPS,
        c.EXPAND_REGISTERS,
        fused=True,
    )
    why = f"{BN} samples x {c.CHANNELS} input planes x one band a program"
    return Prepared(Launch(special, (n_blocks * bands * blocks * G, 1), sizes), 0, 0, why)


@lru_cache(maxsize=4096)
def prepare_band_fill(problem: Chain, stride: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    """Prepare the gradient of x from that of its band sums; dx is fresh from the allocator, whose addresses
    are aligned."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, 0, whole_planes=False)
    seen = parameters.as_seen(problem, layout)
    tile = tiles.bands(layout, layout.c, dtype.itemsize, whole=False)
    blocks = tile.blocks(layout.c)
    kept = {
        name: value for name, value in parameters.tile_constants(tile, layout).items() if name != "UNROLL"
    }
    special, sizes = specialize(
        kernels.band_fill,
        {"d": POINTER[accumulator(dtype)], "dx": POINTER[dtype]},
        {"C": layout.c, "blocks": blocks, "blocks_by": divisor(blocks), **tile.sizes(layout)},
        {
            "ACC": parameters.accumulator_type(dtype),
            **parameters.band_tables(seen),
            "SWAPPED": layout.swapped,
            **kept,
        },
        tiles.divisible(layout, tile, "dx", dtype.itemsize),
        tile.warps,
    )
    return Prepared(Launch(special, (layout.n * blocks * tile.parts, 1), sizes), 0, 0, _bands_text(tile))


@lru_cache(maxsize=4096)
def prepare_weight_grad(problem: Chain, dtype: torch.dtype) -> Prepared:
    """Prepare the gradients of the weight and of the bias."""
    acc = POINTER[accumulator(dtype)]
    CI, CO, G = problem.c_in // problem.groups, problem.c_out // problem.groups, problem.groups
    # A number of float64 takes two registers.
    most = c.GRAD_STEP // (accumulator(dtype).itemsize // 4)
    BCO = min(most, max(c.CHANNELS, pow2_at_least(CO)))
    k_blocks, blocks = ceil(CI * problem.kernel[0] * problem.kernel[1] / c.GRAD_STEP), ceil(CO / BCO)
    pointers = {"grad": acc, "sums": acc, "dw": POINTER[dtype], "db": POINTER[dtype]}
    numbers = {"grad_n": "i64", "grad_c": "i64", "scale": "fp64", "bias_scale": "fp64", "wants_bias": "i32"}
    special, sizes = specialize(
        kernels.weight_grad,
        pointers | numbers,
        {
            "N": problem.n,
            "G": G,
            "CI": CI,
            "CO": CO,
            "H": problem.h,
            "W": problem.w,
            "k_blocks": k_blocks,
            "k_blocks_by": divisor(k_blocks),
            "blocks": blocks,
            "blocks_by": divisor(blocks),
        },
        {
            "ACC": parameters.accumulator_type(dtype),
            **parameters.product_tables(problem),
            "BN": c.CHANNELS,
            "BCO": BCO,
            "BK": c.GRAD_STEP,
        },
        {"dw": 16},
        c.PRODUCT_WARPS,
        fused=True,
    )
    why = f"{BCO} outputs x {c.GRAD_STEP} taps a program, samples in steps of {c.CHANNELS}"
    return Prepared(Launch(special, (k_blocks * blocks * G, 1), sizes), 0, 0, why)
