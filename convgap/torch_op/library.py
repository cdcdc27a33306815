"""The torch.library operators: schemas, kernels, shapes for tracing, derivatives.

Every operator is a product of some of three things: the band sums of x, the weight, and a gradient.
Where a derivative is wanted the chain is two operators, `band_sums` and `contract`, so what is saved
is the band sums and not an activation; `expand`, `weight_grad` and `band_fill` are the derivatives of
these two and of each other, and higher derivatives follow by composition.

`geometry` is (stride, padding, output_padding, dilation: two numbers each; groups), `size` the rows
and columns of x. Every other size is read off a tensor, so that an operator on a shard of its tensors
is the operator on those sizes. A `multiplier` is [n, c_out, 1, 1] in the accumulator's dtype; band sums,
their gradients, and gradients that meet them are in the accumulator's dtype too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils.flop_counter import register_flop_formula

from convgap.selection import current_stream, serve
from convgap.torch_op.direct import direct
from reference.problem import Chain
from runtime import execute
from runtime.prepared import accumulator
from torch_impl import forward, steps

_library = torch.library.Library("convgap", "DEF")

for _schema in (
    "multiply_gap(Tensor y, Tensor? multiplier, Scalar scale, str backend) -> Tensor",
    "chain(Tensor x, Tensor weight, Tensor? bias, Tensor? multiplier, Scalar scale, int[] geometry,"
    " str backend) -> Tensor",
    "plane_sums(Tensor y, str backend) -> Tensor",
    "band_sums(Tensor x, SymInt[] kernel, int[] geometry, str backend) -> Tensor",
    "contract(Tensor sums, Tensor weight, Tensor? bias, Tensor? multiplier, Scalar scale, SymInt[] size,"
    " int[] geometry, str backend) -> Tensor",
    "expand(Tensor grad, Tensor weight, Scalar scale, SymInt[] size, int[] geometry, str backend) -> Tensor",
    "weight_grad(Tensor grad, Tensor sums, Scalar scale, SymInt[] size, int[] geometry, ScalarType dtype,"
    " str backend) -> Tensor",
    "band_fill(Tensor d, SymInt[] size, int[] geometry, ScalarType dtype, bool channels_last,"
    " str backend) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

ops: Any = torch.ops.convgap

Sizes = Sequence[int]

_ONE_BAND = (1, 1, 0, 0, 0, 0, 1, 1, 1)
"""Geometry under which a 1 x 1 kernel's only band is the whole plane."""


@lru_cache(maxsize=4096)
def problem_of(
    x_shape: tuple[int, ...], kernel: tuple[int, ...], c_out: int, geometry: tuple[int, ...], bias: bool
) -> Chain:
    """The sizes of one call as the kernels take them."""
    n, c_in, h, w = x_shape
    sh, sw, ph, pw, oh, ow, dh, dw, groups = geometry
    taps = kernel[0], kernel[1]
    return Chain(n, c_in, c_out, h, w, taps, (sh, sw), (ph, pw), (oh, ow), (dh, dw), groups, bias)


def weighted_problem(shape: Sizes, weight: Tensor, bias: Tensor | None, geometry: Sizes) -> Chain:
    """Of the operators that take the weight, from the [n, c_in, h, w] of x."""
    taps = weight.shape
    return problem_of(tuple(shape), taps[2:], taps[1] * geometry[8], tuple(geometry), bias is not None)


def _planes_problem(n: int, c: int, size: Sizes, kernel: Sizes, geometry: Sizes) -> Chain:
    """Of band sums and their transpose, which know nothing of outputs and groups."""
    return problem_of((n, c, *size), tuple(kernel), 1, (*geometry[:8], 1), False)


# Kernels: for tensors on the CPU and on CUDA devices.


def _chain(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    geometry: Sizes, backend: str,
) -> Tensor:  # fmt: skip
    problem = weighted_problem(x.shape, weight, bias, geometry)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return forward.chain(problem, x, weight, bias, scale, multiplier)
        stream = current_stream(x.device)
        return execute.chain(kernels, problem, x, weight, bias, scale, multiplier, stream)

    return serve(backend, x.device, run)


def _multiply_gap(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return forward.tail(y, scale, multiplier)
        return execute.tail(kernels, y, scale, multiplier, current_stream(y.device))

    return serve(backend, y.device, run)


def _plane_sums(y: Tensor, backend: str) -> Tensor:
    return _band_sums(y, (1, 1), _ONE_BAND, backend)


def _band_sums(x: Tensor, kernel: Sizes, geometry: Sizes, backend: str) -> Tensor:
    n, c, *size = x.shape
    problem = _planes_problem(n, c, size, kernel, geometry)

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return steps.band_sums(problem, x)
        return execute.band_sums(kernels, problem, x, current_stream(x.device))

    return serve(backend, x.device, run)


def _contract(
    sums: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    size: Sizes, geometry: Sizes, backend: str,
) -> Tensor:  # fmt: skip
    problem = weighted_problem((*sums.shape[:2], *size), weight, bias, geometry)
    sums = sums.contiguous()
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return steps.contract(problem, sums, weight, bias, scale, multiplier)
        stream = current_stream(sums.device)
        return execute.contract(kernels, problem, sums, weight, bias, scale, multiplier, stream)

    return serve(backend, sums.device, run)


def _expand(grad: Tensor, weight: Tensor, scale: float, size: Sizes, geometry: Sizes, backend: str) -> Tensor:
    problem = weighted_problem((grad.shape[0], weight.shape[0], *size), weight, None, geometry)
    weight = weight.contiguous()

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return steps.expand(problem, grad, weight, scale).contiguous()
        return execute.expand(kernels, problem, grad, weight, scale, current_stream(grad.device))

    return serve(backend, grad.device, run)


def _weight_grad(
    grad: Tensor, sums: Tensor, scale: float, size: Sizes, geometry: Sizes, dtype: torch.dtype, backend: str
) -> Tensor:
    n, c, *kernel = sums.shape
    problem = problem_of((n, c, *size), tuple(kernel), grad.shape[1], tuple(geometry), False)
    sums = sums.contiguous()

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return steps.weight_grad(problem, grad, sums, scale, dtype).contiguous()
        return execute.weight_grad(kernels, problem, grad, sums, scale, dtype, current_stream(grad.device))

    return serve(backend, grad.device, run)


def _band_fill(
    d: Tensor, size: Sizes, geometry: Sizes, dtype: torch.dtype, channels_last: bool, backend: str
) -> Tensor:
    n, c, *kernel = d.shape
    problem = _planes_problem(n, c, size, kernel, geometry)
    d = d.contiguous()

    def run(kernels: Any) -> Tensor:
        dx = _empty_dx(d, size, dtype, channels_last)
        if kernels is None:
            return steps.band_fill(problem, d, dx)
        return execute.band_fill(kernels, problem, d, dx, current_stream(d.device))

    return serve(backend, d.device, run)


def _empty_dx(d: Tensor, size: Sizes, dtype: torch.dtype, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = d.shape[0], d.shape[1], size[0], size[1]
    return torch.empty(shape, dtype=dtype, device=d.device, memory_format=layout)


# Shapes and strides for tracing: every output is contiguous, but for a channels-last gradient of x.


def _fake(name: str) -> Callable[..., Any]:
    return torch.library.register_fake(f"convgap::{name}", lib=_library)


@_fake("chain")
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    geometry: Sizes, backend: str,
) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[0], weight.shape[1] * geometry[8], 1, 1))


@_fake("multiply_gap")
def _(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    return y.new_empty((y.shape[0], y.shape[1], 1, 1))


@_fake("plane_sums")
def _(y: Tensor, backend: str) -> Tensor:
    return y.new_empty((y.shape[0], y.shape[1], 1, 1), dtype=accumulator(y.dtype))


@_fake("band_sums")
def _(x: Tensor, kernel: Sizes, geometry: Sizes, backend: str) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], *kernel), dtype=accumulator(x.dtype))


@_fake("contract")
def _(
    sums: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    size: Sizes, geometry: Sizes, backend: str,
) -> Tensor:  # fmt: skip
    return weight.new_empty((sums.shape[0], weight.shape[1] * geometry[8], 1, 1))


@_fake("expand")
def _(grad: Tensor, weight: Tensor, scale: float, size: Sizes, geometry: Sizes, backend: str) -> Tensor:
    return grad.new_empty((grad.shape[0], weight.shape[0], *weight.shape[2:]))


@_fake("weight_grad")
def _(
    grad: Tensor, sums: Tensor, scale: float, size: Sizes, geometry: Sizes, dtype: torch.dtype, backend: str
) -> Tensor:
    return grad.new_empty((sums.shape[1], grad.shape[1] // geometry[8], *sums.shape[2:]), dtype=dtype)


@_fake("band_fill")
def _(
    d: Tensor, size: Sizes, geometry: Sizes, dtype: torch.dtype, channels_last: bool, backend: str
) -> Tensor:
    return _empty_dx(d, size, dtype, channels_last)


# Derivatives: for each operator what its backward keeps of the inputs, and the backward.


def _keep_multiply_gap(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, multiplier, ctx.scale, _ = inputs
    ctx.shape, ctx.dtype = y.shape, y.dtype
    ctx.save_for_backward(multiplier)


def _multiply_gap_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (multiplier,) = ctx.saved_tensors
    _, inner = _through_multiplier(grad, multiplier, ctx.dtype)
    inner = inner * (ctx.scale / (ctx.shape[2] * ctx.shape[3]))
    return inner.to(ctx.dtype).expand(ctx.shape), None, None, None


def _keep_plane_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype


def _plane_sums_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad.to(ctx.dtype).expand(ctx.shape), None


def _through_multiplier(grad: Tensor, multiplier: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The output's gradient in the accumulator's dtype, before and behind the multiplier."""
    grad = grad.to(accumulator(dtype))
    return grad, grad if multiplier is None else grad * multiplier


def _keep_band_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.geometry, ctx.backend = inputs
    ctx.size, ctx.dtype = x.shape[2:], x.dtype
    ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _band_sums_grad(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    dx = ops.band_fill(d, ctx.size, ctx.geometry, ctx.dtype, ctx.channels_last, ctx.backend)
    return dx, None, None, None


def _keep_band_fill(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    d, _, ctx.geometry, _, _, ctx.backend = inputs
    ctx.kernel, ctx.dtype = d.shape[2:], d.dtype


def _band_fill_grad(ctx: Any, dx: Tensor) -> tuple[Any, ...]:
    d = ops.band_sums(dx, ctx.kernel, ctx.geometry, ctx.backend)
    return d.to(ctx.dtype), None, None, None, None, None


def _keep_contract(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    sums, weight, bias, multiplier, ctx.scale, ctx.size, ctx.geometry, ctx.backend = inputs
    _, wants_weight, _, wants_multiplier = ctx.needs_input_grad[:4]
    sums = sums if wants_weight or wants_multiplier else None
    ctx.save_for_backward(sums, weight, bias if wants_multiplier else None, multiplier)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _contract_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    sums, weight, bias, multiplier = ctx.saved_tensors
    fixed = ctx.scale, ctx.size, ctx.geometry
    outer, inner = _through_multiplier(grad, multiplier, weight.dtype)
    dt = dw = db = dm = None
    if ctx.needs_input_grad[0]:
        dt = ops.expand(inner, weight, *fixed, ctx.backend)
    if ctx.needs_input_grad[1]:
        dw = ops.weight_grad(inner, sums, *fixed, weight.dtype, ctx.backend)
    if ctx.needs_input_grad[2]:
        db = (inner.sum((0, 2, 3)) * ctx.scale).to(ctx.bias_dtype)
    if ctx.needs_input_grad[3]:
        # In the accumulator's dtype, so that nothing is rounded before the product.
        weight, bias = weight.to(outer.dtype), None if bias is None else bias.to(outer.dtype)
        dm = outer * ops.contract(sums, weight, bias, None, *fixed, ctx.backend)
    return dt, dw, db, dm, None, None, None, None


def _keep_expand(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, weight, ctx.scale, ctx.size, ctx.geometry, ctx.backend = inputs
    ctx.save_for_backward(grad, weight)


def _expand_grad(ctx: Any, d: Tensor) -> tuple[Any, ...]:
    grad, weight = ctx.saved_tensors
    fixed = ctx.scale, ctx.size, ctx.geometry
    dg = dw = None
    if ctx.needs_input_grad[0]:
        dg = ops.contract(d, weight.to(grad.dtype), None, None, *fixed, ctx.backend)
    if ctx.needs_input_grad[1]:
        dw = ops.weight_grad(grad, d, *fixed, weight.dtype, ctx.backend)
    return dg, dw, None, None, None, None


def _keep_weight_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, sums, ctx.scale, ctx.size, ctx.geometry, _, ctx.backend = inputs
    ctx.save_for_backward(grad, sums)


def _weight_grad_grad(ctx: Any, dw: Tensor) -> tuple[Any, ...]:
    grad, sums = ctx.saved_tensors
    fixed = ctx.scale, ctx.size, ctx.geometry
    dg = dt = None
    if ctx.needs_input_grad[0]:
        dg = ops.contract(sums, dw.to(grad.dtype), None, None, *fixed, ctx.backend)
    if ctx.needs_input_grad[1]:
        dt = ops.expand(grad, dw, *fixed, ctx.backend)
    return dg, dt, None, None, None, None, None


def _chain_by_parts(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    geometry: Sizes, backend: str,
) -> Tensor:  # fmt: skip
    """The chain of operators that have derivatives."""
    size, kernel = x.shape[2:], weight.shape[2:]
    sums = ops.band_sums(x, kernel, geometry, backend)
    return ops.contract(sums, weight, bias, multiplier, scale, size, geometry, backend)


def _autograd_node(name: str, keep: Any, grad: Any) -> Callable[..., Tensor]:
    """An autograd.Function around the operator; its missing jvp makes forward-mode derivatives an error."""
    operator = getattr(ops, name).default

    def forward(*inputs: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            if peek_interpreter_stack() is None:
                return operator(*inputs)
            # The levels of torch.func below this one differentiate too; a forward switches that off.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return operator(*inputs)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(keep),
        "backward": staticmethod(grad),
    }
    # The operator is called with one level of torch.func's transforms at a time, like any operator;
    # autograd.Function itself would unravel all levels, once more.
    node: Any = type(f"convgap_{name}", (_SingleLevelFunction,), members)

    def differentiable(*inputs: Any) -> Tensor:
        if peek_interpreter_stack() is None:
            return node.apply(*inputs)
        with enable_single_level_autograd_function():
            return node.apply(*inputs)

    return differentiable


_multiply_gap_node = _autograd_node("multiply_gap", _keep_multiply_gap, _multiply_gap_grad)


def _multiply_gap_by_parts(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    """Where the multiplier is differentiated the plane sums are kept for it, not y."""
    if multiplier is None or not multiplier.requires_grad:
        return _multiply_gap_node(y, multiplier, scale, backend)
    mean = ops.plane_sums(y, backend) * (scale / (y.shape[2] * y.shape[3]))
    return (mean * multiplier).to(y.dtype)


def _register(name: str, kernel: Any, differentiable: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operator's kernel, and in front of it its derivative where one is asked for.

    Returns the operator as a function, which leaves the dispatcher out where that is the same.
    """
    operator = getattr(ops, name).default
    # Tensors come first in every schema.
    tensors = sum("Tensor" in str(argument.type) for argument in operator._schema.arguments)

    def autograd(*inputs: Any) -> Tensor:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return differentiable(*inputs)
        if forward_ad._current_level >= 0:
            # An autograd.Function sees tangents, and refuses them; the next line would drop them.
            return differentiable(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    def autograd_or_kernel(*inputs: Any) -> Tensor:
        # A compiled graph calls the operator itself: a second pass through the dispatcher is saved.
        return kernel(*inputs) if direct(*inputs[:tensors]) else autograd(*inputs)

    def call(*inputs: Any) -> Tensor:
        if torch.compiler.is_compiling() or not direct(*inputs[:tensors]):
            return operator(*inputs)
        return kernel(*inputs)

    for device in ("CPU", "CUDA"):
        _library.impl(name, kernel, device)
        _library.impl(name, autograd_or_kernel, f"Autograd{device}")
    _library.impl(name, autograd, "Autograd")
    return call


chain = _register("chain", _chain, _chain_by_parts)
multiply_gap = _register("multiply_gap", _multiply_gap, _multiply_gap_by_parts)
for _name, _kernel, _keep, _grad in (
    ("plane_sums", _plane_sums, _keep_plane_sums, _plane_sums_grad),
    ("band_sums", _band_sums, _keep_band_sums, _band_sums_grad),
    ("contract", _contract, _keep_contract, _contract_grad),
    ("expand", _expand, _keep_expand, _expand_grad),
    ("weight_grad", _weight_grad, _keep_weight_grad, _weight_grad_grad),
    ("band_fill", _band_fill, _keep_band_fill, _band_fill_grad),
):
    _register(_name, _kernel, _autograd_node(_name, _keep, _grad))


# Autocast: the chain casts as torch.nn.functional.conv_transpose2d does. multiply_gap, like the
# product and the mean that it stands for, does not.


def _autocast(device: str) -> Callable[..., Tensor]:
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def chain(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        x, weight = cast(x, dtype), cast(weight, dtype)
        bias = None if bias is None else cast(bias, dtype)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return ops.chain(x, weight, bias, *rest)

    def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    return chain


for _device in ("cpu", "cuda"):
    _library.impl("chain", _autocast(_device), f"Autocast{_device.upper()}")


# Additions and multiplications, for torch.utils.flop_counter.FlopCounterMode: those that are done,
# not those of the convolution that is not.


def _elements(shape: Sizes, *_: Any, **__: Any) -> int:
    n, c, h, w = shape
    return n * c * h * w


def _products(n: int, weight_shape: Sizes) -> int:
    c, c_out, kh, kw = weight_shape
    return 2 * n * c * c_out * kh * kw


@register_flop_formula(ops.chain)
def _chain_flops(x: Sizes, weight: Sizes, *_: Any, **__: Any) -> int:
    return _elements(x) + _products(x[0], weight)


@register_flop_formula([ops.contract, ops.expand])
def _contract_flops(left: Sizes, weight: Sizes, *_: Any, **__: Any) -> int:
    return _products(left[0], weight)


@register_flop_formula(ops.weight_grad)
def _weight_grad_flops(grad: Sizes, *_: Any, out_shape: Sizes, **__: Any) -> int:
    return _products(grad[0], out_shape)


@register_flop_formula(ops.band_fill)
def _band_fill_flops(*_: Any, out_shape: Sizes, **__: Any) -> int:
    return _elements(out_shape)


for _packet in (ops.multiply_gap, ops.plane_sums, ops.band_sums):
    register_flop_formula(_packet)(_elements)
