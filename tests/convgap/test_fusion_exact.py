"""convgap.fuse keeps what a trace would fix or drop: modes, contexts, randomness, attributes, state, hooks, dtypes."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convgap
from tests.convgap.forwards import (
    KEPT,
    data,
    make,
    normed,
    optional,
    outcome,
)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", KEPT)
def test_the_same_in_both_modes_and_under_autocast(name: str, training: bool, dtype: torch.dtype | None) -> None:
    model = make(KEPT[name])
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    drawn = torch.random.get_rng_state(), random.getstate()
    fused = convgap.fuse(model).model
    assert torch.equal(torch.random.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    for some in (fused, twin):
        some.train(training)
    for _ in range(2):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            results = outcome(fused), outcome(twin)
        for got, expected in zip(*results, strict=True):
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            lax = dtype is not None or "autocast" in name
            # bfloat16 rounds each step to 8 bits in eager, the operator rounds once.
            torch.testing.assert_close(got, expected, rtol=0.05 if lax else 2e-5, atol=0.05 if lax else 2e-6)


@pytest.mark.parametrize("name", KEPT)
def test_the_old_model_stays_as_it_was(name: str) -> None:
    model = make(KEPT[name])
    model.ahead = name  # a local function cannot be pickled
    before = pickle.dumps(model)
    model.ahead = KEPT[name]
    convgap.fuse(model)
    assert model.last is None
    assert model.calls == 0
    assert model.training
    assert type(model.up) is nn.ConvTranspose2d
    model.ahead = name
    assert pickle.dumps(model) == before


FUSED = [
    "under_autocast", "without_autocast", "dropout", "dropout_before", "randomly", "writes", "optional",
    "normed", "constants", "twice", "in_place_before", "in_place_after", "times_itself", "by_name", "scaled by gain",
    "scaled by whole",
    "scaled by mask", "scaled by zero_dim", "without_gradient",
]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_these_are_fused_all_the_same(name: str) -> None:
    fusion = convgap.fuse(make(KEPT[name]))
    assert [found.name for found in fusion.replaced] == ["up"]
    with torch.no_grad():
        steps = convgap.explain(fusion.model.eval(), data()).steps
    assert [step.operator for step in steps] == ["chain"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("in_place_between", "sub_(0.5) may write to its input before its output is used"),
        ("dropout_between", "dropout() follows"),
        ("scaled by wide", "it is multiplied by wide, which makes torch.float64 of its torch.float32"),
        ("scaled by batch", "it is multiplied by batch (2, 1, 1, 1), which has a batch of its own"),
        ("auxiliary", "its result is used 2 times before any pool"),
    ],
)
def test_left_with_its_reason(name: str, why: str) -> None:
    model = make(KEPT[name])
    fusion = convgap.fuse(model)
    assert fusion.model is model
    assert [left.name for left in fusion.left] == ["up"]
    assert why in fusion.left[0].why


def test_optional_arguments_and_attributes_count_when_it_runs() -> None:
    model = make(optional)
    fused: Any = convgap.fuse(model).model
    mask = torch.rand(2, 4)
    torch.testing.assert_close(fused(data(), mask), model(data(), mask), rtol=1e-5, atol=1e-6)
    fused.factor = model.factor = 3.0
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)
    fused.factor = model.factor = torch.rand(2, 4, 1, 1)
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)
    fused.factor = model.factor = torch.rand(2, 4, 8, 10)
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "factor",
    [
        torch.linspace(0.1, 0.9, 4, dtype=torch.float64).reshape(4, 1, 1),
        torch.linspace(0.1, 0.9, 24).reshape(3, 2, 4, 1, 1),
        *(1e39, 1e-40, float("inf"), True, 2j, np.float64(0.5), 0, torch.tensor(2)),
        torch.linspace(0.1, 0.9, 4, dtype=torch.complex64).reshape(4, 1, 1),
    ],
    ids=lambda factor: f"{factor.dtype}{list(factor.shape)}" if isinstance(factor, Tensor) else str(factor),
)
def test_any_factor_gives_the_dtype_and_shape_of_the_steps(factor: Any) -> None:
    model = make(optional)
    fused: Any = convgap.fuse(model).model
    fused.factor = model.factor = factor
    got, expected = fused(data()), model(data())
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("scale", ["channels", "batch"])
def test_scales_that_make_the_output_larger(scale: str) -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 1, 3)
            self.register_buffer("scale", torch.rand(4, 1, 1) if scale == "channels" else torch.rand(3, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.up(x) * self.scale).mean((2, 3))

    model = Wider()
    fusion = convgap.fuse(model)
    assert "more channels" in fusion.left[0].why or "a batch of its own" in fusion.left[0].why
    x = data()[:1]
    torch.testing.assert_close(fusion.model(x), model(x))


def test_what_is_read_is_the_forward_in_the_mode_it_is_in() -> None:
    model = make(KEPT["auxiliary"])
    fused: Any = convgap.fuse(model.eval()).model
    assert fused is not model
    with torch.no_grad():
        assert [s.operator for s in convgap.explain(fused, data()).steps] == ["chain"]
    pooled, y = fused.train()(data())
    assert type(y) is Tensor
    torch.testing.assert_close(y.mean((2, 3)), pooled, rtol=1e-5, atol=1e-6)


def test_eval_of_the_new_model_leaves_the_old_in_training() -> None:
    model = make(normed)
    fused: Any = convgap.fuse(model).model.eval()
    assert model.norm.training
    assert not fused.norm.training
    assert fused.norm.weight is model.norm.weight
    model.eval()
    fused.train()
    assert not model.norm.training
