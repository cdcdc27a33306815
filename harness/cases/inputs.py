"""Tensors for a case: seeded, the same values on every device and, up to rounding, in every dtype.

Values come from a CPU generator seeded by the case's name, also for cases of GPU size: a GPU's
generator would give other values, and the truth is computed on the CPU anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from harness.cases.case import Case
from reference.problem import Chain


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call: `x` is y for the tail, where weight and bias are None."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    multiplier: float | Tensor
    sizes: dict[
        str, Any
    ]  # stride, padding, output_padding, groups, dilation, as torch orders them; empty for the tail

    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors, by name."""
        named = {name: getattr(self, name) for name in ("x", "weight", "bias", "multiplier")}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def tracked(self) -> tuple[Inputs, dict[str, Tensor]]:
        """The same arguments, each tensor a leaf that gets a gradient, and these leaves by name."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.tensors().items()}
        return replace(self, **leaves), leaves

    def call(self, operators: Any, **options: Any) -> Tensor:
        """Apply the operator of a module (or object) that has the project's two public names."""
        if self.weight is None:
            return operators.multiply_gap(self.x, self.multiplier, **options)
        return operators.conv_transpose2d_multiply_gap(
            self.x, self.weight, self.bias, multiplier=self.multiplier, **self.sizes, **options
        )


def make_inputs(
    case: Case, device: torch.device | str, dtype: str | None = None, layout: str | None = None
) -> Inputs:
    """Tensors of a case on a device; dtype and layout default to the case's own.

    x is uniform in [0, 1) as in KernelBench unless the case says otherwise; weight and bias are
    drawn as nn.ConvTranspose2d initialises them. Raises ValueError for an unknown layout or values.
    """
    dtype_ = getattr(torch, dtype or case.dtype)
    layout = layout or case.layout
    draw = torch.float64 if dtype_ == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(crc32(case.name.encode()) + case.seed)

    def uniform(*shape: int, bound: float) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=draw)
        return ((2 * values - 1) * bound).to(device, dtype_)

    problem = case.problem
    weight = bias = None
    sizes: dict[str, Any] = {}
    channels = problem.out_shape[1]
    if isinstance(problem, Chain):
        fan_in = prod(problem.weight_shape[1:])
        weight = uniform(*problem.weight_shape, bound=1 / sqrt(fan_in))
        bias = uniform(channels, bound=1 / sqrt(fan_in)) if problem.bias else None
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        sizes = {name: getattr(problem, name) for name in names}
    multiplier = uniform(channels, 1, 1, bound=2) if case.multiplier is None else case.multiplier
    x = _values(case.values, _base_shape(problem.in_shape, layout), draw, dtype_, generator)
    return Inputs(_laid_out(x.to(device, dtype_), problem.in_shape, layout), weight, bias, multiplier, sizes)


def _values(
    kind: str, shape: tuple[int, ...], draw: torch.dtype, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """x before rounding to dtype. See VALUES in harness/cases/case.py for the kinds."""
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=draw)
    x = torch.rand(shape, generator=generator, dtype=draw)
    huge = 1e30 if torch.finfo(dtype).max > 1e30 else 1e3
    match kind:
        case "uniform":
            pass
        case "huge":
            x *= huge
        case "huge_border":
            _border(x, [huge])
        case "subnormal":
            x = x.double() * torch.finfo(dtype).smallest_normal
        case "cancelling":
            half = shape[-1] // 2
            x[..., half : 2 * half] = -x[..., :half] + x[..., half : 2 * half] / 1024
        case "nonfinite":
            # Sample 0 stays finite; then Inf in a corner that some taps crop, -Inf inside, NaN inside.
            for sample, value in zip(range(1, shape[0]), (torch.inf, -torch.inf, torch.nan), strict=False):
                x[sample, 0, 0 if value == torch.inf else shape[2] // 2, 0] = value
        case "nonfinite_cropped":
            _border(x, [torch.inf, -torch.inf, torch.nan])
        case _:
            raise ValueError(f"values: expected one of harness.cases.case.VALUES, got {kind!r}")
    return x


def _border(x: Tensor, values: list[float]) -> None:
    """Fill the outermost rows and columns, the values in turn."""
    for i, edge in enumerate((x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1])):
        edge[...] = values[i % len(values)]


def _base_shape(shape: tuple[int, int, int, int], layout: str) -> tuple[int, ...]:
    """Shape that is stored: 1 where the layout repeats an element with stride 0."""
    n, c, h, w = shape
    if layout == "expanded_rows":
        return n, c, min(h, 1), w
    if layout == "expanded":
        return (1, c, h, w) if n > 1 else (n, min(c, 1), h, w)
    return shape


def _laid_out(x: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    """x with the strides that `layout` names. What lies between the elements of a view is NaN."""

    def hole(*size: int) -> Tensor:
        return torch.full(size, torch.nan, dtype=x.dtype, device=x.device)

    n, c, h, w = shape
    match layout:
        case "contiguous":
            return x
        case "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        case "expanded" | "expanded_rows":
            return x.expand(shape)
        case "sliced":  # every second column, from the second
            return hole(n, c, h, 2 * w + 1)[..., 1::2].copy_(x)
        case "cropped":  # a window of a larger image: rows further apart than they are long
            return hole(n, c, h + 2, w + 3)[..., 1:-1, 1:-2].copy_(x)
        case "offset":  # contiguous, one element past an aligned address
            return hole(x.numel() + 1)[1:].view(shape).copy_(x)
        case "transposed":  # stored as [N, C, W, H]
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    raise ValueError(f"layout: expected one of harness.cases.case.LAYOUTS, got {layout!r}")
