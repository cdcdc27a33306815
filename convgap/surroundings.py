"""What changes what an operator of torch does, beside its arguments: modes, autocast, writes to its tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from convgap.arguments import autocast_to, has_autocast

State: TypeAlias = "tuple[bool, bool, torch.dtype | None]"
"""Whether gradients are recorded, whether in inference mode, and what autocast casts to."""


def state_of(device: torch.device) -> State:
    """What changes what an operator of torch does, beside its arguments."""
    inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    return torch.is_grad_enabled(), inference, autocast_to(device.type)


def restored(state: State, device: torch.device) -> ExitStack:
    grad, inference, narrowed = state
    stack = ExitStack()
    if state != state_of(device):
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(grad))
        if has_autocast(device.type):
            stack.enter_context(torch.autocast(device.type, narrowed, narrowed is not None))
    return stack


def versions_of(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    """How often each was written to; a compiler keeps the order of writes and reads itself."""
    if torch.compiler.is_compiling():
        return ()
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors)


@cache
def mean_under_autocast(
    function: Callable[..., Any], dtype: torch.dtype, device: str, autocast: torch.dtype
) -> torch.dtype:
    """What autocast to `autocast`, which is in force, makes of a mean over planes: asked of a small one."""
    one = torch.ones((1, 1, 1, 1), dtype=dtype, device=device)
    return (function(one, 1) if function is F.adaptive_avg_pool2d else function(one, (2, 3))).dtype
