"""Plain torch against the oracle, in each of its forms: every small case, dtype and layout, and random problems.

The forms of a GPU run on a CPU as well: `form` is replaced by one that always says the form.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.cases.case import LAYOUTS, Case, random_chain
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import accumulator, compare
from harness.numerics.truth import Truth, truth
from reference.problem import Chain
from torch_impl import forward
from torch_impl.folding import live

CASES = [case.small() for case in select(["*"], gpu=False)]
CHAINS = [case for case in CASES if case.op == "chain"]
DTYPES = ("float32", "float16", "bfloat16", "float64")
FORMS = ("literal", "folded", "taps", "one band")


def answer(inputs: Inputs, problem: Any) -> Tensor:
    multiplier, scale = inputs.multiplier, 1.0
    if isinstance(multiplier, Tensor):
        acc = getattr(torch, accumulator(str(inputs.x.dtype).removeprefix("torch.")))
        multiplier = multiplier.to(acc).expand(problem.out_shape)
    else:
        multiplier, scale = None, multiplier
    if inputs.weight is None:
        return forward.tail(inputs.x, scale, multiplier)
    return forward.chain(problem, inputs.x, inputs.weight, inputs.bias, scale, multiplier)


def check(case: Case, inputs: Inputs, true: Truth | None = None) -> None:
    true = true or truth(case.problem, inputs)
    got = answer(inputs, case.problem)
    assert got.is_contiguous()
    plan = true.plan(forward.depth(case.problem))
    result = compare(got, true.expected, true.magnitude, case.dtype, **plan)
    assert result.passed, result.message


def force(monkeypatch: pytest.MonkeyPatch, form: str, problem: Chain) -> None:
    if form == "one band" and len(live(problem, 0)) * len(live(problem, 1)) != 1:
        pytest.skip("several bands")
    if form == "literal" and (problem.groups > 1 or not problem.n):
        pytest.skip("torch's convolution of this form takes no groups and no empty batch")
    if form == "taps" and not (live(problem, 0) and live(problem, 1)):
        pytest.skip("no band")
    for name in ("form", "form_of_product"):
        monkeypatch.setattr(forward, name, lambda problem, device: (form, "told"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, dtype: str) -> None:
    case = replace(case, dtype=dtype)
    check(case, make_inputs(case, "cpu"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.name)
def test_case_in_every_form(case: Case, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, form, case.problem)  # pyright: ignore[reportArgumentType]
    check(case, make_inputs(case, "cpu"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case_name", ["chain/edge/prime", "chain/edge/rectangular", "tail/edge/prime"])
def test_layout(layout: str, case_name: str) -> None:
    # What lies between the elements of a view is NaN: reading it shows.
    (case,) = select([case_name])
    check(case, make_inputs(case, "cpu", layout=layout))


@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize("seed", range(80))
def test_random_problem(seed: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = random_chain(Random(seed))
    force(monkeypatch, form, chain)
    case = Case(
        f"random-{seed}", chain, "drawn", DTYPES[seed % 4], layout=LAYOUTS[seed % len(LAYOUTS)],
        values=("normal", "nonfinite", "huge")[seed % 3], multiplier=(0.5, None, -1.7)[seed % 3],
    )  # fmt: skip
    check(case, make_inputs(case, "cpu"))


def test_the_form_is_chosen_by_sizes() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    large = Chain(16, 64, 128, 128, 128, (3, 3), (2, 2), (1, 1), (1, 1))
    latent = Chain(256, 100, 512, 1, 1, (4, 4))
    assert forward.form(Chain(1, 3, 4, 9, 9, (3, 3)), cpu)[0] == "literal"
    assert forward.form(large, cpu)[0] == forward.form(latent, cpu)[0] == "folded"
    # Few numbers to store; but not where the stride makes the output large, or there are many samples or groups.
    for device in (cpu, gpu):
        small = Chain(1, 8, 4, 6, 6, (3, 3), (2, 2), (1, 1))
        assert forward.form(small, device)[0] == "literal"
        for other in (
            {"stride": (2**30, 1)},
            {"stride": (512, 512)},
            {"n": 64},
            {"n": 0},
            {"groups": 2},
            {"c_out": 4096},
        ):
            assert forward.form(replace(small, **other), device)[0] != "literal", (other, device)
    assert forward.form(large, gpu)[0] == "taps"
    assert forward.form(latent, gpu)[0] == "one band"
    # A tap that lands nowhere is no band: 1 x 1 planes under kernel 4, stride 2, padding 1 have one.
    assert forward.form(replace(latent, stride=(2, 2), padding=(1, 1)), gpu)[0] == "one band"


def test_band_sums_by_hand() -> None:
    # Kernel 3, padding 1: the first tap sees all but the first row, the last all but the last.
    chain = Chain(1, 1, 1, 3, 4, (3, 1), padding=(1, 0))
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert forward.band_sums(chain, x).tolist() == [[[[60.0], [66.0], [28.0]]]]


def test_band_sums_are_one_for_each_distinct_band_and_zero_where_empty() -> None:
    for seed in range(60):
        chain = random_chain(Random(seed))
        x = torch.randn(chain.in_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        sums = forward.band_sums(chain, x)
        rows, cols = chain.distinct(0), chain.distinct(1)
        assert sums.shape == (chain.n, chain.c_in, len(rows), len(cols))
        for r, (top, bottom) in enumerate(rows.at(chain.h)):
            for c, (left, right) in enumerate(cols.at(chain.w)):
                expected = x[:, :, top : max(top, bottom), left : max(left, right)].sum((2, 3))
                torch.testing.assert_close(sums[:, :, r, c], expected)


def test_no_switch_reaches_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    # Autocast and a "medium" precision would each err by 2**-9 of an operand: hundreds of budgets.
    before = torch.get_float32_matmul_precision()
    case = Case("switches", Chain(4, 64, 32, 6, 6, (3, 3), (2, 2), (1, 1), (1, 1)), "many products")
    inputs = make_inputs(case, "cpu")
    true = truth(case.problem, inputs)
    for form in FORMS[:3]:
        force(monkeypatch, form, case.problem)  # pyright: ignore[reportArgumentType]
        try:
            torch.set_float32_matmul_precision("medium")
            torch.backends.mkldnn.conv.fp32_precision = "bf16"  # pyright: ignore[reportAttributeAccessIssue]
            check(case, inputs, true)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                check(case, inputs, true)
        finally:
            torch.backends.mkldnn.conv.fp32_precision = "none"  # pyright: ignore[reportAttributeAccessIssue]
            torch.set_float32_matmul_precision(before)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            check(case, inputs, true)


def test_the_product_is_float64_where_torchs_is_not_ieee() -> None:
    before = torch.get_float32_matmul_precision()
    operand = torch.zeros(1)
    assert forward.product_dtype(operand) == torch.float32
    try:
        torch.set_float32_matmul_precision("medium")
        assert forward.product_dtype(operand) == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


# Ways in which a fold could hide what is not finite, or make it. One channel, one element, kernel 1 x 2: both taps have
# the one band, so the answer is x * (w1 + w2) / 2 where nothing is strange.

INF, NAN, HUGE = torch.inf, torch.nan, 3e38
FOLDS = [
    pytest.param(INF, (1.0, -0.5), NAN, id="Inf meets taps of both signs"),
    pytest.param(INF, (1.0, 0.5), INF, id="Inf meets taps of one sign"),
    pytest.param(-INF, (1.0, 0.5), -INF, id="-Inf meets taps of one sign"),
    pytest.param(INF, (1.0, 0.0), NAN, id="Inf meets a zero"),
    pytest.param(INF, (1.0, -1.0), NAN, id="Inf meets taps that cancel"),
    pytest.param(NAN, (1.0, -0.5), NAN, id="NaN stays"),
    pytest.param(1e-3, (HUGE, HUGE), 3e35, id="the weights overflow together, the answer does not"),
    pytest.param(1e-3, (HUGE, -HUGE), 0.0, id="and cancel"),
    pytest.param(1.0, (INF, -INF), NAN, id="infinite weights of both signs"),
    pytest.param(1.0, (INF, 1.0), INF, id="an infinite weight"),
    pytest.param(1.0, (NAN, 1.0), NAN, id="a weight that is NaN"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("value", "taps", "expected"), FOLDS)
def test_a_fold_hides_nothing(
    value: float, taps: tuple[float, float], expected: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(1, 1, 1, 1, 1, (1, 2), (1, 2), bias=False)
    assert len(chain.distinct(1)) == 1
    force(monkeypatch, form, chain)
    x, weight = torch.full((1, 1, 1, 1), value), torch.tensor(taps).reshape(1, 1, 1, 2)
    got = forward.chain(chain, x, weight, None, 1.0, None)
    torch.testing.assert_close(got, torch.full_like(got, expected), equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strange", [INF, -INF, NAN])
def test_what_meets_nothing_reaches_nothing(strange: float, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kernel 3, stride 2, padding 1 on one element: only the middle tap lands.
    chain = Chain(1, 1, 1, 1, 1, (3, 3), (2, 2), (1, 1), bias=False)
    force(monkeypatch, form, chain)
    weight = torch.full(chain.weight_shape, strange)
    weight[:, :, 1, 1] = 3
    assert forward.chain(chain, torch.full((1, 1, 1, 1), 2.0), weight, None, 1.0, None).item() == 6
    # And rows that the padding crops from every tap: kernel 2, padding 2 on five rows leaves three.
    chain = Chain(1, 1, 1, 5, 5, (2, 2), padding=(2, 2), bias=False)
    if form != "one band":
        x = torch.ones(chain.in_shape)
        x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1] = strange, strange, strange, strange
        got = forward.chain(chain, x, torch.ones(chain.weight_shape), None, 1.0, None)
        assert got.item() == 4.0


@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize(
    ("multiplier", "bias", "x", "expected"),
    [
        (1e39, 0.25, 0.0, 2.5e38),
        (1e39, 0.5, -1.0, -1.5e38),
        (1e-39, 1e38, 2e37, 0.095),
        (0.0, 1e38, 1.0, 0.0),
    ],
)
def test_a_multiplier_that_is_no_float32(
    multiplier: float, bias: float, x: float, expected: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The mean of the convolution is 0.65 x, or -0.025: the weight is chosen so that each answer is a round number.
    chain = Chain(1, 1, 1, 2, 2, (1, 1))
    force(monkeypatch, form, chain)
    weight = torch.full((1, 1, 1, 1), 0.65 if abs(x) <= 1 else -0.25)
    got = forward.chain(chain, torch.full((1, 1, 2, 2), x), weight, torch.tensor([bias]), multiplier, None)
    torch.testing.assert_close(got.flatten(), torch.tensor([expected]))


@pytest.mark.parametrize("sizes", [(1, 1, 2), (3, 64, 128), (16, 3, 32)], ids=str)
def test_twice_the_scale_is_twice_the_answer(
    sizes: tuple[int, int, int], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, also where a scale is 1, for which torch has other kernels on a GPU: they round otherwise in a third
    of all draws of the first of these products, and in each of the second."""
    monkeypatch.setattr(forward, "form", lambda *_: ("taps", ""))
    n, c_in, c_out = sizes
    problem = Chain(n, c_in, c_out, 5, 6, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), 1, True)
    for seed in range(30):
        torch.manual_seed(seed)
        x, weight, bias = torch.randn(n, c_in, 5, 6), torch.randn(problem.weight_shape), torch.randn(c_out)
        given = x.to(device), weight.to(device), bias.to(device)
        answers = [forward.chain(problem, *given, scale, None) for scale in (0.25, 0.5, 1.0, 2.0)]
        for once, twice in pairwise(answers):
            assert torch.equal(2 * once, twice)


def test_no_band_leaves_the_bias() -> None:
    # Taps land on -1 and 1 of one row and column.
    chain = Chain(2, 3, 2, 1, 1, (2, 2), (4, 4), (1, 1), dilation=(2, 2))
    assert not live(chain, 0)
    bias = torch.tensor([1.0, -2.0])
    got = forward.contract(
        chain, forward.band_sums(chain, torch.full(chain.in_shape, torch.nan)),
        torch.full(chain.weight_shape, torch.inf), bias, 1.0, None,
    )  # fmt: skip
    assert torch.equal(got, bias[:, None, None].expand(2, 2, 1, 1))
