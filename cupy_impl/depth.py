"""Longest chain of additions behind one output, which the error budget is made of. Only the lab asks for it."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import torch

from cupy_impl import constants as c
from cupy_impl import prepare, products, tiles
from reference.problem import Chain, Tail
from runtime.layout import Layout, describe, pow2_at_least

Stride = tuple[int, ...]


def tail_depth(problem: Tail, stride: Stride, dtype: torch.dtype, alignment: int) -> int:
    """Of multiply_gap or multiply_gap_flat, whichever serves y."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=True)
    if flat := tiles.flat(layout, dtype.itemsize):
        return flat.fold - 1 + ceil(layout.h // flat.fold / flat.lanes) + _halvings(flat.lanes)
    tile = tiles.tile(layout, layout.c, dtype.itemsize)
    return _sum(tile, layout, (0, 0), (0, 0)) + tile.parts


def chain_depth(problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int) -> int:
    """Of band_sums and contract, or of the kernel that does both, whichever is longer."""
    layout = describe(problem.in_shape, stride, dtype.itemsize, alignment, whole_planes=False)
    tile = tiles.tile(layout, layout.c, dtype.itemsize, prepare.seen(problem, layout))
    shape = products.contraction(problem, dtype.itemsize)
    depth = _bands(tile, problem, layout) + tile.parts + _products(problem, shape, products.slice_of(problem))
    if found := products.small_planes(problem, layout, dtype.itemsize):
        shape, planes, _ = found
        slice_ = products.slice_of(problem, problem.h * problem.w > c.TINY_PLANE)
        own = planes.ACROSS + planes.LOADS + _halvings(planes.SHARE)
        depth = max(depth, own + _products(problem, shape, slice_))
    elif (one := prepare.one_launch(problem, layout, dtype.itemsize)) is not None:
        outputs = problem.c_out // problem.groups
        count = prepare.finish(one.tile.threads, outputs)[1]
        rows = problem.c_in // problem.groups // one.turns * one.tile.parts
        own = one.turns * ceil(products.sums_of(problem) / count) + count + ceil(rows / count) + count
        depth = max(depth, _bands(one.tile, problem, layout) + _weights(problem) + own)
    # The bias is one more.
    return depth + 1


def _halvings(count: int) -> int:
    return pow2_at_least(count).bit_length() - 1


def _products(problem: Chain, shape: products.Product, slice_: int) -> int:
    """Of the products of one output: the weights of a band, every warp's own, the warps, the slices."""
    warps = shape.THREADS // c.WARP
    chunks = ceil(products.sums_of(problem) / shape.BANDS)
    steps = ceil(slice_ / shape.PLANES) * chunks
    slices = ceil(problem.c_in // problem.groups / slice_)
    return _weights(problem) + steps * ceil(shape.KS / warps) + _halvings(warps) + slices


def _weights(problem: Chain) -> int:
    """Additions of the weights of one band: by one thread, or by the lanes that share the taps of a large kernel."""
    rows, columns = (max(b - a for a, b in pairwise(problem.distinct(axis).taps)) for axis in (0, 1))
    taps = rows * columns
    lanes = products.lanes_of(problem)
    return max(taps, ceil(taps / lanes) + c.ACCESS + _halvings(lanes)) if lanes > 1 else taps


def _bands(tile: tiles.Tile, problem: Chain, layout: Layout) -> int:
    seen = prepare.seen(problem, layout)
    before, after = zip(*((b.before[0], b.after[-1]) for b in (seen.distinct(0), seen.distinct(1))), strict=True)
    return _sum(tile, layout, (before[0] + after[0], before[1] + after[1]), (layout.h, layout.w))


def _sum(tile: tiles.Tile, layout: Layout, outside: tuple[int, int], size: tuple[int, int]) -> int:
    """Of one sum of one plane: a thread's stream and rims, the lanes of a warp, the warps. outside: rows and
    columns that are not in the core; where the core is empty, all are rims."""
    rows, cols = min(tile.rows, layout.h), min(tile.cols, layout.w)
    empty = any(out > 0 and out >= full for out, full in zip(outside, size, strict=True))
    rims = cols * (rows if empty else min(rows, outside[0]))
    if tile.axis == 1:
        rims += 0 if empty else rows * min(cols, outside[1])
        stream = ceil(rows * cols / tile.lanes)
        near = c.WARP // (tile.planes // tile.vec)
        groups = ceil(tile.threads / c.WARP)
    else:
        # An element before the first access and a part of one after the last; then those of an access.
        stream = ceil(rows * tile.cols / tile.vec / tile.accesses) + 2 + tile.vec
        near = min(tile.lanes, c.WARP)
        groups = tile.lanes // near
    return stream + ceil(rims / tile.lanes) + _halvings(near) + groups
