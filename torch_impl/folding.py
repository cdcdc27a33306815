"""Between taps and bands: taps of one band share its sum, so their weights may be added and their values copied.

Rows first, then columns, in the order of the kernel indices. *Live* is a band that holds anything, and a tap that has
such a band: only these are in what these functions return, for a sum over nothing must never meet a weight (0 * Inf is
NaN). Everything is picked by slices: a list of indices would be copied to the device, which a CUDA graph forbids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from reference.problem import Chain

MOST_ELEMENTS, MOST_TAPS = 256, 64
"""Elements of a plane, and taps, up to which bands are added up by a product with a matrix of zeros and ones. That is
one call for all bands, but its chain of additions is as long as the plane, where torch's sum makes a tree."""


@lru_cache(maxsize=4096)
def live(problem: Chain, axis: int) -> tuple[int, ...]:
    """The distinct bands of an axis that hold anything."""
    size = (problem.h, problem.w)[axis]
    return tuple(b for b, (lo, hi) in enumerate(problem.distinct(axis).at(size)) if lo < hi)


def live_kernel(problem: Chain) -> tuple[int, int]:
    """Rows and columns of live taps."""
    return len(_taps(problem, 0)), len(_taps(problem, 1))


def fold(problem: Chain, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [c_in, c_out / groups, kh, kw], the taps of each live band added up, as the right factor of a product:
    [groups, row bands * column bands * c_in / groups, c_out / groups], in `dtype`.

    Where a weight is not finite any band may become NaN, also through a tap that is not live (0 * Inf).
    """
    weight = weight.to(dtype)
    if problem.kernel[0] * problem.kernel[1] <= MOST_TAPS:
        bands = taps_of_bands(problem, dtype).T @ weight.flatten(2).flatten(0, 1).T
        bands = bands.unflatten(1, weight.shape[:2])
    else:
        columns = _sum_by_band(_counts(problem, 1), live_taps(problem, weight))
        bands = _sum_by_band(_counts(problem, 0), columns).flatten(0, 1)
    return bands.unflatten(1, (problem.groups, -1)).transpose(0, 1).flatten(1, 2)


@lru_cache(maxsize=512)
def taps_of_bands(problem: Chain, dtype: torch.dtype) -> Tensor:
    """1 where a tap has a live band, else 0: [kh * kw, bands], on the CPU."""
    return _members(problem, problem.kernel, [[*pairwise(problem.distinct(axis).taps)] for axis in (0, 1)], dtype)


@lru_cache(maxsize=512)
def elements_of_bands(problem: Chain, dtype: torch.dtype) -> Tensor:
    """1 where a live band holds an element of the plane, else 0: [h * w, bands], on the CPU."""
    size = problem.h, problem.w
    return _members(problem, size, [[*problem.distinct(axis).at(size[axis])] for axis in (0, 1)], dtype)


def _members(problem: Chain, size: tuple[int, int], ranges: list[list[tuple[int, int]]], dtype: torch.dtype) -> Tensor:
    """From each band's range of rows and of columns."""
    # Kept for later calls, of which some may be differentiated.
    with torch.inference_mode(False):
        rows, columns = (
            torch.zeros(size[axis], len(live(problem, axis)), dtype=dtype, device="cpu") for axis in (0, 1)
        )
        for axis, held in enumerate((rows, columns)):
            for column, b in enumerate(live(problem, axis)):
                held[slice(*ranges[axis][b]), column] = 1
        return (rows[:, None, :, None] * columns[:, None, :]).flatten(2).flatten(0, 1)


def unfold(problem: Chain, values: Tensor) -> Tensor:
    """What belongs to bands, [..., RB, CB], at each live tap: [..., rows, columns]."""
    for axis, dim in ((0, values.dim() - 2), (1, values.dim() - 1)):
        taps = problem.distinct(axis).taps
        parts = []
        for b in live(problem, axis):
            size = list(values.shape)
            size[dim] = taps[b + 1] - taps[b]
            parts.append(values.narrow(dim, b, 1).expand(size))
        values = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return values


def add_taps(problem: Chain, values: Tensor) -> Tensor:
    """What belongs to live taps, [..., rows, columns], added up for each live band: [..., row bands, column bands]."""
    for axis, dim in ((0, values.dim() - 2), (1, values.dim() - 1)):
        counts = _counts(problem, axis)
        if max(counts) > 1:
            values = torch.stack([part.sum(dim) for part in values.split(counts, dim)], dim)
    return values


def live_bands(problem: Chain, values: Tensor) -> Tensor:
    """What belongs to bands, [..., RB, CB], without the empty ones."""
    return _kept(_kept(values, live(problem, 0), -2), live(problem, 1), -1)


def live_taps(problem: Chain, values: Tensor) -> Tensor:
    """What belongs to taps, [..., kh, kw], without those that meet nothing."""
    return _kept(_kept(values, _taps(problem, 0), -2), _taps(problem, 1), -1)


def all_bands(problem: Chain, values: Tensor) -> Tensor:
    """The opposite of live_bands: 0 for empty bands."""
    values = _spread(values, live(problem, 0), len(problem.distinct(0)), -2)
    return _spread(values, live(problem, 1), len(problem.distinct(1)), -1)


def all_taps(problem: Chain, values: Tensor) -> Tensor:
    """The opposite of live_taps: 0 for taps that meet nothing."""
    values = _spread(values, _taps(problem, 0), problem.kernel[0], -2)
    return _spread(values, _taps(problem, 1), problem.kernel[1], -1)


def _taps(problem: Chain, axis: int) -> list[int]:
    taps = problem.distinct(axis).taps
    return [k for b in live(problem, axis) for k in range(taps[b], taps[b + 1])]


def _counts(problem: Chain, axis: int) -> list[int]:
    """How many taps each live band has."""
    taps = problem.distinct(axis).taps
    return [taps[b + 1] - taps[b] for b in live(problem, axis)]


def _sum_by_band(counts: list[int], values: Tensor) -> Tensor:
    """The last dimension in runs of counts[0], counts[1], ... elements: each run added up, [runs, ...]."""
    return torch.stack([run.sum(-1) for run in values.split(counts, -1)])


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Rising indices as ranges: [0, 1, 2, 5] -> [(0, 3), (5, 6)]."""
    runs: list[tuple[int, int]] = []
    for i in indices:
        if runs and runs[-1][1] == i:
            runs[-1] = runs[-1][0], i + 1
        else:
            runs.append((i, i + 1))
    return runs


def _kept(values: Tensor, indices: Sequence[int], dim: int) -> Tensor:
    runs = _runs(indices)
    if runs == [(0, values.shape[dim])]:
        return values
    parts = [values.narrow(dim, lo, hi - lo) for lo, hi in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _spread(values: Tensor, indices: Sequence[int], count: int, dim: int) -> Tensor:
    """values, the slices of `indices` along dim, in their places among `count` slices that are 0 otherwise."""
    if len(indices) == count:
        return values
    size = list(values.shape)
    size[dim] = count
    out = values.new_zeros(size)
    done = 0
    for lo, hi in _runs(indices):
        out.narrow(dim, lo, hi - lo).copy_(values.narrow(dim, done, hi - lo))
        done += hi - lo
    return out
