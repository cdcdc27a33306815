"""A model with two heads trains to the same losses, step by step and fused, on every backend."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import convgap
from convgap.selection import status_of

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train.py"))


def losses(model: Any, steps: int, device: torch.device, dtype: torch.dtype) -> list[float]:
    torch.manual_seed(0)
    fresh = model()
    return EXAMPLE["train"](fresh, steps, device, dtype)


@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_loss_curve(backend: str, device: torch.device) -> None:
    status = status_of(backend, device)
    if not status.usable:
        pytest.skip(f"{backend} is not usable here: {status.reason}")
    # Interpreted kernels are slow: a few steps show that every gradient reached its parameter.
    steps = 3 if status.how == "interpreter" else 20
    fused = type("Fused", (EXAMPLE["Fused"],), {"backend": backend})
    before = losses(EXAMPLE["Eager"], steps, device, torch.float64)
    after = losses(fused, steps, device, torch.float64)
    assert before[-1] < before[0]
    # A step differs by its sums' rounding, some 1e-15; a smooth loss lets that grow by a factor per step.
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)


def test_loss_curve_float32(device: torch.device) -> None:
    fused = type("Fused", (EXAMPLE["Fused"],), {"backend": "torch"})
    before = losses(EXAMPLE["Eager"], 20, device, torch.float32)
    after = losses(fused, 20, device, torch.float32)
    # 20 steps of at most a few units of 6e-8 each; TF32 convolutions on a GPU are 2^-11 per operand.
    torch.testing.assert_close(after, before, rtol=1e-5 if device.type == "cpu" else 2e-2, atol=0)
