"""Whether a backend runs here at all: what a test of it asks first."""

import pytest
import torch

import convgap


def require(backend: str, device: torch.device | str) -> None:
    """Skip, with the reason, where a backend cannot run."""
    status = {status.name: status for status in convgap.status(device)}[backend]
    if not status.usable:
        pytest.skip(f"{backend} is not usable on {device}: {status.reason}")
