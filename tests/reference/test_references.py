"""The literal operator in torch against the oracle: every small case, dtype and layout, and random problems."""

import contextlib
from random import Random
from typing import Any

import pytest
import torch

from harness.cases.case import LAYOUTS, Case, random_chain
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import compare
from harness.numerics.truth import truth, truth_gradients
from reference import eager
from reference.problem import Chain

CASES = [case.small() for case in select(["*"], gpu=False)]
DTYPES = ("float32", "float16", "bfloat16", "float64")


def check(case: Case, inputs: Inputs, dtype: str) -> None:
    """Within the budget that the reference states for itself."""
    true = truth(case.problem, inputs)
    result = compare(
        inputs.call(eager), true.expected, true.magnitude, dtype, eager.depth(case.problem),
        stores=eager.stores(case.problem), floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, dtype: str) -> None:
    check(case, make_inputs(case, "cpu", dtype), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case_name", ["chain/edge/prime", "chain/edge/rectangular", "tail/edge/prime"])
def test_layout(layout: str, case_name: str) -> None:
    # What lies between the elements of a view is NaN: reading it shows.
    (case,) = select([case_name])
    check(case, make_inputs(case, "cpu", layout=layout), "float32")


@pytest.mark.parametrize("seed", range(320))
def test_random_problem(seed: int) -> None:
    dtype = DTYPES[seed % 4]
    chain = random_chain(Random(seed))
    case = Case(
        f"random-{seed}", chain, "drawn", dtype,
        layout=LAYOUTS[seed % len(LAYOUTS)], values="normal", multiplier=(0.5, None, -1.7)[seed % 3],
    )  # fmt: skip
    inputs = make_inputs(case, "cpu")
    check(case, inputs, dtype)


def check_gradients(case: Case, dtype: str) -> None:
    inputs = make_inputs(case, "cpu", dtype)
    tracked, leaves = inputs.tracked()
    out = tracked.call(eager)
    grad = torch.rand(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype) - 0.5
    true = truth_gradients(case.problem, inputs, grad)
    # Backward adds over samples, output channels and taps, each in any order; eager besides over all
    # positions of y, on CPU really one after the other: its bias gradient is off by up to 1e-3.
    p = case.problem
    depth = eager.depth(p) + p.n + p.out_shape[1]
    if isinstance(p, Chain):
        depth += p.out_shape[1] * p.kernel[0] * p.kernel[1]
        depth += p.n * p.out_size(0) * p.out_size(1)
    for key, got in zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True):
        t = true[key]
        result = compare(got, t.expected, t.magnitude, dtype, depth, floor=t.floor, reference_depth=t.depth, stores=2)
        assert result.passed, (key, result.message)


# Not what is not finite, cropped or not: torch's CPU weight gradient multiplies it by zero, and Inf * 0 is NaN.
GRADIENTS = [case for case in CASES if not case.values.startswith("nonfinite")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", GRADIENTS, ids=lambda case: case.name)
def test_gradients_of_a_case(case: Case, dtype: str) -> None:
    check_gradients(case, dtype)


@pytest.mark.parametrize("seed", range(40))
def test_gradients_of_a_random_problem(seed: int) -> None:
    case = Case(f"gradient-{seed}", random_chain(Random(3000 + seed)), "drawn", values="normal", multiplier=None)
    check_gradients(case, ("float32", "float64")[seed % 2])


def test_ieee_float32_pins_and_restores() -> None:
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
    before = [s.fp32_precision for s in switches]
    try:
        backends.cuda.matmul.fp32_precision = "tf32"
        with contextlib.suppress(KeyError), eager.ieee_float32():
            assert [s.fp32_precision for s in switches] == ["ieee"] * 3
            raise KeyError
        assert [s.fp32_precision for s in switches] == ["tf32", *before[1:]]
    finally:
        backends.cuda.matmul.fp32_precision = before[0]


def test_ieee_float32_leaves_the_older_switches_readable() -> None:
    before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    with eager.ieee_float32():
        pass
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("seed", range(50))
def test_taps_bounds_how_many_products_meet(seed: int) -> None:
    # All ones: an output element counts its products.
    chain = random_chain(Random(4000 + seed))
    y = torch.nn.functional.conv_transpose2d(
        torch.ones(1, 1, chain.h, chain.w), torch.ones(1, 1, *chain.kernel), None,
        chain.stride, chain.padding, chain.output_padding, 1, chain.dilation,
    )  # fmt: skip
    assert y.max().item() <= eager.taps(chain) <= chain.kernel[0] * chain.kernel[1]
