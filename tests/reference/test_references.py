"""The two torch references against the oracle: every small case, dtype and layout, and random problems."""

import contextlib
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.cases.case import LAYOUTS, Case, random_chain
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import compare
from harness.numerics.truth import truth, truth_gradients
from reference import eager
from reference.problem import Chain
from torch_impl import bands

CASES = [case.small() for case in select(["*"], gpu=False)]
DTYPES = ("float32", "float16", "bfloat16", "float64")
REFERENCES = {"eager": eager, "collapsed": bands}


def check(name: str, case: Case, inputs: Inputs, dtype: str) -> None:
    """Within the budget that the reference states for itself."""
    module, true = REFERENCES[name], truth(case.problem, inputs)
    stores = eager.stores(case.problem) if module is eager else 1
    result = compare(
        inputs.call(module), true.expected, true.magnitude, dtype, module.depth(case.problem),
        stores=stores, floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", REFERENCES)
def test_case(name: str, case: Case, dtype: str) -> None:
    check(name, case, make_inputs(case, "cpu", dtype), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("case_name", ["chain/edge/prime", "chain/edge/rectangular", "tail/edge/prime"])
def test_layout(name: str, layout: str, case_name: str) -> None:
    # What lies between the elements of a view is NaN: reading it shows.
    (case,) = select([case_name])
    check(name, case, make_inputs(case, "cpu", layout=layout), "float32")


@pytest.mark.parametrize("seed", range(320))
def test_random_problem(seed: int) -> None:
    dtype = DTYPES[seed % 4]
    chain = random_chain(Random(seed))
    case = Case(
        f"random-{seed}", chain, "drawn", dtype,
        layout=LAYOUTS[seed % len(LAYOUTS)], values="normal", multiplier=(0.5, None, -1.7)[seed % 3],
    )  # fmt: skip
    inputs = make_inputs(case, "cpu")
    for name in REFERENCES:
        check(name, case, inputs, dtype)


def check_gradients(name: str, case: Case, dtype: str) -> None:
    inputs, module = make_inputs(case, "cpu", dtype), REFERENCES[name]
    tracked, leaves = inputs.tracked()
    out = tracked.call(module)
    grad = (
        torch.rand(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
        - 0.5
    )
    true = truth_gradients(case.problem, inputs, grad)
    # Backward adds over samples, output channels and taps, each in any order; eager besides over all
    # positions of y, on CPU really one after the other: its bias gradient is off by up to 1e-3.
    p = case.problem
    depth = module.depth(p) + p.n + p.out_shape[1]
    if isinstance(p, Chain):
        depth += p.out_shape[1] * p.kernel[0] * p.kernel[1]
        depth += p.n * p.out_size(0) * p.out_size(1) if module is eager else 0
    for key, got in zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad), strict=True):
        t = true[key]
        result = compare(
            got, t.expected, t.magnitude, dtype, depth, floor=t.floor, reference_depth=t.depth, stores=2
        )
        assert result.passed, (key, result.message)


# Not eager on what is not finite and cropped: torch's CPU weight gradient multiplies it by zero, and Inf * 0 is NaN.
GRADIENTS = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in REFERENCES
    for case in CASES
    if case.values != "nonfinite" and not (name == "eager" and case.values == "nonfinite_cropped")
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "case"), GRADIENTS)
def test_gradients_of_a_case(name: str, case: Case, dtype: str) -> None:
    check_gradients(name, case, dtype)


@pytest.mark.parametrize("seed", range(40))
def test_gradients_of_a_random_problem(seed: int) -> None:
    case = Case(
        f"gradient-{seed}", random_chain(Random(3000 + seed)), "drawn", values="normal", multiplier=None
    )
    for name in REFERENCES:
        check_gradients(name, case, ("float32", "float64")[seed % 2])


def test_collapsed_gradcheck_without_a_band() -> None:
    # Hout = 1 and the taps land on -1 and 1: x and weight get zeros, not None.
    x, weight = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 1, 1), (3, 2, 2, 2))
    )
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def call(*leaves: Tensor) -> Tensor:
        return bands.conv_transpose2d_multiply_gap(*leaves, stride=4, padding=1, dilation=2)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.equal(call(x, weight, bias), bias[:, None, None].expand(2, 2, 1, 1))


def test_band_sums_by_hand() -> None:
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    got = bands.band_sums(x, [(1, 3), (0, 3), (0, 2)], [(0, 4), (2, 3)])
    assert got.tolist() == [[[[60.0, 16.0], [66.0, 18.0], [28.0, 8.0]]]]
    assert bands.band_sums(x, [], [(0, 4)]).shape == (1, 1, 0, 1)


def test_weight_of_a_blind_tap_is_not_used() -> None:
    # Tap row 2 of the headline's structure sees nothing of a one-row input cropped to two rows.
    chain = Chain(1, 1, 1, 1, 1, (3, 3), (2, 2), (1, 1))
    assert chain.bands(0) == ((1, 1), (0, 1), (0, 0))
    weight = torch.full(chain.weight_shape, torch.inf)
    weight[:, :, 1, 1] = 3
    out = bands.conv_transpose2d_multiply_gap(torch.full((1, 1, 1, 1), 2.0), weight, stride=2, padding=1)
    assert out.item() == 6


def test_collapsed_keeps_its_precision_under_the_users_settings() -> None:
    (case,) = select(["chain/edge/many-channels"])
    inputs = make_inputs(case, "cpu")
    plain = inputs.call(bands)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(inputs.call(bands), plain)
    finally:
        torch.set_float32_matmul_precision(before)


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
