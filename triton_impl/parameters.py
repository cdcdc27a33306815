"""What the kernels are given besides sizes: types of pointers and numbers, bands, taps, and constants of a tile."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton

from reference.problem import Bands, Chain
from runtime.layout import Layout, pow2_at_least
from runtime.prepared import accumulator
from triton_impl import constants as c
from triton_impl import tiles
from triton_impl.launch import POINTER

PAIR = 2 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 1
"""Neighbours that kernels call adjacent though they need not be (`kernels.follow`). Triton before 3.9 gives a tie
between axes to the first, and this breaks it. Triton 3.9 gives it to the last, and works out the second address from
the first, so that it must not be told."""

NEVER = 2**62
"""In place of a larger number of rows or columns that a band leaves out: no plane has 2^62 of them."""


def accumulator_type(dtype: torch.dtype) -> Any:
    """The accumulator's dtype, as Triton names it."""
    return triton.language.float64 if dtype == torch.float64 else triton.language.float32


def band_tables(problem: Chain) -> dict[str, Any]:
    """The distinct bands of both axes, as constants of a kernel."""
    return _tables(problem.distinct(0), problem.distinct(1))


@lru_cache(maxsize=512)
def _tables(rows: Bands, columns: Bands) -> dict[str, Any]:
    """Kept, for a layer has the same bands at every size."""
    found = {}
    for letter, bands in (("H", rows), ("W", columns)):
        found["BEFORE_" + letter] = tuple(min(before, NEVER) for before in bands.before)
        found["AFTER_" + letter] = tuple(min(after, NEVER) for after in bands.after)
    return found


def tap_tables(problem: Chain) -> dict[str, Any]:
    """Sizes of the kernel, and which of its rows and columns have which band."""
    return {
        "KH": problem.kernel[0],
        "KW": problem.kernel[1],
        "TAPS_H": problem.distinct(0).taps,
        "TAPS_W": problem.distinct(1).taps,
    }


def product_tables(problem: Chain) -> dict[str, Any]:
    """Bands, taps, and PAIR: what a product of band sums takes."""
    return {**band_tables(problem), **tap_tables(problem), "PAIR": PAIR}


def count_bands(problem: Chain) -> int:
    """Pairs of a row band and a column band."""
    return len(problem.distinct(0)) * len(problem.distinct(1))


def workspace_types(dtype: torch.dtype) -> dict[str, str]:
    """Types of the memory that a launch works in."""
    return {"partials": POINTER[accumulator(dtype)], "counters": "*i32"}


def output_types(dtype: torch.dtype) -> dict[str, str]:
    """Types of what follows the first pointer of a kernel that makes an output."""
    acc = POINTER[accumulator(dtype)]
    return {
        "out": POINTER[dtype],
        **workspace_types(dtype),
        "multiplier": acc,
        "mult_n": "i64",
        "mult_c": "i64",
        "scale": "fp64",
    }


def chain_output_types(dtype: torch.dtype) -> dict[str, str]:
    """The same of a chain, with weight and bias before it."""
    return {"weight": POINTER[dtype], "bias": POINTER[dtype], **output_types(dtype), "bias_scale": "fp64"}


def as_seen(problem: Chain, layout: Layout) -> Chain:
    """The problem as the kernel sees it: rows and columns exchanged where they are in memory."""
    return problem.swapped() if layout.swapped else problem


def tile_constants(tile: tiles.Tile, layout: Layout) -> dict[str, Any]:
    """What of a tile the code depends on."""
    return {
        "RUN": tile.RUN,
        "ALONG": layout.unit != "planes",
        "BP": tile.BP,
        "R": tile.R,
        "L": tile.L,
        "VEC": tile.VEC,
        "PAIR": PAIR,
        "UNROLL": tile.UNROLL,
        **tiles.unit_strides(layout),
    }


def finish_rows(width: int, warps: int) -> int:
    """Rows of partial outputs, each `width` wide, that the last program loads at a time."""
    return max(1, min(64, c.FINISH * c.WARP * warps // pow2_at_least(width)))


def own_finish_rows(BCO: int, own: tiles.Tile) -> int:
    """Rows of partial outputs that the last program of band_sums_contract loads at a time: one or two warps
    have the registers for twice as many."""
    return finish_rows(BCO // 2 if own.warps <= 2 else BCO, own.warps)


def rim_rows(seen: Chain) -> int:
    """Rim rows that are asked for before the stream, at most RIM_ROWS."""
    bands = seen.distinct(0)
    rims = bands.before[0] - bands.before[-1] + bands.after[-1] - bands.after[0]
    return min(c.RIM_ROWS, pow2_at_least(min(rims, c.RIM_ROWS)))
