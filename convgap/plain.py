"""The steps of `execute` in plain torch operations: what runs where neither kernel set does."""

from __future__ import annotations

import torch
from torch import Tensor

from reference import collapsed
from reference.calls import accumulator
from reference.problem import Chain


def tail(y: Tensor, scale: float, multiplier: Tensor | None) -> Tensor:
    """multiplier * scale * (mean of y over h, w): [n, c, h, w] -> [n, c, 1, 1]."""
    mean = y.mean((2, 3), keepdim=True, dtype=accumulator(y.dtype)) * scale
    return (mean if multiplier is None else mean * multiplier).to(y.dtype)


def band_sums(problem: Chain, x: Tensor) -> Tensor:
    """Sum of x over every tap's band: [n, c_in, 1, kh, kw]; 0 for a tap whose band is empty."""
    live = [[k for k, (lo, hi) in enumerate(problem.bands(axis)) if lo < hi] for axis in (0, 1)]
    sums = torch.zeros((problem.n, problem.c_in, 1, *problem.kernel), dtype=accumulator(x.dtype), device=x.device)
    if live[0] and live[1]:
        rows, cols = ([problem.bands(axis)[k] for k in live[axis]] for axis in (0, 1))
        index = torch.tensor(live[0])[:, None], torch.tensor(live[1])
        sums[:, :, 0, index[0], index[1]] = collapsed.band_sums(x, rows, cols)
    return sums


def contract(
    problem: Chain, sums: Tensor, weight: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None
) -> Tensor:
    """The chain's output [n, c_out, 1, 1] from band sums [n, c_in, parts, kh, kw]."""
    grouped = sums.sum(2).unflatten(1, (problem.groups, -1)).double()
    out = torch.einsum("ngikl,giokl->ngo", grouped, _live(problem, weight))
    out = out.reshape(problem.out_shape) / _area(problem)
    out = (out if bias is None else out + bias[:, None, None]) * scale
    return (out if multiplier is None else out * multiplier).to(weight.dtype)


def expand(problem: Chain, grad: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Gradient of each band sum, [n, c_in, kh, kw], for grad [n, c_out, 1, 1]."""
    grouped = grad.flatten(1).unflatten(1, (problem.groups, -1)).double()
    d = torch.einsum("ngo,giokl->ngikl", grouped, _live(problem, weight)) * (scale / _area(problem))
    return d.flatten(1, 2).to(grad.dtype)


def band_fill(problem: Chain, d: Tensor, dx: Tensor) -> Tensor:
    """Fill dx with the sum of d over the taps that see each element."""
    total = torch.zeros_like(dx, dtype=d.dtype)
    for kh, (top, bottom) in enumerate(problem.bands(0)):
        for kw, (left, right) in enumerate(problem.bands(1)):
            if top < bottom and left < right:
                total[:, :, top:bottom, left:right] += d[:, :, kh, kw, None, None]
    return dx.copy_(total)


def weight_grad(problem: Chain, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Gradient of the weight, from grad [n, c_out, 1, 1] and the band sums."""
    g = grad.flatten(1).unflatten(1, (problem.groups, -1)).double()
    t = sums.sum(2).unflatten(1, (problem.groups, -1)).double()
    dw = torch.einsum("ngo,ngikl->giokl", g, t) * (scale / _area(problem))
    return torch.where(_lands(problem, dw.device), dw, 0).flatten(0, 1).to(dtype)


def _area(problem: Chain) -> int:
    return problem.out_size(0) * problem.out_size(1)


def _lands(problem: Chain, device: torch.device) -> Tensor:
    """[kh, kw]: whether the tap's band holds anything."""
    live = (torch.tensor([lo < hi for lo, hi in problem.bands(axis)], device=device) for axis in (0, 1))
    rows, cols = live
    return rows[:, None] & cols


def _live(problem: Chain, weight: Tensor) -> Tensor:
    """The weight in float64, by group, with 0 for taps that meet nothing: 0 * Inf would be NaN."""
    live = torch.where(_lands(problem, weight.device), weight.double(), 0)
    return live.unflatten(0, (problem.groups, -1))
