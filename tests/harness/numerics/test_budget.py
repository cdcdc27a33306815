"""The comparison must pass what is right and fail what is wrong, however small the wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import convgap
from harness.cases.case import Case
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import FORMATS, budget, compare, gamma, matrix
from harness.numerics.truth import Truth, truth
from reference import eager
from reference.eager import mean_depth
from reference.problem import Chain
from torch_impl import forward

DTYPES = tuple(FORMATS)
# The headline's planes, kernel and crop, with fewer samples and channels so that the truth takes a moment.
LARGE = Case(
    "chain/headline-planes",
    Chain(4, 16, 8, 128, 128, (3, 3), (2, 2), (1, 1), (1, 1)),
    "errors of a forgotten crop shrink with the plane: this is the real size",
)


@pytest.fixture(scope="module")
def large() -> tuple[Inputs, Truth]:
    inputs = make_inputs(LARGE, "cpu")
    return inputs, truth(LARGE.problem, inputs)


# What the sums alone need here: less than any implementation states, so that no wrong answer gets more room.
DEPTH = mean_depth(128) + 2 + mean_depth(128) + 2


def judge(actual: Tensor, true: Truth, depth: int = DEPTH, dtype: str = "float32"):
    return compare(actual, true.expected, true.magnitude, dtype, depth, floor=true.floor, reference_depth=true.depth)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


# The bound itself


@pytest.mark.parametrize("dtype", DTYPES)
def test_formats_are_torchs(dtype: str) -> None:
    info, fmt = torch.finfo(getattr(torch, dtype)), FORMATS[dtype]
    assert info.eps == 2 * fmt.unit_roundoff
    assert info.smallest_normal == 2.0**fmt.emin
    assert info.max == (2 - info.eps) * 2.0**fmt.emax


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_half_ulp_is_the_largest_rounding_error(dtype: str) -> None:
    fmt = FORMATS[dtype]
    # Exponents from below the subnormals to the largest; and the exact halfway points.
    exponents = np.arange(fmt.emin - fmt.p - 2, fmt.emax)
    # Torch rounds to bfloat16 by way of float32: start from 23 fraction bits there.
    fraction = np.random.default_rng(0).integers(0, 2**23, (50, exponents.size)) / 2**23
    values = np.ldexp(1 + fraction + (dtype == "float32") * 2.0**-25, exponents)
    rounded = torch.from_numpy(values).to(getattr(torch, dtype)).double().numpy()
    assert np.all(np.abs(rounded - values) <= fmt.half_ulp(values))
    halfway = np.ldexp(1 + 2.0**-fmt.p, np.arange(fmt.emin, fmt.emax))
    rounded = torch.from_numpy(halfway).to(getattr(torch, dtype)).double().numpy()
    np.testing.assert_array_equal(np.abs(rounded - halfway), fmt.half_ulp(halfway))


def test_gamma() -> None:
    assert gamma(0, 0.1) == 0
    assert gamma(2, 0.25) == 1
    with pytest.raises(ValueError, match="n: 4 roundings"):
        gamma(4, 0.25)


def test_budget_by_hand() -> None:
    # 7 + 5 roundings of 2**-24 on a magnitude of 8, then half an ulp of a float32 in [4, 8): 2**-22.
    u = 2.0**-24
    error = 8 * (12 * u / (1 - 12 * u))
    got = float(budget(4.0, 8.0, "float32", 7))
    assert got == pytest.approx(error + 2.0**-22 + 8 * gamma(5, 2.0**-53), rel=1e-9)
    # A half-precision result that is stored three times: two more roundings of 2**-11.
    stored = float(budget(4.0, 8.0, "float16", 7, stores=3)) - float(budget(4.0, 8.0, "float16", 7))
    assert stored == pytest.approx(8 * gamma(2, 2.0**-11), rel=1e-3)
    assert float(budget(0.0, 0.0, "float32", 7, floor=1e-38)) == pytest.approx(1e-38, rel=1e-6)


def test_pairwise_sums_stay_inside_and_half_precision_accumulation_does_not() -> None:
    # 4096 numbers: log2 says 12 additions deep when halved; summed in order in float16 the sum stalls.
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).half()
    expected, magnitude = (x.double().mean().reshape(1, 1, 1, 1).numpy() for _ in range(2))
    parts = x.float().flatten()
    while parts.numel() > 1:
        parts = parts[::2] + parts[1::2]
    good = (parts / 4096).half().reshape(1, 1, 1, 1)
    assert compare(good, expected, magnitude, "float16", 12).passed
    bad = np.cumsum(x.numpy().ravel(), dtype=np.float16)[-1] / np.float16(4096)
    assert not compare(torch.full((1, 1, 1, 1), float(bad)).half(), expected, magnitude, "float16", 12).passed


# What must pass


@pytest.mark.parametrize("name", ["eager", "bands"])
def test_right_answers_pass_at_the_headlines_planes(large: tuple[Inputs, Truth], name: str) -> None:
    inputs, true = large
    if name == "eager":
        result = judge(inputs.call(eager), true, eager.depth(LARGE.problem))
    else:
        result = judge(inputs.call(convgap, backend="torch"), true, forward.depth(LARGE.problem))
    assert result.passed
    assert result.worst < 0.6


def test_empty_passes_and_says_so() -> None:
    result = compare(ones(0, 4, 1, 1), np.ones((0, 4, 1, 1)), np.ones((0, 4, 1, 1)), "float32", 3)
    assert result.passed
    assert "nothing to compare" in result.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_expected_non_finite(value: float, dtype: str) -> None:
    truth_ = np.full((1, 2, 1, 1), value)
    got = torch.full((1, 2, 1, 1), value, dtype=getattr(torch, dtype))
    assert compare(got, truth_, np.abs(truth_), dtype, 3).passed
    for wrong in {0.0, np.inf, -np.inf, np.nan, 1.0} - {value}:
        if np.isnan(wrong) and np.isnan(value):
            continue
        got[0, 1] = wrong
        result = compare(got, truth_, np.abs(truth_), dtype, 3)
        assert (result.passed, result.worst_index, result.n_bad) == (False, (0, 1, 0, 0), 1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow(dtype: str, sign: int) -> None:
    torch_dtype, fmt = getattr(torch, dtype), FORMATS[dtype]
    infinite = torch.full((1, 1, 1, 1), sign * torch.inf, dtype=torch_dtype)
    largest = torch.full((1, 1, 1, 1), sign * torch.finfo(torch_dtype).max, dtype=torch_dtype)

    def passes(actual: Tensor, factor: float) -> bool:
        true = np.full((1, 1, 1, 1), sign * fmt.overflow * factor)
        return compare(actual, true, np.abs(true), dtype, 3).passed

    assert passes(infinite, 1.5)
    assert not passes(largest, 1.5)
    assert not passes(-infinite, 1.5)
    # At the rounding boundary either side is right.
    assert passes(infinite, 1.0)
    assert passes(largest, 1.0)
    assert not passes(infinite, 0.9)
    assert not passes(largest, 0.9)


def test_float64_zero_has_a_budget() -> None:
    zero = np.zeros((1, 1, 1, 1))
    assert compare(ones(1, 1, 1, 1, dtype=torch.float64) * 0, zero, zero, "float64", 3).passed
    assert not compare(ones(1, 1, 1, 1, dtype=torch.float64) * 1e-300, zero, zero, "float64", 3).passed


# What must fail


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_unexpected_non_finite(value: float) -> None:
    got = ones(2, 3, 1, 1)
    got[1, 2] = value
    result = compare(got, np.ones((2, 3, 1, 1)), np.ones((2, 3, 1, 1)), "float32", 3)
    assert (result.passed, result.worst, result.worst_index, result.n_bad) == (False, np.inf, (1, 2, 0, 0), 1)
    assert result.expected == 1.0
    assert "[1, 2, 0, 0]" in result.message


def test_a_magnitude_that_is_no_number_excuses_nothing() -> None:
    one = np.ones((1, 1, 1, 1))
    for magnitude in (np.nan, np.inf):
        assert not compare(ones(1, 1, 1, 1) * 5, one, one * magnitude, "float32", 3).passed


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 1, 1), (2, 3, 1), (1, 3, 1, 1), (0, 3, 1, 1)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    result = compare(ones(*shape), np.ones((2, 3, 1, 1)), np.ones((2, 3, 1, 1)), "float32", 3)
    assert not result.passed
    assert result.message == f"shape {shape}, expected (2, 3, 1, 1)"


def test_wrong_dtype() -> None:
    result = compare(ones(1, 1, 1, 1), np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), "float16", 3)
    assert not result.passed
    assert result.message == "dtype float32, expected float16"


def test_one_bad_element(large: tuple[Inputs, Truth]) -> None:
    inputs, true = large
    # 1e-5 of the magnitude: a hundredth of what the usual 1e-3 forgives.
    for index in np.ndindex(4, 8):
        got = inputs.call(convgap, backend="torch")
        got[index] += 1e-5 * true.magnitude[index].item()
        result = judge(got, true)
        assert not result.passed
        assert result.n_bad == 1
        assert result.worst_index == (*index, 0, 0)


def test_swapped_samples_and_channels(large: tuple[Inputs, Truth]) -> None:
    inputs, true = large
    got = inputs.call(convgap, backend="torch")
    for wrong in (got[[1, 0, 2, 3]], got[:, [0, 1, 2, 3, 4, 5, 7, 6]], got.roll(1, 0)):
        assert not judge(wrong, true).passed
    # The usual tolerance sees no difference between samples.
    assert torch.allclose(got[[1, 0, 2, 3]], got, rtol=1e-2, atol=1e-2)


def test_answer_that_ignores_x(large: tuple[Inputs, Truth]) -> None:
    inputs, true = large
    got = replace(inputs, x=torch.full_like(inputs.x, 0.5)).call(convgap, backend="torch")
    assert not judge(got, true).passed
    assert np.allclose(got.numpy(), true.expected, rtol=1e-2, atol=1e-2)


def test_forgotten_border_crop(large: tuple[Inputs, Truth]) -> None:
    # Every tap given the whole plane: the published shortcut. The usual tolerance lets it pass.
    inputs, true = large
    assert inputs.weight is not None
    assert inputs.bias is not None
    total = inputs.x.double().sum((-2, -1)) @ inputs.weight.double().sum((-2, -1))
    got = (0.5 * (total / 256**2 + inputs.bias.double()))[:, :, None, None].float()
    result = judge(got, true)
    assert not result.passed
    assert result.worst > 3
    assert np.allclose(got.numpy(), true.expected, rtol=1e-3, atol=1e-3)


def test_bias_forgotten_or_multiplied_twice_and_wrong_divisor(large: tuple[Inputs, Truth]) -> None:
    inputs, true = large
    assert inputs.bias is not None
    got = inputs.call(convgap, backend="torch")
    for wrong in (
        replace(inputs, bias=None).call(convgap, backend="torch"),
        replace(inputs, bias=inputs.bias * 0.5).call(convgap, backend="torch"),
        got * 256**2 / (256**2 - 1) * (1 + 1e-4),
        got * 256**2 / 255**2,
    ):
        assert not judge(wrong, true).passed


def test_tf32_inputs_and_half_precision_storage_fail(large: tuple[Inputs, Truth]) -> None:
    inputs, true = large
    assert inputs.weight is not None
    right = inputs.call(convgap, backend="torch")
    # TF32 keeps 10 of the 23 fraction bits, rounded to nearest.
    tf32 = (inputs.weight.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)
    for wrong in (
        replace(inputs, weight=tf32).call(convgap, backend="torch"),
        replace(inputs, weight=inputs.weight.bfloat16().float()).call(convgap, backend="torch"),
        right.half().float(),
        right.bfloat16().float(),
    ):
        assert not judge(wrong, true).passed


# Pairs


def test_matrix_is_the_worst_difference_in_summed_budgets() -> None:
    one = np.ones((1, 2, 1, 1))
    plans = {name: {"depth": 7} for name in "abc"}
    unit = float(budget(1.0, 1.0, "float32", 7))
    b = ones(1, 2, 1, 1)
    b[0, 1] += 2.0**-20
    pairs = matrix({"a": ones(1, 2, 1, 1), "b": b, "c": ones(1, 2)}, one, one, "float32", plans)
    assert pairs["a", "b"] == pytest.approx(2.0**-20 / (2 * unit))
    assert pairs["a", "c"] == pairs["b", "c"] == np.inf


def test_matrix_meets_non_finite_numbers() -> None:
    plans = {"a": {"depth": 3}, "b": {"depth": 3}}

    def pair(left: float, right: float, true: float) -> float:
        results = {"a": torch.full((1, 1, 1, 1), left), "b": torch.full((1, 1, 1, 1), right)}
        return matrix(results, [[[[true]]]], [[[[abs(true)]]]], "float32", plans)["a", "b"]

    assert pair(np.nan, np.nan, np.nan) == pair(np.inf, np.inf, np.inf) == 0
    for left, right in ((np.nan, 1.0), (np.inf, 1.0), (np.inf, -np.inf), (np.inf, np.nan)):
        assert pair(left, right, 1.0) == np.inf
