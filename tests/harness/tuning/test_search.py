"""What the search makes of times that are made up: what it takes, what it refuses, and when it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from harness.cases.case import Case
from harness.records.record import Environment
from harness.tuning import report, sweep
from harness.tuning.search import Found, search
from runtime import plan
from tests.harness.tuning.made_up import CASE, FEW, OTHER, MadeUp, Times, subjects
from tests.usable import require

HERE = Environment("2026-01-01", "bench.py tune", "abc", "Linux", "3.13", {"torch": "2.11"}, gpu="A Card")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    require("triton", device)
    if device.type != "cpu":
        pytest.skip("with a GPU Triton's kernels are compiled, and these are tensors of the CPU")
    monkeypatch.setattr(sweep, "tunable", lambda backend: FEW)


def found_by(made: MadeUp, *cases: Case, seconds: float = 1e4, told: list[str] | None = None) -> Found:
    tell = (told if told is not None else []).append
    return search(made.bench(), subjects(*cases or (CASE,)), ["triton"], seconds, tell)


def faster(by: float, **when: int) -> Times:
    """10 us, or `by` times as fast with these constants."""

    def times(constants: Mapping[str, int], out: Tensor, now: float) -> float:
        return 10.0 / (by if when.items() <= constants.items() else 1.0)

    return times


def test_a_faster_constant_is_found_measured_anew_and_planned() -> None:
    told: list[str] = []
    found = found_by(MadeUp(faster(1.25, GAP_REGISTERS=32)), told=told)
    assert found.plans == {"triton": {"GAP_REGISTERS": 32}}
    (first,) = found.sweeps
    assert [trial.name for trial in first.trials] == [
        "as shipped", "GAP_REGISTERS 32", "GAP_REGISTERS 128", "PART_WARPS 4",
    ]  # fmt: skip
    best = first.best()
    assert best is not None and best[0].values == {"GAP_REGISTERS": 32}
    assert best[1].ratio == pytest.approx(1.25, rel=0.003)
    assert best[1].interval.low <= best[1].ratio <= best[1].interval.high
    (again,) = found.confirmed
    assert [trial.values for trial in again.trials] == [{}, {"GAP_REGISTERS": 32}]
    assert again.trials[0].samples is not first.trials[0].samples
    assert len(told) == 2 and "4 of 4 settings right" in told[0] and "measured anew on 1 cases" in told[1]


def test_constants_that_are_better_alone_are_tried_together() -> None:
    def times(constants: Mapping[str, int], out: Tensor, now: float) -> float:
        us = 10.0 * (0.9 if constants["GAP_REGISTERS"] == 128 else 1.0)
        return us * (0.8 if constants["PART_WARPS"] == 4 else 1.0)

    found = found_by(MadeUp(times))
    assert found.plans == {"triton": {"PART_WARPS": 4, "GAP_REGISTERS": 128}}
    assert len(found.confirmed) == 1


def test_of_constants_that_spoil_each_other_the_better_one_stays() -> None:
    def times(constants: Mapping[str, int], out: Tensor, now: float) -> float:
        changed = constants["GAP_REGISTERS"] == 128, constants["PART_WARPS"] == 4
        return {(False, False): 10.0, (True, False): 9.0, (False, True): 8.0, (True, True): 12.0}[changed]

    found = found_by(MadeUp(times))
    assert found.plans == {"triton": {"PART_WARPS": 4}}
    assert len(found.confirmed) == 2


@pytest.mark.parametrize("by", [1.0, 1.01, 0.9], ids=["equal", "a gain below the effect", "slower"])
def test_the_shipped_constants_stay_where_nothing_is_surely_faster(by: float) -> None:
    found = found_by(MadeUp(faster(by, PART_WARPS=4)))
    assert found.plans == {"triton": {}} and found.confirmed == []


def test_what_only_the_first_samples_found_faster_is_no_plan() -> None:
    """Lucky until the clock is at 5 s: the four builds take 4, the samples of the sweep less than 1."""

    def times(constants: Mapping[str, int], out: Tensor, now: float) -> float:
        return 8.0 if constants["PART_WARPS"] == 4 and now < 5.0 else 10.0

    found = found_by(MadeUp(times))
    assert len(found.confirmed) == 1 and found.plans == {"triton": {}}


def test_what_is_slower_on_another_case_is_no_plan() -> None:
    def times(constants: Mapping[str, int], out: Tensor, now: float) -> float:
        gain = 0.8 if out.shape[1] == 2 else 1.1
        return 10.0 * (gain if constants["PART_WARPS"] == 4 else 1.0)

    found = found_by(MadeUp(times), CASE, OTHER)
    assert [sweep_.case for sweep_ in found.sweeps] == ["tail/a", "tail/b"]
    assert found.plans == {"triton": {}} and found.confirmed == []


def test_a_wrong_setting_is_never_timed() -> None:
    made = MadeUp(faster(10.0, PART_WARPS=4), wrong={"PART_WARPS": 4})
    found = found_by(made)
    trial = found.sweeps[0].trials[-1]
    assert (trial.values, trial.invalidity, trial.samples) == ({"PART_WARPS": 4}, "correctness", [])
    assert trial.error is not None and trial.error > 1
    assert found.plans == {"triton": {}} and min(made.timed) > 9


def test_a_setting_that_fails_leaves_the_others() -> None:
    found = found_by(MadeUp(faster(1.25, GAP_REGISTERS=32), broken={"PART_WARPS": 4}))
    trial = found.sweeps[0].trials[-1]
    assert (trial.invalidity, trial.reason) == ("runtime", "RuntimeError: no room for its registers")
    assert found.plans == {"triton": {"GAP_REGISTERS": 32}}


def test_it_ends_when_the_time_is_up_and_says_what_was_not_reached() -> None:
    """A build takes 10 s of 30: the sweep has 24, of which 19.2 are for building. It starts at 0 and at 10."""
    told: list[str] = []
    made = MadeUp(faster(2.0, GAP_REGISTERS=32), building=10.0)
    found = found_by(made, seconds=30.0, told=told)
    said = [trial.invalidity for trial in found.sweeps[0].trials]
    assert said == ["correct", "correct", "timeout", "timeout"]
    assert "2 not reached" in told[0]
    # The two builds of a confirmation go together.
    assert made.now <= 30 + 2 * made.building


def test_shipped_constants_that_are_wrong_end_the_sweep() -> None:
    found = found_by(MadeUp(faster(1.0), wrong={"PART_WARPS": 8}))
    assert [trial.invalidity for trial in found.sweeps[0].trials] == ["correctness"]
    assert "nothing to compare with" in report.nearness(found.sweeps[0])


@pytest.mark.parametrize(("by", "words"), [(1.25, "not within 2%"), (1.01, "within 2%")])
def test_the_text_says_how_near_the_shipped_constants_are(by: float, words: str) -> None:
    text = report.render(found_by(MadeUp(faster(by, PART_WARPS=4))), HERE, "clean cold")
    assert f"shipped is {words} of the best that was tried: PART_WARPS 4 is faster by" in text
    assert "A Card" in text and "as shipped" in text


def test_results_are_of_the_t4_format() -> None:
    """What Kernel Tuner's schema T4/1.0.0 asks of a file of results."""
    made = MadeUp(faster(1.25, GAP_REGISTERS=32), wrong={"GAP_REGISTERS": 128}, broken={"PART_WARPS": 4})
    document = json.loads(json.dumps(report.t4(found_by(made), HERE, "clean cold")))
    assert document["schema_version"] == "1.0.0"
    results = document["results"]
    assert [result["invalidity"] for result in results[:4]] == [
        "correct",
        "correct",
        "correctness",
        "runtime",
    ]
    times = {"compilation_time", "runtimes", "framework", "search_algorithm", "validation"}
    for result in results:
        assert set(result["configuration"]) == {"case", "kernels", *FEW}
        assert set(result["times"]) == times
        numbers = {**result["times"], "correctness": result["correctness"]}
        runtimes = numbers.pop("runtimes")
        assert all(isinstance(value, float) for value in (*numbers.values(), *runtimes))
        assert all(set(of) == {"name", "value", "unit"} for of in result["measurements"])
        assert result["objectives"] == ["time"] and isinstance(result["timestamp"], str)
    # Milliseconds, as there.
    assert results[0]["times"]["runtimes"][0] == pytest.approx(0.01, rel=0.01)
    measured = {of["name"]: of["value"] for of in results[1]["measurements"]}
    assert measured["time"] == pytest.approx(0.008, rel=0.01)
    assert (measured["multiply_gap_registers"], measured["multiply_gap_local"]) == (40, 0)


def test_the_plan_that_is_written_is_one_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    found = found_by(MadeUp(faster(1.25, GAP_REGISTERS=32)))
    path.write_text(report.plan(found, HERE).to_json())
    loaded = plan.load(path)
    assert (loaded.card, loaded.constants) == ("A Card", {"triton": {"GAP_REGISTERS": 32}})
    assert "bench.py tune" in loaded.made and "torch 2.11" in loaded.made
    monkeypatch.setattr(plan, "PATH", path)
    constants = ModuleType("constants")
    constants.GAP_REGISTERS = 64  # pyright: ignore[reportAttributeAccessIssue]
    plan.apply("triton", constants, FEW)
    assert constants.GAP_REGISTERS == 32
