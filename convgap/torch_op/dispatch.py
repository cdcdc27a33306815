"""From a call to its kernel: straight, through one autograd node, or through torch's dispatcher.

Importing this module registers the operators' kernels and derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convgap import plans
from convgap.torch_op import kernels
from convgap.torch_op.derivatives import DERIVATIVES, ChainNode, Dispatched, TailNode, straight
from convgap.torch_op.schemas import library, ops
from reference.problem import Chain, Geometry
from runtime import private


def chain(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    backend: str,
) -> Tensor:  # fmt: skip
    """The chain on checked tensors, [n, c_out, 1, 1]; the multiplier has the output's shape and the accumulator's
    dtype."""
    if not private.ordinary(x, weight, bias, multiplier):
        return ops.chain(x, weight, bias, multiplier, scale, *problem.geometry, backend)
    kind = straight(problem, x, weight, bias, multiplier, backend)
    if kind is not None:
        return ChainNode.apply(x, weight, bias, multiplier, scale, kind, None)[0]
    return kernels.chain(problem, x, weight, bias, multiplier, scale, backend)


def multiply_gap(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    """The tail on checked tensors, [n, c, 1, 1]."""
    if not private.ordinary(y, multiplier):
        return ops.multiply_gap(y, multiplier, scale, backend)
    if torch.is_grad_enabled():
        if multiplier is not None and multiplier.requires_grad:
            return _multiply_gap_by_parts(y, multiplier, scale, backend)
        if y.requires_grad:
            return TailNode.apply(y, multiplier, scale, backend, None)
    return kernels.multiply_gap(y, multiplier, scale, backend)


def _node(name: str, operator: Any, keep: Any, grad: Any) -> Callable[..., Tensor]:
    """An autograd.Function around the operator; its missing jvp makes forward-mode derivatives an error."""

    def forward(*inputs: Any) -> Tensor:
        with private.below_autograd():
            if private.transforms() is None:
                return operator(*inputs)
            # The levels of torch.func below this one differentiate too; a forward switches that off.
            with torch.enable_grad(), private.forward_mode(True):
                return operator(*inputs)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(keep),
        "backward": staticmethod(grad),
    }
    # The operator is called with one level of torch.func's transforms at a time, like any operator;
    # autograd.Function itself would unravel all levels, once more.
    node: Any = type(f"convgap_{name}", (private.Function,), members)

    def differentiable(*inputs: Any) -> Tensor:
        if private.transforms() is None:
            return node.apply(*inputs)
        with private.single_level():
            return node.apply(*inputs)

    return differentiable


def _autograd(
    operator: Any, differentiable: Callable[..., Tensor], straight: Callable[..., Tensor] | None
) -> Callable[..., Tensor]:
    """What the dispatcher calls for an operator whose tensors may want derivatives."""
    # Tensors come first in every schema.
    count = sum("Tensor" in str(argument.type) for argument in operator._schema.arguments)

    def autograd(*inputs: Any) -> Tensor:
        tensors = inputs[:count]
        wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        # An autograd.Function sees tangents, and refuses them; below they would be dropped.
        if wanted or private.has_tangent(*tensors):
            return differentiable(*inputs)
        # A compiled graph calls the operator itself: a second pass through the dispatcher is saved.
        if straight is not None and private.ordinary(*tensors):
            return straight(*inputs)
        with private.below_autograd():
            return operator(*inputs)

    return autograd


def _chain_by_parts(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float, *rest: Any
) -> Tensor:
    """The chain of operators that have derivatives."""
    *geometry, backend = rest
    steps = Dispatched(Geometry._make(geometry), x.shape[2:], weight.shape[2:], backend)
    return steps.contract(steps.band_sums(x), weight, bias, multiplier, scale)


def _multiply_gap_by_parts(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    """The plane sums are kept for the multiplier, not y."""
    # In float64, where no multiplier is too large or too small.
    mean = ops.plane_sums(y, backend).double() * (scale / (y.shape[2] * y.shape[3]))
    return (mean if multiplier is None else mean * multiplier).to(y.dtype)


def _register() -> None:
    """Every operator's kernel, and in front of it its derivative where one is asked for."""
    plans.differentiate(ChainNode.apply, straight, TailNode.apply)
    for name, kernel in kernels.KERNELS.items():
        for device in ("CPU", "CUDA"):
            library.impl(name, kernel, device)
    if not private.NODES:
        # The public way to register derivatives. An operator that is differentiated as others are is made of them.
        for name, (keep, grad) in DERIVATIVES.items():
            if name != "multiply_gap":
                torch.library.register_autograd(f"convgap::{name}", grad, setup_context=keep, lib=library)
        library.impl("chain", _chain_by_parts, "Autograd")
        library.impl("multiply_gap", _multiply_gap_by_parts, "Autograd")
        return

    nodes = {name: _node(name, getattr(ops, name).default, keep, grad) for name, (keep, grad) in DERIVATIVES.items()}

    def multiply_gap(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
        by_parts = multiplier is not None and multiplier.requires_grad
        return (_multiply_gap_by_parts if by_parts else nodes["multiply_gap"])(y, multiplier, scale, backend)

    for name, differentiable in {**nodes, "chain": _chain_by_parts, "multiply_gap": multiply_gap}.items():
        operator = getattr(ops, name).default
        for device in ("CPU", "CUDA"):
            library.impl(name, _autograd(operator, differentiable, kernels.KERNELS[name]), f"Autograd{device}")
        library.impl(name, _autograd(operator, differentiable, None), "Autograd")


_register()
