"""Which settings are tried, that each keeps what is promised, and that nothing is left changed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.cases.case import Case
from harness.tuning import sweep
from harness.tuning.sweep import BACKENDS, Call, candidates, constants_set, fingerprint, prepared
from harness.tuning.trial import CORRECT, Subject, attempt, direct
from reference.problem import Chain, Tail
from tests.harness.tuning.made_up import CPU, MadeUp
from tests.usable import require

HEADLINE = Chain(16, 64, 128, 128, 128, (3, 3), (2, 2), (1, 1), (1, 1))


def call(problem: Any) -> Call:
    _, c, h, w = problem.in_shape
    return Call(problem, (c * h * w, h * w, w, 1), torch.float32, 0, False)


def launched(backend: str, of: Call, values: dict[str, int]) -> Hashable:
    with constants_set(backend, values):
        return fingerprint(prepared(backend, of))


@pytest.mark.parametrize("problem", [HEADLINE, Tail(16, 128, 256, 256)], ids=["chain", "tail"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_launch_that_constants_can_make_is_tried_once(backend: str, problem: Any) -> None:
    require(backend, CPU)
    of = call(problem)
    tried = [launched(backend, of, values) for values in candidates(backend, of)]
    usual = launched(backend, of, {})
    assert len(set(tried)) == len(tried) > 0 and usual not in tried
    every = {
        launched(backend, of, {name: value}) for name, values in sweep.tunable(backend).items() for value in values
    }
    assert every | {usual} == {*tried, usual}


@pytest.mark.parametrize("backend", BACKENDS)
def test_constants_and_launches_are_as_before(backend: str) -> None:
    require(backend, CPU)
    of, before = call(HEADLINE), sweep.shipped(backend)
    first = fingerprint(prepared(backend, of))
    list(candidates(backend, of))
    assert launched(backend, of, {"PART_BYTES": 1 << 15}) != first
    with pytest.raises(KeyError), constants_set(backend, {"PART_BYTES": 1 << 15}):
        {}["an error meanwhile"]
    assert sweep.shipped(backend) == before and fingerprint(prepared(backend, of)) == first


# Interpreted in a second or so each: rows that run on, small planes in a run and neighbouring ones, one launch and
# two, folded taps and single ones.
SMALL = (
    Case("tail/part", Tail(2, 2, 40, 40), "one part"),
    Case("tail/flat", Tail(2, 40, 7, 7), "small planes in a run"),
    Case("tail/planes", Tail(2, 16, 9, 9), "neighbouring planes", layout="channels_last"),
    Case("chain/own", Chain(2, 3, 2, 40, 40, (3, 3), (2, 2), (1, 1), (1, 1)), "one launch"),
    Case("chain/two", Chain(2, 20, 4, 6, 6, (3, 3), (2, 2), (1, 1), (1, 1)), "two launches"),
    Case("chain/one-band", Chain(2, 20, 4, 6, 6, (2, 2), (2, 2)), "folded taps"),
)


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        # Matrix products take Triton's interpreter most of a minute for all their settings.
        pytest.param(
            backend,
            case,
            marks=[pytest.mark.slow] if (backend, case) in {("triton", SMALL[-1]), ("triton", SMALL[-2])} else [],
            id=f"{backend}-{case.name}",
        )
        for backend in BACKENDS
        for case in SMALL
    ],
)
def test_every_setting_is_within_its_budget_and_a_sample_does_not_know_its_batch(backend: str, case: Case) -> None:
    require(backend, CPU)
    subject = Subject.of(case, CPU)
    alone = replace(
        subject,
        case=replace(case, problem=replace(case.problem, n=1)),
        inputs=replace(subject.inputs, x=subject.inputs.x[:1]),
    )
    settings = list(candidates(backend, subject.call))
    assert settings, "no constant changes anything here: the case tests nothing"
    for values in settings:
        trial, replay = attempt(MadeUp(lambda *_: 10.0).bench(), subject, backend, values)
        assert trial.invalidity == CORRECT and replay is not None, (values, trial.reason)
        with constants_set(backend, values):
            assert torch.equal(direct(backend, subject)[:1], direct(backend, alone)), values
