"""Whatever the seed: what a candidate is asked leaves no argument at its published value, and holds Inf and NaN."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from harness.candidates.forms import Candidate
from harness.candidates.problems import derived
from harness.candidates.trials import SMALL, hidden, trials
from harness.cases import operators
from reference.problem import Chain

SEEDS = range(60)


def asked(form: str, seed: int, operator: str = "chain") -> list[Chain]:
    candidate = Candidate(Path("a.py"), form, {}, (operator,))
    found = trials(candidate, seed, gpu=False, full=False)
    assert {trial.multiplier < 0 for trial in found} == {False, True}
    (small,) = (trial for trial in found if trial.thorough)
    x = small.inputs(5, "nonfinite").x
    assert x.isnan().any() and x.isposinf().any() and x.isneginf().any()
    return [trial.problem for trial in found if isinstance(trial.problem, Chain) and not trial.public]


@pytest.mark.parametrize("form", ["kernelbench", "functions", "cuda", "solution"])
def test_each_seed_has_a_negative_multiplier_and_values_that_are_not_finite(form: str) -> None:
    for seed in SEEDS:
        asked(form, seed)
        asked(form, seed, "tail")


@pytest.mark.parametrize("form", ["kernelbench", "functions"])
def test_a_published_number_in_the_place_of_an_argument_is_wrong_in_some_hidden_problem(form: str) -> None:
    names = ["kernel", "stride", "padding", "output_padding"]
    names += ["groups", "dilation"] if form == "functions" else []
    for seed in SEEDS:
        problems = asked(form, seed)
        for name in names:
            values = {getattr(problem, name) for problem in problems}
            assert values - {getattr(SMALL, name)}, (seed, name)


@pytest.mark.parametrize("form", ["kernelbench", "functions", "cuda"])
def test_kernels_of_one_element_and_of_more_than_five_rows_are_asked_for(form: str) -> None:
    for seed in SEEDS:
        kernels = [problem.kernel for problem in hidden(form, Random(seed))]
        assert any(1 in kernel for kernel in kernels) and any(max(kernel) > 5 for kernel in kernels)


def test_a_solution_keeps_the_convolution_of_its_definition() -> None:
    assert {(p.kernel, p.stride, p.padding) for p in hidden("solution", Random(1))} == {((3, 3), (2, 2), (1, 1))}


def test_an_operator_of_ones_own_is_asked_for_nan_too() -> None:
    for seed in SEEDS:
        for problem in derived.hidden(operators.of(SMALL), seed):
            if problem.case.values == "nonfinite":
                assert torch.isnan(problem.inputs(seed)[0]).any()
