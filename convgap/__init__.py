"""ConvTranspose2d -> multiply -> global average pool in one pass: Triton, CUDA C++ or plain torch."""

from __future__ import annotations

from dataclasses import replace

import torch

from convgap import fast
from convgap.any_size import warmup_sizes
from convgap.explanation import Explanation, explain, specialize, warmup
from convgap.functions import conv_transpose2d_multiply_gap, multiply_gap
from convgap.fusion import Fusion, fuse
from convgap.module import ConvTranspose2dMultiplyGAP
from convgap.selection import BACKENDS, Status, status_of

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "ConvTranspose2dMultiplyGAP",
    "Explanation",
    "Fusion",
    "Status",
    "conv_transpose2d_multiply_gap",
    "explain",
    "fuse",
    "multiply_gap",
    "specialize",
    "status",
    "warmup",
    "warmup_sizes",
]


def status(device: torch.device | str | None = None) -> list[Status]:
    """Each backend on `device` (default: the current CUDA device if there is one, else the CPU).

    Raises ValueError for a name that torch has no device of, TypeError for what is neither a device nor a name.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device: expected a torch.device or its name, got {type(device).__name__}")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected the name of a device of torch's, got {device!r}") from None
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    found = [status_of(name, device) for name in BACKENDS]
    return [replace(s, calls=fast.state()) if s.how == "compiled" else s for s in found]
