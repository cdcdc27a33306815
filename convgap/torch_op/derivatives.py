"""Derivatives: what a backward keeps of the inputs, and the backward itself, written once for two ways of calling.

The chain has one node. Its forward makes the band sums and keeps them, not x; its backward makes all gradients in one
place. The band sums are a second output of the node, which nobody sees: a derivative of the backward, which is asked
for with create_graph only, then reaches x through them, by composition of operators that have derivatives themselves.

`steps` is how the parts of a call are called: `Straight`, to the kernels, where torch's dispatcher would find
nothing to do, or `Dispatched`, through torch.library's operators. Ordinary calls on a CUDA device, and their backwards,
take neither: their launches are native.c's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor

from convgap import fast
from convgap.torch_op import kernels
from convgap.torch_op.schemas import Sizes, is_channels_last, ops
from reference.problem import Chain, Geometry
from runtime import private
from runtime.prepared import accumulator
from torch_impl.backward import bias_grad
from torch_impl.forward import scaled


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The steps of one chain as operators: traced, transformed, differentiated. `size`: rows and columns of x."""

    geometry: Geometry
    size: Sizes
    kernel: Sizes
    backend: str

    def band_sums(self, x: Tensor) -> Tensor:
        return ops.band_sums(x, self.kernel, *self.geometry[:4], self.backend)

    def contract(self, sums: Tensor, *given: Any) -> Tensor:
        return ops.contract(sums, *given, self.size, *self.geometry, self.backend)

    def expand(self, grad: Tensor, weight: Tensor, scale: float) -> Tensor:
        return ops.expand(grad, weight, scale, self.size, *self.geometry, self.backend)

    def weight_grad(self, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        return ops.weight_grad(grad, sums, scale, self.size, self.kernel, *self.geometry, dtype, self.backend)

    def parameter_grads(
        self, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype, wants_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of the weight and, if it is wanted, of the bias."""
        dw = self.weight_grad(grad, sums, scale, dtype)
        return dw, bias_grad(grad, scale, dtype) if wants_bias else None

    def band_fill(self, d: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
        return ops.band_fill(d, self.size, self.kernel, *self.geometry[:4], dtype, channels_last, self.backend)


@dataclass(frozen=True, slots=True, eq=False)
class Straight:
    """The same steps as calls of their kernels, and all else that fixes a backward."""

    problem: Chain
    backend: str
    dtype: torch.dtype
    channels_last: bool
    """Whether the gradient of x is."""
    wants: tuple[bool, bool, bool, bool]
    """Which of x, weight, bias and multiplier want a gradient."""
    number: int = field(default_factory=count().__next__)
    """A number of this object alone, by which native.c looks its plan up instead of comparing all fields."""

    def contract(self, sums: Tensor, *given: Any) -> Tensor:
        return kernels.contract(self.problem, sums, *given, backend=self.backend)

    def expand(self, grad: Tensor, weight: Tensor, scale: float) -> Tensor:
        return kernels.expand(self.problem, grad, weight, scale, self.backend)

    def parameter_grads(
        self, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype, wants_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of the weight and, if it is wanted, of the bias."""
        return kernels.weight_grad(self.problem, grad, sums, scale, dtype, wants_bias, self.backend)

    def band_fill(self, d: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
        return kernels.band_fill(self.problem, d, dtype, channels_last, self.backend)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """(output, band sums). The gradients of x and of the bias need no band sums."""
        given = self.problem, x, weight, bias, multiplier, scale
        if not (self.wants[1] or self.wants[3]):
            return kernels.chain(*given, self.backend), None
        return kernels.forward_parts(*given, self.wants[:2], self.channels_last, self.backend)

    def dispatched(self) -> Dispatched:
        p = self.problem
        return Dispatched(p.geometry, (p.h, p.w), p.kernel, self.backend)


_straight = lru_cache(maxsize=4096)(Straight)


def straight(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, backend: str
) -> Straight | None:
    """The steps of a call that is differentiated, one object a kind of call; None where no gradient is wanted."""
    if not torch.is_grad_enabled():
        return None
    wants = (
        x.requires_grad,
        weight.requires_grad,
        bias is not None and bias.requires_grad,
        multiplier is not None and multiplier.requires_grad,
    )
    return _straight(problem, backend, x.dtype, is_channels_last(x), wants) if any(wants) else None


def _gradients(
    steps: Straight | Dispatched, kind: Straight, grad: Tensor, sums: Any, weight: Tensor, scale: float
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias, of those that `kind` wants."""
    dx = dw = db = None
    wants_x, wants_weight, wants_bias, _ = kind.wants
    if wants_x:
        dx = steps.band_fill(steps.expand(grad, weight, scale), kind.dtype, kind.channels_last)
    if wants_weight:
        dw, db = steps.parameter_grads(grad, sums, scale, kind.dtype, wants_bias)
    elif wants_bias:
        db = bias_grad(grad, scale, kind.dtype)
    return dx, dw, db


def _through_multiplier(grad: Tensor, multiplier: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The output's gradient in the accumulator's dtype, before and behind the multiplier."""
    grad = grad.to(accumulator(dtype))
    return grad, grad if multiplier is None else grad * multiplier


class ChainNode(private.Function):
    """The chain where torch's dispatcher would find nothing to do but to differentiate."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Any,
        multiplier: Any,
        scale: float,
        kind: Straight,
        made: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(output, band sums). `made`: a tuple of what native.c has made of these, or None."""
        if made is None:
            made = kind.forward(x, weight, bias, multiplier, scale)
        elif len(made) == 1:
            made = *made, None
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.kind = scale, kind
        ctx.save_for_backward(made[1], weight, bias if kind.wants[3] else None, multiplier)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None) -> tuple[Any, ...]:
        sums, weight, bias, multiplier = ctx.saved_tensors
        kind, scale = ctx.kind, ctx.scale
        wants_x, _, _, wants_multiplier = kind.wants
        dx = dw = db = dm = None
        if grad is not None:
            outer, inner = _through_multiplier(grad, multiplier, kind.dtype)
            found = fast.backward(kind.number, kind, scale, inner, sums, weight)
            if found is not None and grad_sums is None and not wants_multiplier:
                return *found, None, None, None, None
            straight = not torch.is_grad_enabled() and private.ordinary(grad, sums, weight, multiplier)
            steps = kind if straight else kind.dispatched()
            dx, dw, db = found or _gradients(steps, kind, inner, sums, weight, scale)
            if wants_multiplier:
                # In the accumulator's dtype, so that nothing is rounded before the product.
                weight, bias = weight.to(outer.dtype), None if bias is None else bias.to(outer.dtype)
                dm = outer * steps.contract(sums, weight, bias, None, scale)
        if grad_sums is not None and wants_x:
            through = kind.dispatched().band_fill(grad_sums, kind.dtype, kind.channels_last)
            dx = through if dx is None else dx + through
        return dx, dw, db, dm, None, None, None


class TailNode(private.Function):
    """The same for the tail, whose multiplier wants no gradient."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, multiplier: Tensor | None, scale: float, backend: str, made: tuple[Tensor] | None
    ) -> Tensor:
        out = kernels.multiply_gap(y, multiplier, scale, backend) if made is None else made[0]
        keep_multiply_gap(ctx, (y, multiplier, scale, backend), out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *multiply_gap_backward(ctx, grad), None


# The others: each operator keeps what its own backward takes.


def keep_multiply_gap(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, multiplier, ctx.scale, _ = inputs
    ctx.shape, ctx.dtype = y.shape, y.dtype
    ctx.save_for_backward(multiplier)


def multiply_gap_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (multiplier,) = ctx.saved_tensors
    _, inner = _through_multiplier(grad, multiplier, ctx.dtype)
    inner = scaled(inner, ctx.scale / (ctx.shape[2] * ctx.shape[3]))
    return inner.to(ctx.dtype).expand(ctx.shape), None, None, None


def _keep_plane_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype


def _plane_sums_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad.to(ctx.dtype).expand(ctx.shape), None


def _keep_band_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, *bands, backend = inputs
    ctx.steps = Dispatched(Geometry._make((*bands, 1)), x.shape[2:], kernel, backend)
    ctx.dtype, ctx.channels_last = x.dtype, is_channels_last(x)


def _band_sums_grad(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    return ctx.steps.band_fill(d, ctx.dtype, ctx.channels_last), *[None] * 6


def _keep_band_fill(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    d, size, kernel, *bands, _, _, backend = inputs
    ctx.steps, ctx.dtype = Dispatched(Geometry._make((*bands, 1)), size, kernel, backend), d.dtype


def _band_fill_grad(ctx: Any, dx: Tensor) -> tuple[Any, ...]:
    return ctx.steps.band_sums(dx).to(ctx.dtype), *[None] * 9


def _keep_contract(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sums, weight, bias, multiplier, ctx.scale, size, *geometry, backend = inputs
    ctx.steps = Dispatched(Geometry._make(geometry), size, weight.shape[2:], backend)
    _, wants_weight, _, wants_multiplier = ctx.needs_input_grad[:4]
    sums = sums if wants_weight or wants_multiplier else None
    ctx.save_for_backward(sums, weight, bias if wants_multiplier else None, multiplier)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _contract_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    sums, weight, bias, multiplier = ctx.saved_tensors
    outer, inner = _through_multiplier(grad, multiplier, weight.dtype)
    dt = dw = db = dm = None
    if ctx.needs_input_grad[0]:
        dt = ctx.steps.expand(inner, weight, ctx.scale)
    if ctx.needs_input_grad[1]:
        dw = ctx.steps.weight_grad(inner, sums, ctx.scale, weight.dtype)
    if ctx.needs_input_grad[2]:
        db = bias_grad(inner, ctx.scale, ctx.bias_dtype)
    if ctx.needs_input_grad[3]:
        weight, bias = weight.to(outer.dtype), None if bias is None else bias.to(outer.dtype)
        dm = outer * ctx.steps.contract(sums, weight, bias, None, ctx.scale)
    return dt, dw, db, dm, *[None] * 8


def _keep_expand(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, ctx.scale, size, *geometry, backend = inputs
    ctx.steps = Dispatched(Geometry._make(geometry), size, weight.shape[2:], backend)
    ctx.save_for_backward(grad, weight)


def _expand_grad(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    grad, weight = ctx.saved_tensors
    dg = dw = None
    if ctx.needs_input_grad[0]:
        dg = ctx.steps.contract(d, weight.to(grad.dtype), None, None, ctx.scale)
    if ctx.needs_input_grad[1]:
        dw = ctx.steps.weight_grad(grad, d, ctx.scale, weight.dtype)
    return dg, dw, *[None] * 8


def _keep_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, sums, ctx.scale, size, kernel, *geometry, _, backend = inputs
    ctx.steps = Dispatched(Geometry._make(geometry), size, kernel, backend)
    ctx.save_for_backward(grad, sums)


def _weight_grad_grad(ctx: Any, dw: Tensor) -> tuple[Any, ...]:
    grad, sums = ctx.saved_tensors
    dg = dt = None
    if ctx.needs_input_grad[0]:
        dg = ctx.steps.contract(sums, dw.to(grad.dtype), None, None, ctx.scale)
    if ctx.needs_input_grad[1]:
        dt = ctx.steps.expand(grad, dw, ctx.scale)
    return dg, dt, *[None] * 10


DERIVATIVES: dict[str, tuple[Callable[..., None], Callable[..., tuple[Any, ...]]]] = {
    "multiply_gap": (keep_multiply_gap, multiply_gap_backward),
    "plane_sums": (_keep_plane_sums, _plane_sums_grad),
    "band_sums": (_keep_band_sums, _band_sums_grad),
    "contract": (_keep_contract, _contract_grad),
    "expand": (_keep_expand, _expand_grad),
    "weight_grad": (_keep_weight_grad, _weight_grad_grad),
    "band_fill": (_keep_band_fill, _band_fill_grad),
}
"""Operator -> what its backward keeps, and the backward."""
