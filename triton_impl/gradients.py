"""Kinds of call of the gradients: for each kernel what fixes its code, how many programs, and which sizes they take."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import torch

from reference.problem import Chain
from runtime.layout import describe, pow2_at_least
from runtime.prepared import Prepared, accumulator
from triton_impl import constants as c
from triton_impl import kernels, parameters, slices, tiles
from triton_impl.launch import POINTER, Launch, divided, specialize


def _sliced(count: int, programs: int, least: int) -> dict[str, int]:
    """Sizes of a sum of `count` terms in slices, by parameter; as in slices.gradient_slices."""
    share, number = slices.gradient_slices(count, programs, least)
    return {"share": share, **divided(slices=number)}


@lru_cache(maxsize=4096)
def prepare_expand(problem: Chain, dtype: torch.dtype) -> Prepared:
    """Prepare the gradient of the band sums."""
    acc = POINTER[accumulator(dtype)]
    CI, CO, G = problem.c_in // problem.groups, problem.c_out // problem.groups, problem.groups
    taps, bands = problem.kernel[0] * problem.kernel[1], parameters.count_bands(problem)
    KK = pow2_at_least(taps)
    # Whole kernels are held where wide accesses bring them.
    BT = slices.taps_at_once(problem, c.FOLD_TAPS if taps == KK else 0)
    BB = 1 if BT else pow2_at_least(bands)
    # A number of float64 takes two registers.
    double = accumulator(dtype).itemsize // 4
    columns, weights = c.EXPAND_COLUMNS // double, c.EXPAND_WEIGHTS // double
    BCI = c.CHANNELS if BT else max(1, min(columns // BB, weights // (c.CHANNELS * KK)))
    BN = c.FEW_SAMPLES if problem.n <= c.FEW_SAMPLES else c.MANY_SAMPLES // double
    n_blocks, blocks = ceil(problem.n / BN), ceil(CI / BCI) * (bands if BT else 1)
    # The batch is not asked: bits depend on the slices.
    read = BCI * c.CHANNELS * taps // (bands if BT else 1)
    cut = _sliced(CO, blocks * G, ceil(c.SLICE_WEIGHTS / read))
    special, sizes = specialize(
        kernels.expand,
        {
            "grad": acc,
            "weight": POINTER[dtype],
            "d": acc,
            **parameters.workspace_types(dtype),
            "grad_n": "i64",
            "grad_c": "i64",
            "scale": "fp64",
        },
        {
            **slices.extents(problem),
            **cut,
            **divided(n_blocks=n_blocks, blocks=blocks),
        },
        {
            "ACC": parameters.accumulator_type(dtype),
            **parameters.product_tables(problem),
            "KK": KK,
            "BN": BN,
            "BCI": BCI,
            "BB": BB,
            "BCO": c.CHANNELS,
            "BT": BT,
            "FR": slices.slices_at_once(BN, BCI * BB, c.PRODUCT_WARPS, dtype),
        },
        {"weight": 16, "partials": 16},
        c.PRODUCT_WARPS,
        c.EXPAND_REGISTERS,
        fused=True,
    )
    what = "one band of" if BT else "all bands of"
    why = f"{BN} samples x {what} {BCI} input planes a program, {cut['slices']} slices of the outputs"
    return slices.sliced(special, sizes, n_blocks * blocks * G, cut["slices"], BN * BCI * BB, why)


@lru_cache(maxsize=4096)
def prepare_band_fill(problem: Chain, stride: tuple[int, ...], dtype: torch.dtype) -> Prepared:
    """Prepare the gradient of x from that of its band sums; dx is fresh from the allocator, whose addresses
    are aligned."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, 0, whole_planes=False)
    seen = parameters.as_seen(problem, layout)
    tile = tiles.bands(layout, layout.c, dtype.itemsize, whole=True)
    blocks = tile.blocks(layout.c)
    kept = {name: value for name, value in parameters.tile_constants(tile, layout).items() if name != "UNROLL"}
    special, sizes = specialize(
        kernels.band_fill,
        {"d": POINTER[accumulator(dtype)], "dx": POINTER[dtype]},
        {"C": layout.c, **divided(blocks=blocks), **tile.sizes(layout)},
        {
            "ACC": parameters.accumulator_type(dtype),
            **parameters.band_tables(seen),
            "SWAPPED": layout.swapped,
            "WHOLE": tile.WHOLE,
            **kept,
        },
        tiles.divisible(layout, tile, "dx", dtype.itemsize),
        tile.warps,
    )
    return Prepared(Launch(special, (layout.n * blocks * tile.parts, 1), sizes), 0, 0, tiles.described(tile))


@lru_cache(maxsize=4096)
def prepare_weight_grad(problem: Chain, dtype: torch.dtype) -> Prepared:
    """Prepare the gradients of the weight and of the bias."""
    acc = POINTER[accumulator(dtype)]
    CI, CO, G = problem.c_in // problem.groups, problem.c_out // problem.groups, problem.groups
    # A number of float64 takes two registers.
    most = c.GRAD_STEP // (accumulator(dtype).itemsize // 4)
    BCO = min(most, max(c.CHANNELS, pow2_at_least(CO)))
    # One column more than there are taps: that of the bias.
    k_blocks, blocks = ceil((CI * problem.kernel[0] * problem.kernel[1] + 1) / c.GRAD_STEP), ceil(CO / BCO)
    cut = _sliced(problem.n, k_blocks * blocks * G, c.GRADIENT_STEPS)
    pointers = {
        "grad": acc,
        "sums": acc,
        "dw": POINTER[dtype],
        "db": POINTER[dtype],
        **parameters.workspace_types(dtype),
    }
    numbers = {"grad_n": "i64", "grad_c": "i64", "scale": "fp64", "bias_scale": "fp64", "wants_bias": "i32"}
    special, sizes = specialize(
        kernels.weight_grad,
        pointers | numbers,
        {
            **slices.extents(problem),
            **cut,
            **divided(k_blocks=k_blocks, blocks=blocks),
        },
        {
            "ACC": parameters.accumulator_type(dtype),
            **parameters.product_tables(problem),
            "BN": c.CHANNELS,
            "BCO": BCO,
            "BK": c.GRAD_STEP,
            "FR": slices.slices_at_once(BCO, c.GRAD_STEP, c.PRODUCT_WARPS, dtype),
        },
        {"dw": 16, "partials": 16},
        c.PRODUCT_WARPS,
        fused=True,
    )
    why = f"{BCO} outputs x {c.GRAD_STEP} taps a program, {cut['slices']} slices of the samples"
    return slices.sliced(special, sizes, k_blocks * blocks * G, cut["slices"], BCO * c.GRAD_STEP, why)
