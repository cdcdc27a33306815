"""Whether a ConvTranspose2d is its weight and its numbers and nothing else."""

from __future__ import annotations

from torch import nn

from runtime.private import hooked


def obstacle(module: nn.Module) -> str:
    """Why a call of `module` may do more than conv_transpose2d with its weight, bias and numbers; "" if it does not.

    A parametrization is no obstacle: the weight that one reads is the weight that the call would read.
    """
    kind = type(module)
    if not isinstance(module, nn.ConvTranspose2d):
        return f"it is a {kind.__name__}, not a ConvTranspose2d"
    if (
        "forward" in vars(module)
        or kind.forward is not nn.ConvTranspose2d.forward
        or kind.__call__ is not nn.Module.__call__
    ):
        return f"it is a {kind.__name__} with a forward of its own"
    if hooked(module):
        return "it has hooks"
    return ""
