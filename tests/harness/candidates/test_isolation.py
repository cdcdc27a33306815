"""How far a candidate's process is cut off: the strongest way that works, and no silent turn to the CPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.candidates import forms, isolation, worker
from harness.candidates.isolation import Isolation
from harness.candidates.judging import Settings, judge
from harness.candidates.verdict import UNJUDGED

pytestmark = pytest.mark.usefixtures("fewer_samples")

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    isolation.strongest.cache_clear()


def test_the_first_way_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(isolation.ways())
    asked: list[Isolation] = []

    def works(way: Isolation, gpu: bool) -> Isolation | None:
        asked.append(way)
        return Isolation(way.prefix, way.writable, True) if way == every[2] else None

    monkeypatch.setattr(isolation, "works", works)
    assert isolation.strongest(True) == Isolation(every[2].prefix, every[2].writable, True)
    assert asked == every[:3]
    assert every[-1] == Isolation() and "nothing keeps it" in str(every[-1])


def test_where_no_way_works_there_is_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "works", lambda way, gpu: None)
    assert isolation.strongest(False) == Isolation()


def test_a_way_that_this_system_has_not_is_seen() -> None:
    assert isolation.works(Isolation(("false",)), False) is None
    assert isolation.works(Isolation(("no-such-command",)), False) is None
    assert isolation.works(Isolation(), False) == Isolation()


def test_no_candidate_of_a_judge_with_a_gpu_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # As on a machine whose judge has a GPU that the candidate's process cannot start: here nobody has one.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(worker, "strongest", lambda gpu: Isolation())
    candidate = forms.read(ROOT / "examples" / "candidates" / "tail_triton.py")
    with ExitStack() as stack:
        verdict = judge(candidate, Settings(seed=1, gpu=True), stack).verdict
    assert verdict.verdict == UNJUDGED
    assert "CUDA does not start in the candidate's process" in verdict.reasons[0]
