"""Autocast: the chain casts as torch.nn.functional.conv_transpose2d does. multiply_gap, like the product and the
mean that it stands for, does not. Importing this module registers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convgap.torch_op.schemas import library, ops


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _chain_under(device: str) -> Callable[..., Tensor]:
    def chain(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        x, weight = _cast(x, dtype), _cast(weight, dtype)
        bias = None if bias is None else _cast(bias, dtype)
        with torch.autocast(device, enabled=False):
            return ops.chain(x, weight, bias, *rest)

    return chain


for _device in ("cpu", "cuda"):
    library.impl("chain", _chain_under(_device), f"Autocast{_device.upper()}")
