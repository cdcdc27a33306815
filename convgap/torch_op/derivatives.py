"""Derivatives: what a backward keeps of the inputs, and the backward itself, written once for two ways of calling.

The chain has one node. Its forward makes the band sums and keeps them, not x; its backward makes all gradients in one
place. The band sums are a second output of the node, which nobody sees: a derivative of the backward, which is asked
for with create_graph only, then reaches x through them, by composition of operators that have derivatives themselves.

`steps` is how the parts of a call are called: `Straight`, to the kernels, where torch's dispatcher would find
nothing to do, or `Dispatched`, through torch.library's operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convgap import fast
from convgap.torch_op import kernels
from convgap.torch_op.schemas import Sizes, is_channels_last, ops
from reference.problem import Chain, Geometry
from runtime import private
from runtime.prepared import accumulator
from torch_impl.forward import scaled


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The steps of one chain as operators: traced, transformed, differentiated. `size`: rows and columns of x."""

    geometry: Geometry
    size: Sizes
    kernel: Sizes
    backend: str

    def chain(self, x: Tensor, *given: Any) -> Tensor:
        return ops.chain(x, *given, *self.geometry, self.backend)

    def band_sums(self, x: Tensor) -> Tensor:
        return ops.band_sums(x, self.kernel, *self.geometry[:4], self.backend)

    def contract(self, sums: Tensor, *given: Any) -> Tensor:
        return ops.contract(sums, *given, self.size, *self.geometry, self.backend)

    def expand(self, grad: Tensor, weight: Tensor, scale: float) -> Tensor:
        return ops.expand(grad, weight, scale, self.size, *self.geometry, self.backend)

    def weight_grad(self, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        return ops.weight_grad(grad, sums, scale, self.size, self.kernel, *self.geometry, dtype, self.backend)

    def band_fill(self, d: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
        return ops.band_fill(
            d, self.size, self.kernel, *self.geometry[:4], dtype, channels_last, self.backend
        )

    def dispatched(self) -> Dispatched:
        return self


@dataclass(frozen=True, slots=True)
class Straight:
    """The same steps as calls of their kernels."""

    problem: Chain
    backend: str

    def chain(self, x: Tensor, *given: Any) -> Tensor:
        return kernels.chain(self.problem, x, *given, backend=self.backend)

    def band_sums(self, x: Tensor) -> Tensor:
        return kernels.band_sums(self.problem, x, self.backend)

    def contract(self, sums: Tensor, *given: Any) -> Tensor:
        return kernels.contract(self.problem, sums, *given, backend=self.backend)

    def expand(self, grad: Tensor, weight: Tensor, scale: float) -> Tensor:
        return kernels.expand(self.problem, grad, weight, scale, self.backend)

    def weight_grad(self, grad: Tensor, sums: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        return kernels.weight_grad(self.problem, grad, sums, scale, dtype, self.backend)

    def band_fill(self, d: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
        return kernels.band_fill(self.problem, d, dtype, channels_last, self.backend)

    def forward_parts(self, wants: tuple[bool, bool], x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """(output, band sums), from x, weight, bias, multiplier and scale. `wants`: which gradients of x and of the
        weight will be asked for."""
        everything: Any = self.problem, x, *given, wants, is_channels_last(x), self.backend
        return fast.forward_parts(*everything) or kernels.forward_parts(*everything)

    def dispatched(self) -> Dispatched:
        p = self.problem
        return Dispatched(p.geometry, (p.h, p.w), p.kernel, self.backend)


def _gradients(
    steps: Straight | Dispatched, grad: Tensor, sums: Any, weight: Tensor, scale: float, wants: tuple[bool, bool],
    like: Any,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, whose dtype and layout `like` knows, and of the weight: of those that are wanted."""
    if isinstance(steps, Straight):
        rest = wants, like.channels_last, steps.backend
        found = fast.backward(steps.problem, grad, sums, weight, scale, *rest)
        if found is not None:
            return found
    dx = dw = None
    if wants[0]:
        dx = steps.band_fill(steps.expand(grad, weight, scale), like.dtype, like.channels_last)
    if wants[1]:
        dw = steps.weight_grad(grad, sums, scale, weight.dtype)
    return dx, dw


def _through_multiplier(grad: Tensor, multiplier: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The output's gradient in the accumulator's dtype, before and behind the multiplier."""
    grad = grad.to(accumulator(dtype))
    return grad, grad if multiplier is None else grad * multiplier


# The chain: forward(x, weight, bias, multiplier, scale, steps) -> (out, band sums).


def chain_forward(
    wanted: tuple[bool, ...], x: Tensor, weight: Tensor, bias: Any, multiplier: Any, scale: float, steps: Any
) -> tuple[Tensor, Tensor | None]:
    """`wanted`: which of the tensors want a gradient. Those of x and of the bias need no band sums."""
    if not (wanted[1] or wanted[3]):
        return steps.chain(x, weight, bias, multiplier, scale), None
    return steps.forward_parts(wanted[:2], x, weight, bias, multiplier, scale)


def keep_chain(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
    x, weight, bias, multiplier, ctx.scale, ctx.steps = inputs
    ctx.set_materialize_grads(False)
    ctx.dtype, ctx.channels_last = x.dtype, is_channels_last(x)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(output[1], weight, bias if ctx.needs_input_grad[3] else None, multiplier)


def chain_backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None) -> tuple[Any, ...]:
    sums, weight, bias, multiplier = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, wants_multiplier = ctx.needs_input_grad[:4]
    steps, scale = ctx.steps, ctx.scale
    if torch.is_grad_enabled() or not private.ordinary(grad, grad_sums, sums, weight, multiplier):
        steps = steps.dispatched()
    dx = dw = db = dm = None
    if grad is not None:
        outer, inner = _through_multiplier(grad, multiplier, ctx.dtype)
        dx, dw = _gradients(steps, inner, sums, weight, scale, (wants_x, wants_weight), ctx)
        if wants_bias:
            total = inner.flatten() if inner.shape[0] == 1 else inner.sum((0, 2, 3))
            db = scaled(total, scale).to(ctx.bias_dtype)
        if wants_multiplier:
            # In the accumulator's dtype, so that nothing is rounded before the product.
            weight, bias = weight.to(outer.dtype), None if bias is None else bias.to(outer.dtype)
            dm = outer * steps.contract(sums, weight, bias, None, scale)
    if grad_sums is not None and wants_x:
        through = steps.band_fill(grad_sums, ctx.dtype, ctx.channels_last)
        dx = through if dx is None else dx + through
    return dx, dw, db, dm, None, None


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
        db = scaled(inner.sum((0, 2, 3)), ctx.scale).to(ctx.bias_dtype)
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
"""Operator -> what its backward keeps, and the backward. The chain's node has more than the operator's one output."""
