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
from triton_impl.gradients import prepare_band_fill, prepare_expand, prepare_weight_grad
from triton_impl.launch import INTERPRETED, POINTER, Launch, divided, divisor, specialize

__all__ = ["INTERPRETED", "prepare_band_fill", "prepare_expand", "prepare_weight_grad"]


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
                **divided(blocks=blocks),
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
        {"C": layout.c, **divided(blocks=blocks), **tile.sizes(seen)},
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
def prepare_band_sums(problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int) -> Prepared:
    """Prepare the band sums of x; `alignment` is its address modulo 16."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    seen = parameters.as_seen(problem, layout)
    tile = tiles.bands(layout, layout.c, dtype.itemsize, whole=True)
    acc = POINTER[accumulator(dtype)]
    blocks, bands = tile.blocks(layout.c), parameters.count_bands(problem)
    width = min(pow2_at_least(tile.BP * bands), c.FINISH_WIDTH)
    special, sizes = specialize(
        kernels.band_sums,
        {"x": POINTER[dtype], "sums": acc, **parameters.workspace_types(dtype)},
        {"C": layout.c, **divided(blocks=blocks), **tile.sizes(layout)},
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
    return Prepared(Launch(special, (programs, 1), sizes), partials, counters, tiles.described(tile))


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
            "BCI": c.CHANNELS,
            "BK": c.TAP_STEP,
            "STEPS": c.TAP_STEPS,
            "BT": slices.taps_at_once(problem) if fold else 0,
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


def _product(special: Any, sizes: tuple[int, ...], problem: Chain, cut: slices.Slices, BN: int, why: str) -> Prepared:
    tiles_ = ceil(problem.n / BN) * problem.groups * ceil(problem.c_out // problem.groups / cut.BCO)
    return slices.sliced(special, sizes, tiles_, cut.slices, BN * cut.BCO, why)


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
        {**divided(G=G, CI=CI), "CO": CO, **own.sizes(layout)},
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
    # Planes of 1, 4, 16 and 64 elements, so that there are few kinds.
    positions = max(VEC, 4 ** ceil((pow2_at_least(plane).bit_length() - 1) / 2))
    cut = slices.product_slices(problem)
    BN, warps = slices.samples(problem, cut), c.PRODUCT_WARPS
    stride = dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), layout.stride, strict=True))
    special, sizes = specialize(
        kernels.planes_contract,
        {"x": POINTER[dtype], **parameters.chain_output_types(dtype)},
        slices.product_sizes(problem, cut, BN) | stride | {"H": layout.h, "W": layout.w, "cols_by": divisor(layout.w)},
        {
            "TENSOR": tensor,
            "BIAS": problem.bias,
            "ACC": parameters.accumulator_type(dtype),
            **parameters.band_tables(seen),
            **parameters.tap_tables(problem),
            "PAIR": parameters.PAIR,
            "EMPTY": problem.has_empty_bands,
            "SWAPPED": layout.swapped,
            "RUN": tiles.is_run(layout),
            "P": positions,
            "VEC": VEC,
            "KK": pow2_at_least(problem.kernel[0] * problem.kernel[1]),
            **tiles.unit_strides(layout),
            "BN": BN,
            "BCO": cut.BCO,
            "BCI": c.CHANNELS,
            "FR": slices.slices_at_once(BN, cut.BCO, warps, dtype),
        },
        {"x": VEC * dtype.itemsize, "stride_n": VEC, "stride_c": VEC, "W": VEC, "weight": 16, "partials": 16},
        warps,
        fused=True,
    )
    why = f"planes of {plane} elements: band sums stay in the program, which multiplies them for {cut.BCO} outputs"
    return _product(special, sizes, problem, cut, BN, why)
