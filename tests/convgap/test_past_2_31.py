"""Tensors of more than 2**31 elements, expanded and really stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import convgap
from convgap.selection import BACKENDS
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import make_inputs
from harness.numerics.budget import compare
from harness.numerics.truth import truth
from tests.convgap.answers import additions
from tests.usable import require

# Their oracle would need 40 GiB and minutes for each, but for what is expanded.
BEYOND = [case for case in select(["*/past-2*"]) if "expanded" in case.layout]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="tensors of 4 GiB and more take a GPU")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", BEYOND, ids=lambda case: case.name)
def test_past_2_31_elements(backend: str, case: Case, device: torch.device) -> None:
    # All rows (or samples) are the same ones, so that two of them have the same mean.
    require(backend, device)
    few = {"h": 2} if case.layout == "expanded_rows" else {"n": 2}
    small = replace(case.problem, **few)  # pyright: ignore[reportArgumentType]
    true = truth(small, make_inputs(replace(case, problem=small), "cpu"))
    inputs = make_inputs(case, device)
    out = inputs.call(convgap, backend=backend)
    expected, magnitude = (values[:1].repeat(case.problem.n, 0) for values in (true.expected, true.magnitude))
    result = compare(
        out, expected, magnitude, case.dtype, additions(backend, case, inputs),
        floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message


# Elements past 2**31 are 1 and all others 0: an offset that wraps reads zeros, or crashes.
SIDE = 46_342  # its square is the first past 2**31; 4 GiB in float16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["tail", "chain"])
def test_past_2_31_elements_really_stored(backend: str, op: str, device: torch.device) -> None:
    require(backend, device)
    y = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float16, device=device)
    ones = SIDE * SIDE - 2**31
    y.view(-1)[2**31 :] = 1
    # Scaled so that the answer is 1, within a rounding of float16.
    factor = SIDE * SIDE / ones
    if op == "tail":
        out = convgap.multiply_gap(y, factor, backend=backend)
    else:
        weight = torch.ones(1, 1, 1, 1, dtype=torch.float16, device=device)
        out = convgap.conv_transpose2d_multiply_gap(y, weight, multiplier=factor, backend=backend)
    assert out.item() == pytest.approx(1, rel=2**-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_past_2_31_elements_really_stored(backend: str, device: torch.device) -> None:
    require(backend, device)
    y = torch.zeros(32_800, 64, 32, 32, dtype=torch.float16, device=device)
    y[-1] = 1
    out = convgap.multiply_gap(y, 3.0, backend=backend).flatten(1)
    assert (out[-1] == 3).all()
    assert not out[:-1].any()
