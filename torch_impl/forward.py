"""The operator in plain torch operations: what runs on a CPU, and on a GPU where neither kernel set does.

The mathematics is that of reference/problem.py: x is summed over bands, and the sums meet the weight in a matrix
product. Four things shape the code.

* **Bands are only ever added up**, never subtracted from a total: a huge border cannot wash out the interior, and rows
  that the padding crops away are never read, whatever they hold.
* **Taps of one band share its sum**, so their weights may be added before the product (`fold`). That is wrong where a
  sum is infinite (Inf * 1 + Inf * -0.5 is NaN, Inf * 0.5 is Inf) or where two weights overflow together. Either shows:
  some output is not finite. On a CPU that is looked for, and such a call is done again tap by tap. On a GPU looking
  would make the host wait for the device; there every tap is multiplied from the start.
* **No switch of torch reaches the product.** It is in float32 where torch's matrix products are IEEE float32. Where
  they were set to something faster it is in float64, which neither TF32 nor bfloat16 nor autocast touches.
* **Small calls take torch's own convolution**, which has fewer calls than the bands: what they cost is the host. It is
  the one that torch has without oneDNN and cuDNN: a product and a sum for each sample. Those two are slow to start, and
  cuDNN's may multiply zeros that it puts between elements (0 * Inf is NaN) and takes TF32 by default.

Sizes decide what runs on a GPU, values never do: a call may be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from reference import eager
from reference.eager import mean_depth
from reference.problem import Band, Chain, Problem, Tail
from runtime.prepared import accumulator
from torch_impl.folding import (
    MOST_ELEMENTS,
    MOST_TAPS,
    elements_of_bands,
    fold,
    live,
    live_bands,
    live_taps,
    unfold,
)
from torch_impl.forms import form, form_of_product

PER_TAP = 16
"""Kernel rows (columns) up to which sums are written once per tap: one operation fewer than copying them afterwards."""

_IEEE = ("none", "ieee")

MODERATE = 2.0**-60, 2.0**60
"""Multipliers between these may be applied in float32: neither they nor their share of a mean are out of its range."""


def tail(y: Tensor, scale: float, multiplier: Tensor | None) -> Tensor:
    """multiplier * scale * (mean of y over h, w): [n, c, h, w] -> [n, c, 1, 1], contiguous.

    multiplier is [n, c, 1, 1] in the accumulator's dtype, or None for 1.
    """
    total = y.sum((2, 3), keepdim=True, dtype=accumulator(y.dtype))
    return _finished(total, y.shape[2] * y.shape[3], None, scale, multiplier, y.dtype)


def chain(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None
) -> Tensor:
    """multiplier * scale * (bias + mean of the transposed convolution): [n, c_out, 1, 1], contiguous.

    x [n, c_in, h, w], weight [c_in, c_out / groups, kh, kw] and bias [c_out] are of one dtype; multiplier is
    [n, c_out, 1, 1] in the accumulator's dtype, or None for 1.
    """
    name, _ = form(problem, x.device)
    if name == "literal":
        return _literal(problem, x, weight, bias, scale, multiplier)
    if problem.n == 1 and x.device.type == "cpu":
        # torch chooses how to add up by the stride along the batch, which says nothing here: it is one for [c, h, w]
        # and another for [1, c, h, w]. It gets that of a dense batch.
        x = x.as_strided(x.shape, (x.numel(), *x.stride()[1:]))
    if name == "folded" and problem.h * problem.w <= MOST_ELEMENTS and live(problem, 0) and live(problem, 1):
        with without_autocast(x):
            bands = elements_of_bands(problem, product_dtype(x))
            out = _folded(problem, x.flatten(2).to(bands.dtype) @ bands, weight, bias, scale, multiplier)
        if out is not None:
            return out
    if name == "taps" and max(problem.kernel) <= PER_TAP:
        rows, cols = ([band for band in problem.bands(axis) if band[0] < band[1]] for axis in (0, 1))
        with without_autocast(x):
            left = by_group(problem, sums_over(x, rows, cols))
            return _product(
                problem, left, weight_by_group(problem, weight, left.dtype), bias, scale, multiplier, x.dtype
            )
    return contract(problem, band_sums(problem, x), weight, bias, scale, multiplier)


def band_sums(problem: Chain, x: Tensor) -> Tensor:
    """Sum of x over each row band times column band: [n, c_in, RB, CB] in the accumulator's dtype.

    RB, CB are the numbers of distinct bands (`Chain.distinct`). The sum over an empty band is 0.
    """
    return sums_over(x, problem.distinct(0).at(problem.h), problem.distinct(1).at(problem.w))


def contract(
    problem: Chain, sums: Tensor, weight: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None
) -> Tensor:
    """The chain's output [n, c_out, 1, 1], contiguous, from its band sums [n, c_in, RB, CB]."""
    rows, cols = live(problem, 0), live(problem, 1)
    dtype = weight.dtype
    if not (rows and cols):
        # A sum over an empty band never meets its weight: 0 * Inf would be NaN.
        none = torch.zeros(problem.out_shape, dtype=sums.dtype, device=sums.device)
        return _finished(none, problem.out_area, bias, scale, multiplier, dtype)
    how, _ = form_of_product(problem, sums.device)
    with without_autocast(sums):
        if how == "one band":
            return _as_stored(problem, sums, weight, bias, scale, multiplier)
        if how != "taps":
            out = _folded(problem, live_bands(problem, sums).flatten(2), weight, bias, scale, multiplier)
            if out is not None:
                return out
            sums = sums.double()
        left = by_group(problem, unfold(problem, sums))
        right = weight_by_group(problem, weight, left.dtype)
        return _product(problem, left, right, bias, scale, multiplier, dtype)


def depth(problem: Problem) -> int:
    """Longest chain of additions in the accumulator's dtype, on a CPU or a GPU."""
    if isinstance(problem, Tail):
        return mean_depth(problem.h * problem.w)
    return max(_depth(problem, form(problem, torch.device(kind))[0]) for kind in ("cpu", "cuda"))


def _depth(problem: Chain, how: str) -> int:
    if how == "literal":
        return eager.depth(problem)
    channels, (rows, cols) = problem.c_in // problem.groups, problem.kernel
    # Along each axis what all bands hold (or one band), and a rim on either side.
    sums = mean_depth(problem.h) + 2 + mean_depth(problem.w) + 2
    if how == "taps":
        return sums + channels * rows * cols
    if how == "one band":
        return sums + channels + mean_depth(rows * cols)
    counts = [[after - before for before, after in pairwise(problem.distinct(axis).taps)] for axis in (0, 1)]
    if rows * cols <= MOST_TAPS:
        folded = max(counts[0]) * max(counts[1]) - 1
    else:
        folded = mean_depth(max(counts[0])) + mean_depth(max(counts[1]))
    if problem.h * problem.w <= MOST_ELEMENTS:
        sums = max(sums, problem.h * problem.w)
    return sums + folded + channels * len(counts[0]) * len(counts[1])


def product_dtype(operand: Tensor) -> torch.dtype:
    """What to multiply matrices in: the operand's accumulator, or float64 where torch's product is not IEEE float32."""
    backends: Any = torch.backends  # its members are made at run time: type checkers do not see them
    switch = backends.cuda.matmul if operand.is_cuda else backends.mkldnn.matmul
    return accumulator(operand.dtype) if switch.fp32_precision in _IEEE else torch.float64


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Autocast switched off for this thread, where it is on for the tensor's device."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def by_group(problem: Chain, values: Tensor) -> Tensor:
    """[n, c_in, rows, columns] as the left factor of a product: [groups, n, c_in / groups * rows * columns]."""
    values = values.flatten(1).unflatten(1, (problem.groups, -1)).transpose(0, 1)
    return values.to(product_dtype(values))


def weight_by_group(problem: Chain, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The live taps as the right factor of a product: [groups, c_in / groups * rows * columns, c_out / groups]."""
    taps = live_taps(problem, weight).unflatten(0, (problem.groups, -1)).permute(0, 1, 3, 4, 2)
    return taps.to(dtype, memory_format=torch.contiguous_format).flatten(1, 3)


def _product(
    problem: Chain, left: Tensor, right: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """left [groups, n, k] times right [groups, k, c_out / groups], finished: [n, c_out, 1, 1] of `dtype`."""
    if problem.groups > 1:
        total = torch.bmm(left, right).transpose(0, 1).reshape(problem.out_shape)
    elif bias is not None and multiplier is None and _moderate(scale):
        # One operation for the product, the bias and the scale. The bias as all rows of a matrix: one row that is taken
        # once (beta = 1) is added by another kernel on a GPU, so that twice the scale would not be twice the answer.
        added = bias.to(left.dtype).expand(left.shape[1], -1)
        total = torch.addmm(added, left[0], right[0], beta=scale, alpha=scale / problem.out_area)
        # Unsqueezed in place: a view must not leave an operator that has a derivative, or nobody may write to it.
        return total.to(dtype).unsqueeze_(2).unsqueeze_(3)
    else:
        total = torch.mm(left[0], right[0])[:, :, None, None]
    return _finished(total, problem.out_area, bias, scale, multiplier, dtype)


def _folded(
    problem: Chain, sums: Tensor, weight: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None
) -> Tensor | None:
    """The output by folded weights, from the sums of the live bands [n, c_in, bands]; None if it is not all finite."""
    # Channels inside bands, as `fold` has them.
    left = sums.unflatten(1, (problem.groups, -1)).permute(1, 0, 3, 2).flatten(2)
    left = left.to(product_dtype(left))
    right = fold(problem, weight, left.dtype)
    out = _product(problem, left, right, bias, scale, multiplier, weight.dtype)
    return out if isfinite(out.sum(dtype=left.dtype).item()) else None


def _as_stored(
    problem: Chain, sums: Tensor, weight: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None
) -> Tensor:
    """The product where one band is live: with the whole weight, in the order in which it lies in memory. Only then
    are the taps told apart, and added."""
    left = by_group(problem, live_bands(problem, sums))
    right = weight.to(left.dtype).reshape(problem.groups, left.shape[2], -1)
    total = torch.mm(left[0], right[0])[None] if problem.groups == 1 else torch.bmm(left, right)
    total = live_taps(problem, total.unflatten(2, (-1, *problem.kernel))).sum((3, 4))
    total = total.transpose(0, 1).reshape(problem.out_shape)
    return _finished(total, problem.out_area, bias, scale, multiplier, weight.dtype)


def _finished(
    total: Tensor,
    count: int,
    bias: Tensor | None,
    scale: float,
    multiplier: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """multiplier * scale * (bias + total / count) of `dtype`, no view; total [n, c, 1, 1] may be overwritten.

    The order never makes something infinite, or zero, that is neither in the end.
    """
    if multiplier is None and _moderate(scale):
        total = total * (scale / count)
        if bias is not None:
            total = total.add_(bias[:, None, None], alpha=scale)
        return total.to(dtype).contiguous()
    if scale != 1:
        total = total.double()
    total = total.mul_(1 / count)
    if bias is not None:
        total = total + bias[:, None, None]
    if multiplier is not None:
        total = total * multiplier
    return (total * scale if scale != 1 else total).to(dtype).contiguous()


def scaled(values: Tensor, scale: float) -> Tensor:
    """values * scale in the dtype of `values`. torch itself takes a number beyond float32 as infinite, or as 0."""
    if _moderate(scale) or values.dtype == torch.float64:
        return values * scale
    return (values.double() * scale).to(values.dtype)


def _moderate(scale: float) -> bool:
    return MODERATE[0] < abs(scale) < MODERATE[1]


def _literal(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, multiplier: Tensor | None
) -> Tensor:
    """The convolution and the mean, in the accumulator's dtype, or float64 where a switch would reach the former."""
    dtype, wide = x.dtype, product_dtype(x)
    # The bias comes after the mean: added up over a plane it might overflow.
    with without_autocast(x):
        y = torch.ops.aten.slow_conv_transpose2d(
            x.to(wide), weight.to(wide), problem.kernel, None, problem.stride, problem.padding,
            problem.output_padding, problem.dilation,
        )  # fmt: skip
    return _finished(y.sum((2, 3), keepdim=True), problem.out_area, bias, scale, multiplier, dtype)


def sums_over(x: Tensor, rows: Sequence[Band], cols: Sequence[Band]) -> Tensor:
    """Sum of x [n, c, h, w] over each row band times column band, [n, c, rows, columns]; 0 for an empty band."""
    # The longer axis first, so that what is stored in between is small beside x.
    if x.shape[2] >= x.shape[3]:
        return _sums_along(_sums_along(x, rows, 2), cols, 3)
    return _sums_along(_sums_along(x, cols, 3), rows, 2)


def _sums_along(x: Tensor, bands: Sequence[Band], dim: int) -> Tensor:
    """Sum over each band of one axis, stacked in that axis' place; what all of them hold is read once."""
    dtype = accumulator(x.dtype)
    live = [band for band in bands if band[0] < band[1]]
    lo, hi = max((first for first, _ in live), default=0), min((last for _, last in live), default=0)
    pieces: dict[Band, Tensor] = {}

    def piece(first: int, last: int) -> Tensor:
        if (first, last) not in pieces:
            pieces[first, last] = x.narrow(dim, first, last - first).sum(dim, dtype=dtype)
        return pieces[first, last]

    def total(first: int, last: int) -> Tensor:
        if first >= last:
            return piece(0, 0)  # an empty sum is 0
        if lo >= hi:
            return piece(first, last)
        added = piece(lo, hi)
        if first < lo:
            added = added + piece(first, lo)
        if hi < last:
            added = added + piece(hi, last)
        return added

    sums = {band: total(*band) for band in dict.fromkeys(bands)}
    if len(bands) == 1:
        return sums[bands[0]].unsqueeze(dim)
    return torch.stack([sums[band] for band in bands], dim)
