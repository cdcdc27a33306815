"""The gradients in plain torch, step by step, against the oracle; and what is not finite, tap by tap."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from harness.cases.case import Case, random_chain
from harness.cases.catalogue import select
from harness.cases.inputs import make_inputs
from harness.numerics.budget import compare
from harness.numerics.truth import truth_gradients
from reference.problem import Chain
from torch_impl import backward, forward
from torch_impl.folding import live

CASES = [case.small() for case in select(["chain/*"], gpu=False) if case.values != "nonfinite"]
FORMS = ("folded", "taps")


def force(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    for module in (forward, backward):
        monkeypatch.setattr(module, "form_of_product", lambda problem, device: (form, "told"))


def gradients(case: Case, problem: Chain) -> tuple[dict[str, Tensor], dict]:
    """Of x and the weight, as the operators compose the steps; and the truth."""
    inputs = make_inputs(case, "cpu")
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(problem.out_shape, generator=generator, dtype=torch.float64)
    grad = grad.to(forward.accumulator(inputs.x.dtype))
    multiplier = inputs.multiplier
    inner = grad * (multiplier.to(grad.dtype).expand(grad.shape) if isinstance(multiplier, Tensor) else 1.0)
    scale = 1.0 if isinstance(multiplier, Tensor) else multiplier
    assert inputs.weight is not None
    d = backward.expand(problem, inner, inputs.weight, scale)
    assert d.shape == (problem.n, problem.c_in, len(problem.distinct(0)), len(problem.distinct(1)))
    dx = backward.band_fill(problem, d, torch.full_like(inputs.x, torch.nan, memory_format=torch.contiguous_format))
    sums = forward.band_sums(problem, inputs.x)
    dw = backward.weight_grad(problem, inner, sums, scale, inputs.weight.dtype)
    return {"x": dx, "weight": dw}, truth_gradients(problem, inputs, grad)


def check(case: Case) -> None:
    problem = case.problem
    assert isinstance(problem, Chain)
    found, true = gradients(case, problem)
    # No gradient adds up more than all samples or all (output, tap) pairs.
    pairs = problem.n * problem.c_out + problem.c_out * problem.kernel[0] * problem.kernel[1]
    for name, got in found.items():
        t = true[name]
        result = compare(
            got, t.expected, t.magnitude, case.dtype, forward.depth(problem) + pairs, floor=t.floor,
            reference_depth=t.depth,
        )  # fmt: skip
        assert result.passed, (name, result.message)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, form)
    check(replace(case, layout="contiguous"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(40))
def test_random_problem(seed: int, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, form)
    dtype = ("float32", "float64", "bfloat16")[seed % 3]
    check(
        Case(
            f"gradient-{seed}",
            random_chain(Random(3000 + seed)),
            "drawn",
            dtype,
            values="normal",
            multiplier=None,
        )
    )


INF, NAN = torch.inf, torch.nan
FOLDS = [
    pytest.param(INF, (1.0, -0.5), NAN, id="Inf meets taps of both signs"),
    pytest.param(INF, (1.0, 0.5), INF, id="Inf meets taps of one sign"),
    pytest.param(INF, (1.0, 0.0), NAN, id="Inf meets a zero"),
    pytest.param(1e-3, (3e38, 3e38), 3e35, id="the weights overflow together, the gradient does not"),
    pytest.param(1.0, (INF, -INF), NAN, id="infinite weights of both signs"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("grad", "taps", "expected"), FOLDS)
def test_a_fold_hides_nothing(
    grad: float, taps: tuple[float, float], expected: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(1, 1, 1, 1, 1, (1, 2), (1, 2), bias=False)
    force(monkeypatch, form)
    weight = torch.tensor(taps).reshape(1, 1, 1, 2)
    d = backward.expand(chain, torch.full((1, 1, 1, 1), grad), weight, 1.0)
    torch.testing.assert_close(d, torch.full_like(d, expected), equal_nan=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_tap_that_meets_nothing_has_no_gradient_and_gives_none(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kernel 3, stride 2, padding 1 on one element: only the middle tap lands.
    chain = Chain(2, 3, 4, 1, 1, (3, 3), (2, 2), (1, 1))
    assert live(chain, 0) == live(chain, 1) == (1,)
    force(monkeypatch, form)
    weight = torch.full(chain.weight_shape, NAN)
    weight[:, :, 1, 1] = 1
    grad = torch.ones(chain.out_shape)
    d = backward.expand(chain, grad, weight, 1.0)
    assert torch.equal(d[:, :, 1, 1], torch.full((2, 3), 4.0))
    assert d.sum() == d[:, :, 1, 1].sum()
    dw = backward.weight_grad(
        chain, grad * INF, forward.band_sums(chain, torch.ones(chain.in_shape)), 1.0, weight.dtype
    )
    assert torch.isinf(dw[:, :, 1, 1]).all()
    dw[:, :, 1, 1] = 0
    assert not dw.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("scale", "grad"), [(1e39, 1e-3), (1e-39, 1e30)])
def test_a_multiplier_that_is_no_float32(scale: float, grad: float, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(1, 1, 1, 1, 1, (1, 2), (1, 2), bias=False)
    force(monkeypatch, form)
    weight, g = torch.tensor([0.5, 0.25]).reshape(1, 1, 1, 2), torch.full((1, 1, 1, 1), grad)
    d = backward.expand(chain, g, weight, scale)
    torch.testing.assert_close(d.item(), 0.375 * grad * scale, rtol=1e-6, atol=0)
    dw = backward.weight_grad(chain, g, forward.band_sums(chain, torch.full(chain.in_shape, 0.5)), scale, g.dtype)
    torch.testing.assert_close(dw.double(), torch.full_like(dw, 1).double() * (0.25 * grad * scale), rtol=1e-6, atol=0)


def test_no_band_at_all() -> None:
    chain = Chain(2, 3, 2, 1, 1, (2, 2), (4, 4), (1, 1), dilation=(2, 2))
    grad, weight = torch.full(chain.out_shape, INF), torch.full(chain.weight_shape, NAN)
    d = backward.expand(chain, grad, weight, 1.0)
    assert not d.any()
    assert not backward.band_fill(chain, d, torch.full(chain.in_shape, NAN)).any()
    sums = forward.band_sums(chain, torch.full(chain.in_shape, NAN))
    assert not backward.weight_grad(chain, grad, sums, 1.0, weight.dtype).any()
