"""Whether a ConvTranspose2d is its weight and its numbers and nothing else."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as globally


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to the module's calls: weight_norm, spectral_norm and pruning do so too."""
    of_calls = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    of_all_calls = (
        globally._global_forward_pre_hooks,
        globally._global_forward_hooks,
        globally._global_backward_pre_hooks,
        globally._global_backward_hooks,
    )
    return any(of_calls) or any(of_all_calls)


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
