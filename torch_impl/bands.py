"""The bands of reference/problem.py in plain torch operations: any device, differentiable as it is.

Bands are only ever added up, never subtracted from a total: a huge border cannot wash out the
interior, and rows that the padding crops away are never read, whatever they hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.eager import Size, mean_depth
from reference.problem import Band, Chain, Problem, Tail


def multiply_gap(y: Tensor, multiplier: float | Tensor) -> Tensor:
    """Mean over H and W of multiplier * y, the multiplier pulled out: [N, C, H, W] -> [N, C, 1, 1]."""
    mean = y.mean(dim=(-2, -1), keepdim=True, dtype=_accumulate_dtype(y.dtype))
    return (multiplier * mean).to(y.dtype)


def conv_transpose2d_multiply_gap(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    multiplier: float | Tensor = 1.0,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """x [N, Cin, H, W], weight [Cin, Cout / groups, KH, KW], bias [Cout] -> [N, Cout, 1, 1].

    x is summed in float32 (float64 if it is float64). The small product with the weight runs in
    float64: no TF32 switch and no autocast reaches it, so nothing has to be pinned and any thread
    may call. The only rounding to x's dtype is the last step.
    """
    problem = _problem(x, weight, bias, stride, padding, output_padding, groups, dilation)
    rows, cols = problem.bands(0), problem.bands(1)
    # A tap that sees nothing must not meet its weight: 0 * Inf would be NaN.
    live_rows, live_cols = ([k for k, (lo, hi) in enumerate(b) if lo < hi] for b in (rows, cols))
    if len(live_rows) < len(rows):
        weight = weight[:, :, live_rows]
    if len(live_cols) < len(cols):
        weight = weight[:, :, :, live_cols]
    sums = band_sums(x, [rows[k] for k in live_rows], [cols[k] for k in live_cols])

    factors = weight.unflatten(0, (groups, problem.c_in // groups)).permute(0, 1, 3, 4, 2)
    factors = factors.to(torch.float64, memory_format=torch.contiguous_format).flatten(1, 3)
    sums = sums.double().reshape(problem.n, groups, factors.shape[1]).transpose(0, 1)
    mean = torch.matmul(sums, factors).transpose(0, 1).reshape(problem.out_shape)
    mean = mean / (problem.out_size(0) * problem.out_size(1))
    if bias is not None:
        mean = mean + bias[:, None, None]
    return (multiplier * mean).to(x.dtype)


def band_sums(x: Tensor, rows: list[Band], cols: list[Band]) -> Tensor:
    """Sum of x [N, C, H, W] over each row band times column band: [N, C, rows, cols]."""
    if not rows or not cols:
        # Keeps x in the graph: its gradient is zero, not missing.
        return (
            x[:, :, :0, :0]
            .sum((-2, -1), dtype=_accumulate_dtype(x.dtype))[..., None, None]
            .expand(*x.shape[:2], len(rows), len(cols))
        )
    # The longer axis first, so that what is stored in between is small beside x.
    if x.shape[-2] >= x.shape[-1]:
        return _sums_along(_sums_along(x, rows, -2), cols, -1)
    return _sums_along(_sums_along(x, cols, -1), rows, -2)


def depth(problem: Problem) -> int:
    """Longest chain of additions in the accumulator's dtype (the float64 steps count as none)."""
    if isinstance(problem, Tail):
        return mean_depth(problem.h * problem.w)
    # Along each axis: the core (or a band), plus a rim on either side.
    return mean_depth(problem.h) + 2 + mean_depth(problem.w) + 2


def _sums_along(x: Tensor, bands: list[Band], dim: int) -> Tensor:
    """Sum over each band of one axis, stacked in that axis' place; the core is read once."""
    dtype = _accumulate_dtype(x.dtype)

    def part(lo: int, hi: int) -> Tensor:
        return x.narrow(dim, lo, hi - lo).sum(dim, dtype=dtype)

    lo, hi = max(band[0] for band in bands), min(band[1] for band in bands)
    core = part(lo, hi) if lo < hi else None
    sums: dict[Band, Tensor] = {}
    for first, last in bands:
        if (first, last) in sums:
            continue
        if core is None:
            sums[first, last] = part(first, last)
            continue
        total = core
        if first < lo:
            total = total + part(first, lo)
        if hi < last:
            total = total + part(hi, last)
        sums[first, last] = total
    return torch.stack([sums[band] for band in bands], dim)


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _problem(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Chain:
    n, c_in, h, w = x.shape
    s, p, op, d = (
        size if isinstance(size, tuple) else (size, size)
        for size in (stride, padding, output_padding, dilation)
    )
    kernel = (weight.shape[2], weight.shape[3])
    return Chain(n, c_in, weight.shape[1] * groups, h, w, kernel, s, p, op, d, groups, bias is not None)
