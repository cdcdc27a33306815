"""What is timed, what is not, and what is said about it: on planted entries and a timer of no device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness.cases.case import Case
from harness.cases.inputs import Inputs
from harness.entries.entry import Built, Entry
from harness.records.environment import environment
from harness.records.record import CaseRecord, Run
from harness.runs.run import run_cases
from harness.runs.timer import Timer
from reference.problem import Tail
from tests.harness.planted import eagerly, fake_timer


def timed_run(entries: dict[str, Entry], timer: Timer) -> CaseRecord:
    case = Case("tail/test", Tail(2, 3, 4, 5), "small")
    run = Run(environment=environment(torch.device("cpu"), None), settings={})
    run_cases(run, [case], list(entries.values()), torch.device("cpu"), timer, lambda _: None)
    return run.cases[0]


def test_right_rows_are_timed_and_wrong_ones_never(entries: dict[str, Entry]) -> None:
    entries["wrong"] = Entry("wrong", "planted", eagerly(1.01), cpu=True)
    captured: list[Any] = []
    record = timed_run(entries, fake_timer(captured))
    assert {found.entry: (found.status, set(found.samples)) for found in record.results} == {
        "right": ("timed", {"cold", "warm"}),
        "eager-ieee": ("timed", {"cold", "warm"}),
        "absent": ("unavailable", set()),
        "wrong": ("wrong", set()),
    }
    assert len(captured) == 2
    assert record.reference == "eager-ieee" and record.floor_us == {"cold": 5.0, "warm": 5.0}
    found = record.result("right")
    assert found is not None and (found.how, found.host_us, found.extra_bytes) == ("graph", [3.0], 64)
    assert record.pairwise["right"]["eager-ieee"] == 0


def test_a_graph_that_goes_wrong_loses_its_times(entries: dict[str, Entry]) -> None:
    def capture(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        return lambda: None, call()  # a replay that writes nothing: the poison stays

    record = timed_run(entries, fake_timer([], capture=capture))
    found = record.result("right")
    assert found is not None and found.status == "wrong" and found.samples == {} and "after timing" in found.reason


def test_what_cannot_be_captured_is_timed_by_events_and_says_so(entries: dict[str, Entry]) -> None:
    entries["plain"] = Entry("plain", "planted", eagerly(), graph=False, why_not="its allocator forbids it")

    def capture(call: Callable[[], torch.Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    record = timed_run(entries, fake_timer([], capture=capture))
    for name, why in (("right", "stream is capturing"), ("plain", "its allocator forbids it")):
        found = record.result(name)
        assert found is not None and found.how == "events" and found.status == "timed"
        assert why in found.notes[0]


def test_a_failed_measurement_is_flagged_and_the_answers_stay_right(entries: dict[str, Entry]) -> None:
    def stopwatch(launch: Any, prepare: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    record = timed_run(entries, fake_timer([], stopwatch=stopwatch))
    assert record.flags == ["timing failed: OutOfMemoryError: no room"]
    assert [found.status for found in record.results] == ["right", "right", "unavailable"]


def test_a_row_that_writes_nothing_is_wrong_even_after_a_right_one(entries: dict[str, Entry]) -> None:
    def lazy(case: Case, inputs: Inputs) -> Built:
        return Built(lambda: torch.empty(case.problem.out_shape), "nothing", 1)

    entries["lazy"] = Entry("lazy", "planted", lazy, cpu=True)
    found = timed_run(entries, fake_timer([])).result("lazy")
    assert found is not None and found.status == "wrong"


def test_a_throttled_case_is_measured_again_and_flagged_and_nothing_is_dropped(
    entries: dict[str, Entry],
) -> None:
    record = timed_run(entries, fake_timer([], throttled=3))
    found = record.result("right")
    assert found is not None and len(found.samples["cold"]) == 16 and len(found.samples["warm"]) == 8
    assert [bool(mark) for mark in record.marks["cold"]] == [True] * 3 + [False] * 13
    assert record.flags == ["cold: throttled in 3 of 16 rounds (power cap); measured twice, all kept"]
