"""The steps of `execute` in plain torch operations: what runs where neither kernel set does.

Bands are known before anything runs, so taps are picked by slicing: no index is copied to the device,
and the calls may be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from reference.problem import Band, Chain
from runtime.prepared import accumulator
from torch_impl.forward import sums_over


def band_sums(problem: Chain, x: Tensor) -> Tensor:
    """Sum of x over every tap's band: [n, c_in, kh, kw]; 0 for a tap whose band is empty."""
    rows, cols = ([band for band in problem.bands(axis) if band[0] < band[1]] for axis in (0, 1))
    if not rows or not cols:
        shape = problem.n, problem.c_in, *problem.kernel
        return torch.zeros(shape, dtype=accumulator(x.dtype), device=x.device)
    sums = sums_over(x, rows, cols)
    for axis, dim in ((0, 2), (1, 3)):
        live = _live(problem, axis)
        if not all(live):
            found = iter(sums.unbind(dim))
            zero = torch.zeros_like(sums.select(dim, 0))
            sums = torch.stack([next(found) if lands else zero for lands in live], dim)
    return sums


def contract(
    problem: Chain, sums: Tensor, weight: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None
) -> Tensor:
    """The chain's output [n, c_out, 1, 1] from band sums [n, c_in, kh, kw]."""
    out = torch.einsum("ngikl,giokl->ngo", _by_group(problem, sums), _live_weight(problem, weight))
    out = out.reshape(problem.out_shape) / _area(problem)
    if bias is not None:
        out = out + bias[:, None, None]
    return (out * _factor(scale, multiplier)).to(weight.dtype).contiguous()


def expand(problem: Chain, grad: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Gradient of each band sum, [n, c_in, kh, kw], for grad [n, c_out, 1, 1]."""
    grouped = grad.flatten(1).unflatten(1, (problem.groups, -1)).double()
    d = torch.einsum("ngo,giokl->ngikl", grouped, _live_weight(problem, weight)) * (scale / _area(problem))
    return d.flatten(1, 2).to(grad.dtype)


def band_fill(problem: Chain, d: Tensor, dx: Tensor) -> Tensor:
    """Fill dx with the sum of d over the taps that see each element.

    dx is constant between the ends of bands, so that only as many pieces are written.
    """
    columns = [_seen_sum(d, seen, 3, hi - lo) for lo, hi, seen in _pieces(problem.bands(1), problem.w)]
    along_rows = torch.cat(columns, 3)
    for lo, hi, seen in _pieces(problem.bands(0), problem.h):
        dx[:, :, lo:hi] = _seen_sum(along_rows, seen, 2, hi - lo)
    return dx


def weight_grad(problem: Chain, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Gradient of the weight, from grad [n, c_out, 1, 1] and the band sums."""
    g = grad.flatten(1).unflatten(1, (problem.groups, -1)).double()
    dw = torch.einsum("ngo,ngikl->giokl", g, _by_group(problem, sums)) * (scale / _area(problem))
    return _without_dead_taps(problem, dw).flatten(0, 1).to(dtype)


def _factor(scale: float, multiplier: Tensor | None) -> float | Tensor:
    if multiplier is None:
        return scale
    return multiplier if scale == 1 else multiplier * scale


def _area(problem: Chain) -> int:
    return problem.out_size(0) * problem.out_size(1)


def _live(problem: Chain, axis: int) -> list[bool]:
    """For each kernel index whether its band holds anything."""
    return [lo < hi for lo, hi in problem.bands(axis)]


def _by_group(problem: Chain, sums: Tensor) -> Tensor:
    """Band sums in float64: [n, groups, c_in / groups, kh, kw]."""
    return sums.unflatten(1, (problem.groups, -1)).double()


def _live_weight(problem: Chain, weight: Tensor) -> Tensor:
    """The weight in float64, by group, with 0 for taps that meet nothing: 0 * Inf would be NaN."""
    return _without_dead_taps(problem, weight.double()).unflatten(0, (problem.groups, -1))


def _without_dead_taps(problem: Chain, values: Tensor) -> Tensor:
    """`values` [..., kh, kw] with 0 for taps whose band is empty."""
    for axis, dim in ((0, values.dim() - 2), (1, values.dim() - 1)):
        live = _live(problem, axis)
        if not all(live):
            zero = torch.zeros_like(values.select(dim, 0))
            taps = values.unbind(dim)
            values = torch.stack([tap if lands else zero for tap, lands in zip(taps, live, strict=True)], dim)
    return values


def _pieces(bands: tuple[Band, ...], size: int) -> list[tuple[int, int, list[int]]]:
    """(lo, hi, kernel indices whose band holds [lo, hi)) between neighbouring ends of bands."""
    ends = {end for band in bands if band[0] < band[1] for end in band}
    return [
        (lo, hi, [k for k, band in enumerate(bands) if band[0] <= lo and hi <= band[1]])
        for lo, hi in pairwise(sorted({0, size} | ends))
    ]


def _seen_sum(values: Tensor, seen: list[int], dim: int, length: int) -> Tensor:
    """Sum of some slices of `values` along dim, repeated to `length`; 0 where no tap sees."""
    if seen:
        total = reduce(torch.add, [values.select(dim, k) for k in seen])
    else:
        total = torch.zeros_like(values.select(dim, 0))
    size = list(values.shape)
    size[dim] = length
    return total.unsqueeze(dim).expand(size)
