"""What takes the place of a ConvTranspose2d in a fused model, and the edges of the modules that hold one."""

from __future__ import annotations

from functools import partial
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convgap.pending import Pending, pending, real
from runtime.private import hooked, tree_map


class WaitingConvTranspose2d(nn.ConvTranspose2d):
    """A ConvTranspose2d that answers with a Pending where it may."""

    how: dict[str, str]
    """Strategy and backend of the operator."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Any:  # noqa: A002
        answer = None
        if output_size is None and not hooked(self):
            options = self.stride, self.padding, self.output_padding, self.dilation, self.groups
            answer = pending(input, self.weight, self.bias, options, self.how)
        return super().forward(input, output_size) if answer is None else answer


def exchange(layer: Any, how: dict[str, str]) -> None:
    """Make a ConvTranspose2d wait, which has parameters, hooks and state_dict keys as before."""
    layer.__class__ = WaitingConvTranspose2d
    layer.how = how


def hold(module: nn.Module, how: dict[str, str] | None) -> None:
    """Let nothing leave `module` that is still to be computed; with `how` the function conv_transpose2d waits in it."""
    module.register_forward_hook(_finish, prepend=True)
    if how is not None:
        module.register_forward_pre_hook(partial(_enter, how=how), prepend=True)
        module.register_forward_hook(_leave, prepend=True, always_call=True)


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
    ) -> Pending | None:  # fmt: skip
        return pending(input, weight, bias, (stride, padding, output_padding, dilation, groups), self.how)


_inside = local()


def _enter(module: nn.Module, args: Any, how: dict[str, str]) -> None:
    if not torch.compiler.is_compiling():
        mode = _Functions(how)
        mode.__enter__()
        _inside.modes = [*getattr(_inside, "modes", []), (module, mode)]


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    # Called even where the forward raised, and where another hook did before _enter.
    modes = getattr(_inside, "modes", [])
    if modes and modes[-1][0] is module:
        modes.pop()[1].__exit__(None, None, None)


def _finish(module: nn.Module, args: Any, output: Any) -> Any:
    return None if type(output) is Tensor else tree_map(real, output)
