"""The torch.library operators: their names, arguments, and shapes for tracing.

Every operator is a product of some of three things: the band sums of x, the weight, and a gradient. Where a
derivative is wanted the chain is two operators, `band_sums` and `contract`, so what is saved is the band sums and
not an activation; `expand`, `weight_grad` and `band_fill` are the derivatives of these two and of each other, and
higher derivatives follow by composition.

Sizes are read off the tensors, so that an operator on a shard of its tensors is the operator on those sizes; what no
tensor has is passed: `size`, the rows and columns of x, and `kernel`, those of the weight. A `multiplier` is
[n, c_out, 1, 1] in the accumulator's dtype. Band sums and their gradients are [n, c_in, RB, CB], one for each distinct
row band and column band, in the accumulator's dtype, as are the gradients that meet them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reference.problem import distinct_bands
from runtime.prepared import accumulator

Sizes = Sequence[int]


ONE_BAND = (1, 1), (0, 0), (0, 0), (1, 1)
"""Stride, padding, output padding and dilation under which a 1 x 1 kernel's only band is the whole plane."""

library = torch.library.Library("convgap", "DEF")

_BANDS = "int[2] stride, int[2] padding, int[2] output_padding, int[2] dilation"

for _schema in (
    "multiply_gap(Tensor y, Tensor? multiplier, Scalar scale, str backend) -> Tensor",
    f"chain(Tensor x, Tensor weight, Tensor? bias, Tensor? multiplier, Scalar scale, {_BANDS}, int groups,"
    " str backend) -> Tensor",
    "plane_sums(Tensor y, str backend) -> Tensor",
    f"band_sums(Tensor x, int[2] kernel, {_BANDS}, str backend) -> Tensor",
    "contract(Tensor sums, Tensor weight, Tensor? bias, Tensor? multiplier, Scalar scale, SymInt[2] size,"
    f" {_BANDS}, int groups, str backend) -> Tensor",
    f"expand(Tensor grad, Tensor weight, Scalar scale, SymInt[2] size, {_BANDS}, int groups, str backend) -> Tensor",
    f"weight_grad(Tensor grad, Tensor sums, Scalar scale, SymInt[2] size, int[2] kernel, {_BANDS}, int groups,"
    " ScalarType dtype, str backend) -> Tensor",
    f"band_fill(Tensor d, SymInt[2] size, int[2] kernel, {_BANDS}, ScalarType dtype, bool channels_last,"
    " str backend) -> Tensor",
):
    library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

ops: Any = torch.ops.convgap


def is_channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W] has its channels next to each other, and is not contiguous as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def bands_shape(
    kernel: Sizes, stride: Sizes, padding: Sizes, output_padding: Sizes, dilation: Sizes
) -> tuple[int, int]:
    """Distinct row bands and distinct column bands."""
    rows, cols = (
        len(distinct_bands(*map(int, numbers))) for numbers in zip(kernel, stride, padding, output_padding, dilation)
    )
    return rows, cols


def empty_dx(d: Tensor, size: Sizes, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """The gradient of x to be filled: contiguous, or channels last as x was."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = d.shape[0], d.shape[1], size[0], size[1]
    return torch.empty(shape, dtype=dtype, device=d.device, memory_format=layout)


# Shapes and strides for tracing: every output is contiguous, but for a channels-last gradient of x.


def _fake(name: str) -> Callable[..., Any]:
    return torch.library.register_fake(f"convgap::{name}", lib=library)


@_fake("chain")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    stride: Sizes, padding: Sizes, output_padding: Sizes, dilation: Sizes, groups: int, backend: str,
) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[0], weight.shape[1] * groups, 1, 1))


@_fake("multiply_gap")
def _(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    return y.new_empty((y.shape[0], y.shape[1], 1, 1))


@_fake("plane_sums")
def _(y: Tensor, backend: str) -> Tensor:
    return y.new_empty((y.shape[0], y.shape[1], 1, 1), dtype=accumulator(y.dtype))


@_fake("band_sums")
def _(
    x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, output_padding: Sizes, dilation: Sizes, backend: str
) -> Tensor:  # fmt: skip
    bands = bands_shape(kernel, stride, padding, output_padding, dilation)
    return x.new_empty((x.shape[0], x.shape[1], *bands), dtype=accumulator(x.dtype))


@_fake("contract")
def _(
    sums: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float, size: Sizes,
    stride: Sizes, padding: Sizes, output_padding: Sizes, dilation: Sizes, groups: int, backend: str,
) -> Tensor:  # fmt: skip
    return weight.new_empty((sums.shape[0], weight.shape[1] * groups, 1, 1))


@_fake("expand")
def _(
    grad: Tensor, weight: Tensor, scale: float, size: Sizes, stride: Sizes, padding: Sizes,
    output_padding: Sizes, dilation: Sizes, groups: int, backend: str,
) -> Tensor:  # fmt: skip
    bands = bands_shape(weight.shape[2:], stride, padding, output_padding, dilation)
    return grad.new_empty((grad.shape[0], weight.shape[0], *bands))


@_fake("weight_grad")
def _(
    grad: Tensor, sums: Tensor, scale: float, size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes,
    output_padding: Sizes, dilation: Sizes, groups: int, dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    return grad.new_empty((sums.shape[1], grad.shape[1] // groups, *kernel), dtype=dtype)


@_fake("band_fill")
def _(
    d: Tensor, size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, output_padding: Sizes, dilation: Sizes,
    dtype: torch.dtype, channels_last: bool, backend: str,
) -> Tensor:  # fmt: skip
    return empty_dx(d, size, dtype, channels_last)
