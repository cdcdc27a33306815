"""Outputs of more rows than 30 or 31 bits count, which no backend stores: sizes worked out from strides, paddings and
dilations are right whatever their width."""

from __future__ import annotations

import pytest
import torch

import convgap
from convgap.selection import BACKENDS
from tests.usable import require


@pytest.mark.parametrize("stride", [2**30, 2**31, 2**40])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_rows_far_apart(backend: str, axis: int, stride: int) -> None:
    """Both elements land, stride rows apart: their mean times the number of rows is their sum."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    require(backend, device)
    x = torch.ones((1, 1, 2, 1) if axis == 0 else (1, 1, 1, 2), device=device, requires_grad=True)
    weight = torch.ones(1, 1, 1, 1, device=device, requires_grad=True)
    strides = (stride, 1) if axis == 0 else (1, stride)
    out = convgap.conv_transpose2d_multiply_gap(
        x, weight, multiplier=float(stride + 1), stride=strides, backend=backend
    )
    assert out.item() == 2.0
    dx, dw = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.flatten().tolist() == [1.0, 1.0]
    assert dw.item() == 2.0
