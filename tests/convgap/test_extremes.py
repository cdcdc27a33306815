"""Numbers at the ends of their formats, in every backend: what is representable must come out, the rest as Inf or 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import convgap
from convgap.selection import BACKENDS
from harness.cases.case import Case
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import compare
from harness.numerics.depth import depth as depth_of
from harness.numerics.truth import truth, truth_gradients
from reference.problem import Chain, Problem, Tail
from tests.usable import require

CHAIN = Chain(2, 2, 3, 4, 5, (2, 2))
TAIL = Tail(2, 3, 4, 5)
# One band for all 16 taps: their weights may be added before the product.
ONE_BAND = Chain(2, 3, 2, 2, 2, (4, 4), (4, 4))


def check(backend: str, device: torch.device, problem: Problem, inputs: Inputs, dtype: str) -> None:
    require(backend, device)
    true = truth(problem, inputs)
    got = inputs.call(convgap, backend=backend)
    depth = depth_of(backend, problem, inputs.x.dtype, inputs.x.stride(), inputs.x.data_ptr())
    result = compare(got, true.expected, true.magnitude, dtype, **true.plan(depth))
    assert result.passed, result.message


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("multiplier", [1e39, -3e39, 1e-39, 1e-42])
@pytest.mark.parametrize("problem", [CHAIN, TAIL], ids=["chain", "tail"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_multiplier_that_is_no_float32(
    backend: str, problem: Problem, multiplier: float, dtype: str, device: torch.device
) -> None:
    # Small with the large multipliers, large with the small ones: answers of about 1.
    case = Case("extreme", problem, "drawn", dtype=dtype, values="normal", multiplier=multiplier)
    inputs = make_inputs(case, device)
    if dtype in ("float32", "bfloat16", "float64"):
        size = 1e-38 if abs(multiplier) > 1 else 1e37
        bias = None if inputs.bias is None else inputs.bias * size
        check(backend, device, problem, replace(inputs, x=inputs.x * size, bias=bias), dtype)
    check(backend, device, problem, inputs, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bias_is_not_added_up(backend: str, dtype: str, device: torch.device) -> None:
    # 30 outputs a plane, each beyond a tenth of the largest number: their sum would overflow, their mean does not.
    inputs = make_inputs(Case("bias", CHAIN, "drawn", dtype=dtype, values="normal"), device)
    assert inputs.bias is not None
    check(backend, device, CHAIN, replace(inputs, bias=torch.full_like(inputs.bias, 1e38)), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_formats_overflow_to_inf(backend: str, device: torch.device) -> None:
    # Sums beyond 65,504 are kept in float32; only what is stored may overflow, and then as Inf of its sign.
    for problem in (CHAIN, TAIL):
        inputs = make_inputs(Case("half", problem, "drawn", dtype="float16", multiplier=1.0), device)
        for size in (6e4, -6e4):
            x = torch.full_like(inputs.x, size)
            check(backend, device, problem, replace(inputs, x=x), "float16")
            check(backend, device, problem, replace(inputs, x=x, multiplier=3.0), "float16")


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_one_band_overflow_together(backend: str, device: torch.device) -> None:
    inputs = make_inputs(Case("fold", ONE_BAND, "drawn", multiplier=1.0), device)
    assert inputs.weight is not None
    weight = torch.full_like(inputs.weight, 3e38)
    weight[:, 1] = -3e38
    check(backend, device, ONE_BAND, replace(inputs, x=inputs.x * 1e-3, weight=weight), "float32")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_meets_every_tap_of_its_band(backend: str, value: float, device: torch.device) -> None:
    inputs = make_inputs(Case("fold", ONE_BAND, "drawn", multiplier=1.0), device)
    assert inputs.weight is not None
    x, weight = inputs.x.clone(), inputs.weight.abs() + 0.01
    x[1, 1, 0, 1] = value
    # Taps of one sign keep Inf, taps of both make NaN of it, and so does a zero.
    weight[:, 1, 2, 2] *= -1
    check(backend, device, ONE_BAND, replace(inputs, x=x, weight=weight), "float32")
    weight[:, 1, 2, 2] = 0
    check(backend, device, ONE_BAND, replace(inputs, x=x, weight=weight), "float32")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("multiplier", [1e39, 1e-39])
@pytest.mark.parametrize("problem", [CHAIN, TAIL], ids=["chain", "tail"])
def test_gradients_for_a_multiplier_that_is_no_float32(
    backend: str, problem: Problem, multiplier: float, device: torch.device
) -> None:
    require(backend, device)
    inputs = make_inputs(Case("extreme", problem, "drawn", values="normal", multiplier=multiplier), device)
    tracked, leaves = inputs.tracked()
    out = tracked.call(convgap, backend=backend)
    grad = torch.full_like(out, 1e-4 if multiplier > 1 else 1e34)
    true = truth_gradients(problem, inputs, grad)
    found = torch.autograd.grad(out, list(leaves.values()), grad)
    for name, got in zip(leaves, found, strict=True):
        t = true[name]
        # Of the floor, which is as large as the factors: what is flushed must still be a small part of the answer.
        result = compare(got, t.expected, t.magnitude, "float32", 200, reference_depth=t.depth)
        assert result.passed, (name, result.message)
