"""Longest chains of additions behind an output, as docs/numerics.md needs them. Only the lab imports this.

How the compiler adds up an axis of a tensor: a thread what it holds of the axis, one after the other, then a
tree over lanes and warps. A product of matrices adds its products one after the other.
"""

from __future__ import annotations

from math import ceil

import torch

from reference.problem import Bands, Chain, Tail
from runtime.layout import describe, pow2_at_least
from triton_impl import constants as c
from triton_impl import tiles
from triton_impl.one_launch import own_fits, planes_fit
from triton_impl.parameters import count_bands, finish_rows, own_finish_rows
from triton_impl.slices import Slices, folds, product_slices, tap_slices


def _sum(length: int) -> int:
    """Additions in a row when an axis of `length`, a power of two, is added up: at most all but one in one
    thread, or a tree, or first the one and then the other."""
    return length - 1 if length <= c.WARP else length // c.WARP + c.WARP.bit_length()


def _line(tile: tiles.Tile) -> int:
    """Additions in a row when a line of a tile is added up: what a thread has of it, then a tree over lanes and
    warps. Or as NumPy does it in Triton's interpreter: eight chains of 16, then a tree."""
    each = max(1, tile.BP * tile.L // (c.WARP * tile.warps))
    chain = tile.L - 1 if tile.L < 8 else min(tile.L, 128) // 8 + 2
    return max(each + _levels(tile.L // each) - 1, chain + _levels(tile.L // 128))


def _levels(count: int) -> int:
    return max(0, count.bit_length() - 1)


def _stream(tile: tiles.Tile, rows: int) -> int:
    """Additions behind a number of `kernels.stream`."""
    return ceil(rows / (tile.UNROLL * tile.step)) * tile.UNROLL


def _add_rows(rows: int, at_once: int) -> int:
    return ceil(rows / at_once) + at_once - 1


def tail_depth(problem: Tail, stride: tuple[int, ...], dtype: torch.dtype, alignment: int) -> int:
    """Longest chain of additions behind one output of multiply_gap."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=True)
    if flat := tiles.flat(layout, dtype.itemsize):
        return _sum(flat.SIZE)
    _, tile = tiles.gap(layout, layout.c, dtype.itemsize)
    finish = _add_rows(tile.parts, finish_rows(tile.BP, tile.warps)) if tile.parts > 1 else 0
    return _stream(tile, tile.rows) + tile.R - 1 + _line(tile) + finish


def chain_depth(problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int) -> int:
    """Longest chain of additions behind one output of the chain: in one launch or in two, whichever is
    longer, so that it is also the depth of band_sums followed by contract."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    seen = problem.swapped() if layout.swapped else problem
    tile = tiles.bands(layout, layout.c, dtype.itemsize, whole=True)
    product = _product_depth(problem, product_slices(problem)) if folds(problem) else _tap_depth(tap_slices(problem))
    depth = _band_depth(seen, tile) + tile.parts + product
    plane = layout.h * layout.w
    if planes_fit(problem):
        # A thread has at most all of a plane.
        own = _product_depth(problem, product_slices(problem))
        depth = max(depth, plane - 1 + own)
    else:
        one = tiles.bands(layout, 1, dtype.itemsize, whole=False)
        if own_fits(problem, layout, one):
            taps = problem.kernel[0] * problem.kernel[1]
            rows = problem.c_in // problem.groups * one.parts
            BCO = pow2_at_least(problem.c_out // problem.groups)
            finish = _add_rows(rows, own_finish_rows(BCO, one))
            depth = max(depth, _band_depth(seen, one) + taps + finish)
    # The bias is one more.
    return depth + 1


def _band_depth(seen: Chain, tile: tiles.Tile) -> int:
    """Longest chain of additions behind one band sum of one part."""
    if tile.WHOLE:
        return _sum(tile.L)
    rims = _rim_rows(seen.distinct(0), seen.h)
    return _stream(tile, tile.rows) + tile.R - 1 + 1 + rims + max(_sum(tile.L), _sum(tile.LR))


def _rim_rows(bands: Bands, size: int) -> int:
    """Rows in some bands and not in all."""
    at = [band for band in bands.at(size) if band[0] < band[1]]
    if not at:
        return 0
    reach = max(hi for _, hi in at) - min(lo for lo, _ in at)
    first, last = bands.before[0], size - bands.after[-1]
    return reach - max(0, last - first)


def _product_depth(problem: Chain, cut: Slices) -> int:
    """Additions in a row when products of folded weights are added up: those of a band's taps, those of a slice, the
    slices. Or, where something is not finite, each tap is multiplied by itself."""
    taps = problem.kernel[0] * problem.kernel[1]
    return max(cut.share * count_bands(problem) + taps, cut.share * taps) + cut.slices


def _tap_depth(cut: Slices) -> int:
    """The same where no taps are folded: a thread's own, its lanes, the slices."""
    return ceil(cut.share / c.TAP_STEP) + c.TAP_STEP - 1 + cut.slices
