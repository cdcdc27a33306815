"""Whether a backend runs here at all: what a test of it asks first."""

import pytest
import torch

import convgap

# Triton's interpreter takes seconds for what a GPU, or the CUDA C++ interpreter, does in milliseconds.
TRITON = pytest.param("triton", marks=[] if torch.cuda.is_available() else pytest.mark.slow)
"""The backend as a test's parameter, where the other backends are asked the same in every run."""


def require(backend: str, device: torch.device | str) -> None:
    """Skip, with the reason, where a backend cannot run."""
    status = {status.name: status for status in convgap.status(device)}[backend]
    if not status.usable:
        pytest.skip(f"{backend} is not usable on {device}: {status.reason}")
