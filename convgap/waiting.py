"""What takes the place of a ConvTranspose2d in a fused model, and the edges of the modules that hold one."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache, partial
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convgap.arguments import (
    DTYPES,
    autocast_to,
    check_like,
    check_planes,
    conv_size,
    geometry_of,
    options_of,
)
from convgap.functions import conv_transpose2d_multiply_gap
from convgap.pending import PLAIN, Pending
from convgap.stand_in import real, stand_in
from runtime.private import WRAPPERS, hooked, transforms, tree_map


class WaitingConvTranspose2d(nn.ConvTranspose2d):
    """A ConvTranspose2d that answers later where it may."""

    how: dict[str, str]
    """Strategy and backend of the operator."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Any:  # noqa: A002
        answer = None
        if output_size is None and not hooked(self):
            options = self.stride, self.padding, self.output_padding, self.dilation, self.groups
            answer = _later(input, self.weight, self.bias, options, self.how)
        return super().forward(input, output_size) if answer is None else answer


def exchange(layer: Any, how: dict[str, str]) -> None:
    """Make a ConvTranspose2d wait, which has parameters, hooks and state_dict keys as before."""
    layer.__class__ = WaitingConvTranspose2d
    layer.how = how


def hold(module: nn.Module, how: dict[str, str] | None) -> None:
    """Let layers wait while `module` is called, and nothing leave it that is still to be computed; with `how` the
    function conv_transpose2d waits in it too."""
    module.register_forward_pre_hook(partial(_enter, how=how), prepend=True)
    module.register_forward_hook(_finish, prepend=True)
    module.register_forward_hook(_leave, prepend=True, always_call=True)


def _later(x: Any, weight: Any, bias: Any, options: tuple[Any, ...], how: dict[str, str]) -> Any:
    """What stands for the output of the convolution; None where it has to be computed now."""
    if torch.compiler.is_compiling():
        return _pending(x, weight, bias, options, how)
    # Outside a call of the module that holds the pattern nobody pools. A transform of torch.func takes tensors apart.
    if not getattr(_inside, "modules", None) or not WRAPPERS or transforms() is not None:
        return None
    later = _pending(x, weight, bias, options, how)
    return None if later is None else stand_in(later)


def _pending(x: Any, weight: Any, bias: Any, options: tuple[Any, ...], how: dict[str, str]) -> Pending | None:
    """conv_transpose2d(x, weight, bias, ...), to be computed later; None where it has to be computed now.

    options  stride, padding, output_padding, dilation, groups
    how      strategy and backend of the operator
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not all(type(tensor) in PLAIN for tensor in tensors) or torch.jit.is_tracing():  # pyright: ignore
        return None
    shapes = x.shape, weight.shape, None if bias is None else bias.shape
    # While a compiler traces, sizes may be symbols, which cannot be looked up.
    sizes = _sizes.__wrapped__ if torch.compiler.is_compiling() else _sizes
    try:
        check_planes("x", x)
        check_like("weight", weight, x)
        if bias is not None:
            check_like("bias", bias, x)
        (stride, padding, output_padding, dilation, groups), shape = sizes(*shapes, *options)
    except (TypeError, ValueError):
        return None  # torch's own convolution takes it, or says why not
    dtype = x.dtype
    narrowed = autocast_to(x.device.type)
    if narrowed is not None:
        if any(tensor.dtype not in DTYPES[:3] for tensor in tensors):
            return None
        dtype = narrowed

    def step_by_step(_: Any) -> Tensor:
        # Not the function of the same name: inside a model that calls it, it would wait again.
        call = torch.ops.aten.conv_transpose2d.input
        return call(x, weight, bias, stride, padding, output_padding, groups, dilation)

    def fused(multiplier: float | Tensor) -> Tensor:
        return conv_transpose2d_multiply_gap(
            x, weight, bias, multiplier=multiplier, stride=stride, padding=padding, output_padding=output_padding,
            groups=groups, dilation=dilation, **how,
        )  # fmt: skip

    return Pending(torch.Size(shape), dtype, x.device, tensors, step_by_step, fused)


@lru_cache(maxsize=1024)
def _sizes(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: Any
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """The options as torch takes them, and the shape of the convolution's output. Raises what is raised for sizes that
    the operator does not take."""
    numbers = options_of(stride, padding, output_padding, dilation, groups, "collapsed")
    geometry_of(x, weight, bias, *numbers)
    rows, columns = (conv_size(axis, x, weight, *numbers[:4]) for axis in (0, 1))
    return numbers[:5], (*x[:-3], weight[1] * numbers[4], rows, columns)


class _Functions(TorchFunctionMode):
    """In it conv_transpose2d, called as a function, answers with a Pending where it may."""

    def __init__(self, how: dict[str, str]) -> None:
        super().__init__()
        self.how = how

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = None
        if func is F.conv_transpose2d:
            answer = self._called(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if answer is None else answer

    def _called(
        self, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,  # noqa: A002
        output_padding: Any = 0, groups: Any = 1, dilation: Any = 1,
    ) -> Tensor | None:  # fmt: skip
        return _later(input, weight, bias, (stride, padding, output_padding, dilation, groups), self.how)


_inside = local()
"""`modules` of this thread: those that hold a pattern and are being called, each with its mode."""


def _enter(module: nn.Module, args: Any, how: dict[str, str] | None) -> None:
    if not torch.compiler.is_compiling():
        mode = nullcontext() if how is None else _Functions(how)
        mode.__enter__()
        _inside.modules = [*getattr(_inside, "modules", []), (module, mode)]


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    # Called even where the forward raised, and where another hook did before _enter.
    modules = getattr(_inside, "modules", [])
    if modules and modules[-1][0] is module:
        modules.pop()[1].__exit__(None, None, None)


def _finish(module: nn.Module, args: Any, output: Any) -> Any:
    return None if type(output) is Tensor else tree_map(real, output)
