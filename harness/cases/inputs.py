"""Tensors for a case: seeded, the same values on every device and, up to rounding, in every dtype.

Values come from a CPU generator seeded by the case's name, also for cases of GPU size: a GPU's
generator would give other values, and the truth is computed on the CPU anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self
from zlib import crc32

import torch
from torch import Tensor

from harness.cases import operators
from harness.cases.case import Case


@dataclass(frozen=True)
class Arguments:
    """Arguments of one call, of any operator: those that are no tensor are its sizes and numbers."""

    x: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def tracked(self) -> tuple[Self, dict[str, Tensor]]:
        """The same arguments, each tensor a leaf that gets a gradient, and these leaves by name."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.tensors().items()}
        return replace(self, **leaves), leaves


@dataclass(frozen=True)
class Inputs(Arguments):
    """Arguments of a chain or a tail: `x` is y for the tail, where weight and bias are None."""

    weight: Tensor | None
    bias: Tensor | None
    multiplier: float | Tensor
    sizes: dict[str, Any]  # stride, padding, output_padding, groups, dilation, as torch orders them; empty for the tail

    def call(self, functions: Any, **options: Any) -> Tensor:
        """Apply the operator of a module (or object) that has the project's two public names."""
        if self.weight is None:
            return functions.multiply_gap(self.x, self.multiplier, **options)
        return functions.conv_transpose2d_multiply_gap(
            self.x, self.weight, self.bias, multiplier=self.multiplier, **self.sizes, **options
        )


@dataclass(frozen=True)
class Draw:
    """Numbers for a case, on a device and in a dtype; each call of a method goes on in the generator's order."""

    case: Case
    device: torch.device | str
    dtype: torch.dtype
    layout: str
    generator: torch.Generator

    def uniform(self, *shape: int, bound: float) -> Tensor:
        """Uniform in [-bound, bound)."""
        values = torch.rand(shape, generator=self.generator, dtype=self._exact)
        return ((2 * values - 1) * bound).to(self.device, self.dtype)

    def x(self, shape: tuple[int, ...]) -> Tensor:
        """The case's values in the case's layout."""
        stored = _base_shape(shape, self.layout)
        x = _values(self.case.values, stored, self._exact, self.dtype, self.generator)
        return _laid_out(x.to(self.device, self.dtype), shape, self.layout)

    @property
    def _exact(self) -> torch.dtype:
        # Drawn before the rounding to a narrow dtype.
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def make_inputs(case: Case, device: torch.device | str, dtype: str | None = None, layout: str | None = None) -> Any:
    """The arguments of a case on a device; dtype and layout default to the case's own.

    x is uniform in [0, 1) as in KernelBench unless the case says otherwise. Raises ValueError for an unknown layout or
    values.
    """
    generator = torch.Generator().manual_seed(crc32(case.name.encode()) + case.seed)
    draw = Draw(case, device, getattr(torch, dtype or case.dtype), layout or case.layout, generator)
    return operators.of(case.problem).inputs(case.problem, draw)


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
                place = sample, 0, 0 if value == torch.inf else shape[2 % len(shape)] // 2, 0
                x[place[: len(shape)]] = value
        case "nonfinite_cropped":
            _border(x, [torch.inf, -torch.inf, torch.nan])
        case _:
            raise ValueError(f"values: expected one of harness.cases.case.VALUES, got {kind!r}")
    return x


def _border(x: Tensor, values: list[float]) -> None:
    """Fill the outermost rows and columns, the values in turn."""
    for i, edge in enumerate((x[..., :1, :], x[..., -1:, :], x[..., :1], x[..., -1:])):
        edge[...] = values[i % len(values)]


def _base_shape(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape that is stored: 1 where the layout repeats an element with stride 0."""
    n, c, *_ = shape
    if layout == "expanded_rows":
        return *shape[:-2], min(shape[-2], 1), shape[-1]
    if layout == "expanded":
        return (1, *shape[1:]) if n > 1 else (n, min(c, 1), *shape[2:])
    return shape


def _laid_out(x: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    """x with the strides that `layout` names. What lies between the elements of a view is NaN."""

    def hole(*size: int) -> Tensor:
        return torch.full(size, torch.nan, dtype=x.dtype, device=x.device)

    *outer, h, w = shape
    match layout:
        case "contiguous":
            return x
        case "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        case "expanded" | "expanded_rows":
            return x.expand(shape)
        case "sliced":  # every second column, from the second
            return hole(*outer, h, 2 * w + 1)[..., 1::2].copy_(x)
        case "cropped":  # a window of a larger image: rows further apart than they are long
            return hole(*outer, h + 2, w + 3)[..., 1:-1, 1:-2].copy_(x)
        case "offset":  # contiguous, one element past an aligned address
            return hole(x.numel() + 1)[1:].view(shape).copy_(x)
        case "transposed":  # the last two axes in each other's place: stored as [N, C, W, H]
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    raise ValueError(f"layout: expected one of harness.cases.case.LAYOUTS, got {layout!r}")
