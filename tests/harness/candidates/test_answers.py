"""The quick truth beside the oracle, and the mistakes that an answer may resemble."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from harness.candidates import answers
from harness.candidates.diagnosis import Past, diagnose
from harness.candidates.trials import SMALL, Trial, structured
from harness.cases.case import random_chain
from harness.numerics.truth import truth


@pytest.mark.parametrize("seed", range(20))
def test_sums_of_bands_are_the_oracles(seed: int) -> None:
    problem = random_chain(Random(seed))
    inputs = Trial("bands", problem, -1.75, seed).inputs(seed)
    expected = truth(problem, inputs)
    np.testing.assert_allclose(answers.banded(problem, inputs), expected.expected, rtol=1e-12, atol=1e-13)
    magnitude = answers.banded(problem, inputs, absolute=True)
    np.testing.assert_allclose(magnitude, expected.magnitude, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sides", [("top",), ("bottom",), ("left",), ("right",), answers.SIDES])
def test_a_forgotten_crop_is_wrong_and_named(sides: tuple[str, ...]) -> None:
    problem = type(SMALL)(3, 5, 6, 9, 10, (5, 5), (2, 2), (2, 2), (0, 0))
    inputs = structured(Trial("crop", problem, 0.5, 1).inputs(1))
    out = torch.from_numpy(answers.banded(problem, inputs, forgotten=sides)).float()
    expected = answers.right(problem, inputs)
    verdict = answers.judge(out, problem, inputs, expected, tf32=False)
    assert not verdict.passed
    kind, reason = diagnose(out, problem, inputs, expected, verdict, Past([], [], problem), "structured", tf32=False)
    assert kind == "wrong" and "as if the border crop were forgotten" in reason
    assert len(sides) > 1 or f"at the {'+'.join(sides)}" in reason


def test_forgetting_the_crop_of_the_published_size_exceeds_the_budget() -> None:
    """With plain values it errs by less than a left-to-right sum may: borders that outweigh the plane show it."""
    from harness.candidates.trials import TODAY

    problem = type(TODAY)(2, 8, 8, 128, 128, *(TODAY.kernel, TODAY.stride, TODAY.padding, TODAY.output_padding))
    inputs = structured(Trial("published", problem, 0.5, 1).inputs(1))
    out = torch.from_numpy(answers.banded(problem, inputs, forgotten=answers.SIDES)).float()
    assert not answers.judge(out, problem, inputs, answers.right(problem, inputs), tf32=True).passed
