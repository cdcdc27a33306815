"""The gradients in plain torch operations, for the same calls as torch_impl/forward.py and by the same rules.

Band sums and their gradients are [n, c_in, RB, CB] in the accumulator's dtype (RB, CB: the numbers of distinct bands);
`grad` is [n, c_out, 1, 1] in the accumulator's dtype.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from math import isfinite

import torch
from torch import Tensor

from reference.problem import Band, Chain
from torch_impl.folding import add_taps, all_bands, all_taps, fold, live, live_bands, live_kernel, unfold
from torch_impl.forms import form_of_product
from torch_impl.forward import by_group, scaled, weight_by_group, without_autocast


def expand(problem: Chain, grad: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Gradient of each band sum: grad * weight added up over output channels and the band's taps, times scale / area.

    weight [c_in, c_out / groups, kh, kw].
    """
    rows, cols = len(live(problem, 0)), len(live(problem, 1))
    shape = problem.n, problem.c_in, rows, cols
    if not (rows and cols):
        return all_bands(problem, grad.new_zeros(shape))
    with without_autocast(grad):
        left = by_group(problem, grad)
        if form_of_product(problem, grad.device)[0] == "folded":
            right = fold(problem, weight, left.dtype)
            # [groups, n, (bands, channels)]: the channels go before the bands.
            d = torch.bmm(left, right.mT).unflatten(2, (rows, cols, -1)).permute(1, 0, 4, 2, 3).reshape(shape)
            if isfinite(d.sum().item()):
                return all_bands(problem, scaled(d, scale / problem.out_area).to(grad.dtype))
            left = left.double()
        right = weight_by_group(problem, weight, left.dtype)
        d = torch.bmm(left, right.mT).transpose(0, 1).reshape(problem.n, problem.c_in, *live_kernel(problem))
        return all_bands(problem, scaled(add_taps(problem, d), scale / problem.out_area).to(grad.dtype))


def weight_grad(problem: Chain, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Gradient of the weight [c_in, c_out / groups, kh, kw] of `dtype`: one number a band, written to its taps."""
    rows, cols = len(live(problem, 0)), len(live(problem, 1))
    if not (rows and cols):
        return torch.zeros(problem.weight_shape, dtype=dtype, device=grad.device)
    with without_autocast(grad):
        left, right = by_group(problem, grad), by_group(problem, live_bands(problem, sums))
        # [groups, c_out / groups, (c_in / groups, bands)]
        dw = scaled(torch.bmm(left.mT, right), scale / problem.out_area)
    dw = dw.unflatten(2, (-1, rows, cols)).transpose(1, 2).flatten(0, 1)
    return all_taps(problem, unfold(problem, all_bands(problem, dw))).to(dtype).contiguous()


def bias_grad(grad: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Gradient of the bias [c_out] of `dtype`: grad added up over the samples, times scale."""
    total = grad.flatten() if grad.shape[0] == 1 else grad.sum((0, 2, 3))
    return scaled(total, scale).to(dtype)


def band_fill(problem: Chain, d: Tensor, dx: Tensor) -> Tensor:
    """Fill dx [n, c_in, h, w] with the sum of d over the bands that hold each element, and return it.

    dx is constant between the ends of bands: one piece is written for each.
    """
    rows, cols = problem.distinct(0).at(problem.h), problem.distinct(1).at(problem.w)
    along_rows = torch.cat([_held(d, held, 3, hi - lo) for lo, hi, held in _pieces(cols, problem.w)], 3)
    for lo, hi, held in _pieces(rows, problem.h):
        dx[:, :, lo:hi] = _held(along_rows, held, 2, hi - lo)
    return dx


def _pieces(bands: tuple[Band, ...], size: int) -> list[tuple[int, int, list[int]]]:
    """(lo, hi, bands that hold [lo, hi)) between neighbouring ends of bands."""
    ends = {end for band in bands if band[0] < band[1] for end in band}
    return [
        (lo, hi, [b for b, band in enumerate(bands) if band[0] <= lo and hi <= band[1]])
        for lo, hi in pairwise(sorted({0, size} | ends))
    ]


def _held(values: Tensor, held: list[int], dim: int, length: int) -> Tensor:
    """Sum of some slices of `values` along dim, repeated to `length`; 0 where there are none."""
    if held:
        total = reduce(torch.add, [values.select(dim, b) for b in held])
    else:
        total = torch.zeros_like(values.select(dim, 0))
    size = list(values.shape)
    size[dim] = length
    return total.unsqueeze(dim).expand(size)
