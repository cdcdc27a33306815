"""A tensor, for all of torch, whose values nobody has needed yet.

Functions of torch that Python calls come to `__torch_function__`, where a Pending answers: it waits further, or is
computed. What C++ does with a tensor behind Python's back (a custom autograd Function, checkpointing, torch.func) comes
to `__torch_dispatch__`, and a gradient from there to `_Link`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convgap.pending import DIVIDE, MEAN, MULTIPLY, Pending
from runtime.private import hooks_on_saved, tree_leaves, tree_map, without_own_answers, wrapper_subclass

_KNOWN = frozenset(
    (
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout")),
        Tensor.dim,
        Tensor.size,
        Tensor.numel,
        Tensor.is_floating_point,
        Tensor.__len__,
    )
)
"""What can be asked without the values."""

_JOINS = frozenset((*MULTIPLY, *DIVIDE, *MEAN, F.adaptive_avg_pool2d))
"""What a Pending may answer and still wait, or be pooled."""

_SCALES = {Tensor.mul_: False, Tensor.div_: True}
"""Products and quotients in place, which `y *= 2` and `y /= 2` are too, and whether it is a quotient."""


def stand_in(later: Pending) -> Tensor:
    """A tensor for what is to be computed later, in the autograd graph where its gradient is wanted."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in later.tensors):
        return _Link.apply(later, *later.tensors)  # pyright: ignore[reportReturnType]
    return StandIn(later)


class StandIn(Tensor):
    """What `stand_in` makes."""

    later: Pending
    hooks: Any
    """On tensors that are saved for a backward, where it was made."""

    @staticmethod
    def __new__(cls, later: Pending) -> StandIn:
        made: Any = wrapper_subclass(cls, later.shape, dtype=later.dtype, device=later.device)
        made.later, made.hooks = later, hooks_on_saved(False)
        return made

    def __init__(self, later: Pending) -> None: ...

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _KNOWN:
            with without_own_answers():
                return func(*args, **kwargs)
        joins = func in _JOINS or func in _SCALES
        # Lists are searched only for functions that take some: the search takes longer than all the rest.
        seen = [*args, *kwargs.values()] if joins else tree_leaves((args, kwargs))
        if not all(map(_may_answer, seen)):
            with without_own_answers():
                return func(*args, **kwargs)
        if not joins:
            return func(*tree_map(real, args), **tree_map(real, kwargs))
        scales = func in _SCALES and type(args[0]) is StandIn and len(args) == 2 and not kwargs
        if scales and not _wants_gradient(args[1]):
            answer = args[0].later.scaled_in_place(func, args[1], _SCALES[func])
            return args[0] if type(answer) is Pending else answer
        named = {name: _later(value) for name, value in kwargs.items()}
        answer = Pending.__torch_function__(func, types, tuple(map(_later, args)), named)
        return stand_in(answer) if type(answer) is Pending else answer

    @classmethod
    def __torch_dispatch__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*tree_map(_values, args), **tree_map(_values, kwargs or {}))


class _Link(torch.autograd.Function):
    """From the gradient of a StandIn, which only what C++ does behind Python's back has, to the tensors it is of."""

    @staticmethod
    def forward(ctx: Any, later: Pending, *tensors: Tensor) -> Tensor:
        ctx.later = later
        return StandIn(later)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        tensors = [tensor for tensor, want in zip(ctx.later.tensors, wanted, strict=False) if want]
        twice = torch.is_grad_enabled()
        found = iter(torch.autograd.grad(ctx.later.anew(), tensors, grad, create_graph=twice))
        return None, *(next(found) if want else None for want in wanted)


def _may_answer(value: Any) -> bool:
    """Whether what Python does with a value may be done with the tensor that it stands for, and that one's gradient.

    Not if a Function has returned it, which puts it in the autograd graph, and not where other hooks than its own see
    what is saved for a backward: checkpointing counts.
    """
    if type(value) is not StandIn or torch.compiler.is_compiling():
        return True
    with without_own_answers():
        node: Any = value.grad_fn
        own = not value.requires_grad if node is None else getattr(node, "later", None) is value.later
    return own and value.hooks == hooks_on_saved(False)


def _wants_gradient(by: Any) -> bool:
    """Whether a factor has a gradient, which the StandIn that it is multiplied into has no link to."""
    return isinstance(by, Tensor) and torch.is_grad_enabled() and by.requires_grad


def real(value: Any) -> Any:
    """The tensor that a StandIn or a Pending stands for; any other value as it is."""
    if type(value) is StandIn:
        value = value.later
    return value.real() if type(value) is Pending else value


def _later(value: Any) -> Any:
    return value.later if type(value) is StandIn else value


def _values(value: Any) -> Any:
    return value.later.values() if type(value) is StandIn else value
