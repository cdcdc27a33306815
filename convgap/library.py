"""The torch.library operators: schemas, kernels, shapes for tracing, derivatives.

The chain is linear in its band sums T, in the weight and in the incoming gradient, so the four
products (contract, expand, weight_grad and the fused chain) are each other's derivatives, and so are
band_sums and band_fill. Higher derivatives follow by composition.

`geometry` is (stride, padding, output_padding, dilation: two numbers each; groups). A `multiplier`
is [n, c_out, 1, 1] in the accumulator's dtype; gradients of band sums, and gradients that meet them,
are in the accumulator's dtype too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convgap import execute, plain
from convgap.backends import current_stream, kernels
from reference.calls import accumulator
from reference.problem import Chain

_library = torch.library.Library("convgap", "DEF")

for _schema in (
    "multiply_gap(Tensor y, Tensor? multiplier, float scale, str backend) -> Tensor",
    "chain(Tensor x, Tensor weight, Tensor? bias, Tensor? multiplier, float scale, int[] geometry,"
    " bool save, str backend) -> (Tensor, Tensor)",
    "contract(Tensor sums, Tensor weight, Tensor? bias, Tensor? multiplier, float scale,"
    " SymInt[] x_shape, int[] geometry, str backend) -> Tensor",
    "expand(Tensor grad, Tensor weight, float scale, SymInt[] x_shape, int[] geometry, str backend) -> Tensor",
    "weight_grad(Tensor grad, Tensor sums, float scale, SymInt[] x_shape, SymInt[] weight_shape,"
    " int[] geometry, ScalarType dtype, str backend) -> Tensor",
    "band_sums(Tensor x, SymInt[] weight_shape, int[] geometry, str backend) -> Tensor",
    "band_fill(Tensor d, SymInt[] x_shape, SymInt[] weight_shape, int[] geometry, ScalarType dtype,"
    " bool channels_last, str backend) -> Tensor",
):
    _library.define(_schema)

ops: Any = torch.ops.convgap


@lru_cache(maxsize=4096)
def _problem(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: tuple[int, ...], bias: bool) -> Chain:
    n, c_in, h, w = x_shape
    sh, sw, ph, pw, oh, ow, dh, dw, groups = geometry
    kernel = weight_shape[2], weight_shape[3]
    return Chain(
        n, c_in, weight_shape[1] * groups, h, w, kernel, (sh, sw), (ph, pw), (oh, ow), (dh, dw), groups, bias
    )  # fmt: skip


def _out_channels(weight_shape: Sequence[int], geometry: Sequence[int]) -> int:
    return weight_shape[1] * geometry[8]


def _kernel(name: str) -> Any:
    """Register the decorated function for tensors on the CPU and on CUDA devices."""

    def register(function: Any) -> Any:
        for key in ("CPU", "CUDA"):
            _library.impl(name, function, key)
        return function

    return register


@_kernel("multiply_gap")
def _multiply_gap(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    kernel_set = kernels(backend, y.device)
    if kernel_set is None:
        return plain.tail(y, scale, multiplier)
    return execute.tail(kernel_set, y, scale, multiplier, current_stream(y.device))


@_kernel("chain")
def _chain(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    geometry: Sequence[int], save: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    problem = _problem(tuple(x.shape), tuple(weight.shape), tuple(geometry), bias is not None)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    kernel_set = kernels(backend, x.device)
    if kernel_set is None:
        out, sums = plain.chain(problem, x, weight, bias, scale, multiplier, save)
    else:
        stream = current_stream(x.device)
        out, sums = execute.chain(kernel_set, problem, x, weight, bias, scale, multiplier, save, stream)
    return out, out.new_empty(0) if sums is None else sums


@_kernel("contract")
def _contract(
    sums: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    x_shape: Sequence[int], geometry: Sequence[int], backend: str,
) -> Tensor:  # fmt: skip
    problem = _problem(tuple(x_shape), tuple(weight.shape), tuple(geometry), bias is not None)
    sums, weight, bias = sums.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    kernel_set = kernels(backend, sums.device)
    if kernel_set is None:
        return plain.contract(problem, sums, weight, bias, scale, multiplier)
    stream = current_stream(sums.device)
    return execute.contract(kernel_set, problem, sums, weight, bias, scale, multiplier, stream)


@_kernel("expand")
def _expand(
    grad: Tensor, weight: Tensor, scale: float, x_shape: Sequence[int], geometry: Sequence[int], backend: str
) -> Tensor:
    problem = _problem(tuple(x_shape), tuple(weight.shape), tuple(geometry), False)
    kernel_set = kernels(backend, grad.device)
    if kernel_set is None:
        return plain.expand(problem, grad, weight, scale)
    return execute.expand(kernel_set, problem, grad, weight.contiguous(), scale, current_stream(grad.device))


@_kernel("weight_grad")
def _weight_grad(
    grad: Tensor, sums: Tensor, scale: float, x_shape: Sequence[int], weight_shape: Sequence[int],
    geometry: Sequence[int], dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    problem = _problem(tuple(x_shape), tuple(weight_shape), tuple(geometry), False)
    kernel_set = kernels(backend, grad.device)
    if kernel_set is None:
        return plain.weight_grad(problem, grad, sums, scale, dtype)
    stream = current_stream(grad.device)
    return execute.weight_grad(kernel_set, problem, grad, sums.contiguous(), scale, dtype, stream)


@_kernel("band_sums")
def _band_sums(x: Tensor, weight_shape: Sequence[int], geometry: Sequence[int], backend: str) -> Tensor:
    problem = _problem(tuple(x.shape), tuple(weight_shape), tuple(geometry), False)
    kernel_set = kernels(backend, x.device)
    if kernel_set is None:
        return plain.band_sums(problem, x).squeeze(2)
    return execute.band_sums(kernel_set, problem, x, current_stream(x.device)).sum(2)


@_kernel("band_fill")
def _band_fill(
    d: Tensor, x_shape: Sequence[int], weight_shape: Sequence[int], geometry: Sequence[int],
    dtype: torch.dtype, channels_last: bool, backend: str,
) -> Tensor:  # fmt: skip
    problem = _problem(tuple(x_shape), tuple(weight_shape), tuple(geometry), False)
    dx = _empty_dx(d, x_shape, dtype, channels_last)
    kernel_set = kernels(backend, d.device)
    if kernel_set is None:
        return plain.band_fill(problem, d, dx)
    return execute.band_fill(kernel_set, problem, d.contiguous(), dx, current_stream(d.device))


def _empty_dx(d: Tensor, x_shape: Sequence[int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(x_shape), dtype=dtype, device=d.device, memory_format=layout)


# Shapes and strides for tracing.


@torch.library.register_fake("convgap::multiply_gap", lib=_library)
def _(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    return y.new_empty((y.shape[0], y.shape[1], 1, 1))


@torch.library.register_fake("convgap::chain", lib=_library)
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    geometry: Sequence[int], save: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = x.new_empty((x.shape[0], _out_channels(weight.shape, geometry), 1, 1))
    if not save:
        return out, x.new_empty(0)
    # How many parts a plane is cut in belongs to the plan, which a trace must not depend on.
    parts = torch.library.get_ctx().new_dynamic_size()
    shape = x.shape[0], x.shape[1], parts, weight.shape[2], weight.shape[3]
    return out, x.new_empty(shape, dtype=accumulator(x.dtype))


@torch.library.register_fake("convgap::contract", lib=_library)
def _(
    sums: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    x_shape: Sequence[int], geometry: Sequence[int], backend: str,
) -> Tensor:  # fmt: skip
    return weight.new_empty((x_shape[0], _out_channels(weight.shape, geometry), 1, 1))


@torch.library.register_fake("convgap::expand", lib=_library)
def _(
    grad: Tensor, weight: Tensor, scale: float, x_shape: Sequence[int], geometry: Sequence[int], backend: str
) -> Tensor:
    return grad.new_empty((x_shape[0], x_shape[1], weight.shape[2], weight.shape[3]))


@torch.library.register_fake("convgap::weight_grad", lib=_library)
def _(
    grad: Tensor, sums: Tensor, scale: float, x_shape: Sequence[int], weight_shape: Sequence[int],
    geometry: Sequence[int], dtype: torch.dtype, backend: str,
) -> Tensor:  # fmt: skip
    return grad.new_empty(tuple(weight_shape), dtype=dtype)


@torch.library.register_fake("convgap::band_sums", lib=_library)
def _(x: Tensor, weight_shape: Sequence[int], geometry: Sequence[int], backend: str) -> Tensor:
    shape = x.shape[0], x.shape[1], weight_shape[2], weight_shape[3]
    return x.new_empty(shape, dtype=accumulator(x.dtype))


@torch.library.register_fake("convgap::band_fill", lib=_library)
def _(
    d: Tensor, x_shape: Sequence[int], weight_shape: Sequence[int], geometry: Sequence[int],
    dtype: torch.dtype, channels_last: bool, backend: str,
) -> Tensor:  # fmt: skip
    return _empty_dx(d, x_shape, dtype, channels_last)


# Derivatives. A setup function keeps what its backward needs; both see the same names.


def _keep_multiply_gap(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, multiplier, ctx.scale, ctx.backend = inputs
    ctx.shape, ctx.dtype = y.shape, y.dtype
    wants_multiplier = multiplier is not None and multiplier.requires_grad
    ctx.save_for_backward(y if wants_multiplier else None, multiplier)


def _multiply_gap_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    y, multiplier = ctx.saved_tensors
    grad = grad.to(accumulator(ctx.dtype))
    dy = dm = None
    if ctx.needs_input_grad[0]:
        scale = ctx.scale / (ctx.shape[2] * ctx.shape[3])
        through = grad * scale if multiplier is None else grad * multiplier * scale
        dy = through.to(ctx.dtype).expand(ctx.shape)
    if ctx.needs_input_grad[1]:
        dm = grad * ops.multiply_gap(y, None, ctx.scale, ctx.backend)
    return dy, dm, None, None


def _through_multiplier(grad: Tensor, multiplier: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The output's gradient in the accumulator's dtype, before and behind the multiplier."""
    grad = grad.to(accumulator(dtype))
    return grad, grad if multiplier is None else grad * multiplier


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _keep_chain(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, multiplier, ctx.scale, ctx.geometry, _, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias, multiplier, output[1])
    ctx.mark_non_differentiable(output[1])


def _chain_grad(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    x, weight, bias, multiplier, sums = ctx.saved_tensors
    scale, geometry, backend = ctx.scale, ctx.geometry, ctx.backend
    if torch.is_grad_enabled():
        # The saved sums have no history; a second derivative needs their dependence on x.
        sums = ops.band_sums(x, weight.shape, geometry, backend).unsqueeze(2)
    outer, inner = _through_multiplier(grad, multiplier, x.dtype)
    dx = dw = db = dm = None
    if ctx.needs_input_grad[0]:
        d = ops.expand(inner, weight, scale, x.shape, geometry, backend)
        dx = ops.band_fill(d, x.shape, weight.shape, geometry, x.dtype, _is_channels_last(x), backend)
    if ctx.needs_input_grad[1]:
        dw = ops.weight_grad(inner, sums, scale, x.shape, weight.shape, geometry, weight.dtype, backend)
    if ctx.needs_input_grad[2]:
        db = (inner.sum((0, 2, 3)) * scale).to(bias.dtype)
    if ctx.needs_input_grad[3]:
        dm = outer * ops.contract(sums, weight, bias, None, scale, x.shape, geometry, backend)
    return dx, dw, db, dm, None, None, None, None


def _keep_contract(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sums, weight, bias, multiplier, ctx.scale, ctx.x_shape, ctx.geometry, ctx.backend = inputs
    ctx.save_for_backward(sums, weight, bias, multiplier)


def _contract_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    sums, weight, bias, multiplier = ctx.saved_tensors
    scale, shape, geometry, backend = ctx.scale, ctx.x_shape, ctx.geometry, ctx.backend
    outer, inner = _through_multiplier(grad, multiplier, weight.dtype)
    dt = dw = db = dm = None
    if ctx.needs_input_grad[0]:
        dt = ops.expand(inner, weight, scale, shape, geometry, backend).unsqueeze(2).expand_as(sums)
    if ctx.needs_input_grad[1]:
        dw = ops.weight_grad(inner, sums, scale, shape, weight.shape, geometry, weight.dtype, backend)
    if ctx.needs_input_grad[2]:
        db = (inner.sum((0, 2, 3)) * scale).to(bias.dtype)
    if ctx.needs_input_grad[3]:
        dm = outer * ops.contract(sums, weight, bias, None, scale, shape, geometry, backend)
    return dt, dw, db, dm, None, None, None, None


def _keep_expand(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, ctx.scale, ctx.x_shape, ctx.geometry, ctx.backend = inputs
    ctx.save_for_backward(grad, weight)


def _expand_grad(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    grad, weight = ctx.saved_tensors
    scale, shape, geometry, backend = ctx.scale, ctx.x_shape, ctx.geometry, ctx.backend
    sums = d.unsqueeze(2)
    dg = dw = None
    if ctx.needs_input_grad[0]:
        dg = ops.contract(sums, weight, None, None, scale, shape, geometry, backend).to(grad.dtype)
    if ctx.needs_input_grad[1]:
        dw = ops.weight_grad(grad, sums, scale, shape, weight.shape, geometry, weight.dtype, backend)
    return dg, dw, None, None, None, None


def _keep_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, sums, ctx.scale, ctx.x_shape, _, ctx.geometry, _, ctx.backend = inputs
    ctx.save_for_backward(grad, sums)


def _weight_grad_grad(ctx: Any, dw: Tensor) -> tuple[Any, ...]:
    grad, sums = ctx.saved_tensors
    scale, shape, geometry, backend = ctx.scale, ctx.x_shape, ctx.geometry, ctx.backend
    dg = dt = None
    if ctx.needs_input_grad[0]:
        dg = ops.contract(sums, dw, None, None, scale, shape, geometry, backend).to(grad.dtype)
    if ctx.needs_input_grad[1]:
        dt = ops.expand(grad, dw, scale, shape, geometry, backend).unsqueeze(2).expand_as(sums)
    return dg, dt, None, None, None, None, None, None


def _keep_band_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.weight_shape, ctx.geometry, ctx.backend = inputs
    ctx.x_shape, ctx.dtype, ctx.channels_last = x.shape, x.dtype, _is_channels_last(x)


def _band_sums_grad(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    dx = ops.band_fill(
        d, ctx.x_shape, ctx.weight_shape, ctx.geometry, ctx.dtype, ctx.channels_last, ctx.backend
    )
    return dx, None, None, None


def _keep_band_fill(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.weight_shape, ctx.geometry, _, _, ctx.backend = inputs


def _band_fill_grad(ctx: Any, dx: Tensor) -> tuple[Any, ...]:
    d = ops.band_sums(dx, ctx.weight_shape, ctx.geometry, ctx.backend)
    return d, None, None, None, None, None, None


for _name, _keep, _grad in (
    ("multiply_gap", _keep_multiply_gap, _multiply_gap_grad),
    ("chain", _keep_chain, _chain_grad),
    ("contract", _keep_contract, _contract_grad),
    ("expand", _keep_expand, _expand_grad),
    ("weight_grad", _keep_weight_grad, _weight_grad_grad),
    ("band_sums", _keep_band_sums, _band_sums_grad),
    ("band_fill", _keep_band_fill, _band_fill_grad),
):
    torch.library.register_autograd(f"convgap::{_name}", _grad, setup_context=_keep, lib=_library)
