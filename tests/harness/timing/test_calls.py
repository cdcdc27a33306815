"""Calls as they come: what is timed, what is not and why, and that it is a record like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import convgap
from harness.cases.case import Case
from harness.cases.inputs import Inputs
from harness.cli import main
from harness.records.as_json import load
from harness.show.calls import call_table
from harness.timing import calls, first_call
from harness.timing.calls import CALLS, FIRST, CallTimes, measure
from harness.timing.session import Stop
from reference import eager
from reference.problem import Chain
from tests import synthetic

CPU = torch.device("cpu")
CASE = Case("calls/small", Chain(2, 4, 4, 6, 6, (3, 3), (2, 2), (1, 1), (1, 1)), "")
STOP = Stop(width=1e-9, min_rounds=3, max_rounds=3, budget_s=60.0)
KINDS = [kind for kind in CALLS if kind not in FIRST]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Entries without a compiler: eager, torch.mean, one wrong, one that dies; gives the sizes that eager was given."""
    seen: list[tuple[int, int]] = []

    def watched(inputs: Inputs) -> torch.Tensor:
        seen.append((inputs.x.shape[2], inputs.x.shape[3]))
        return inputs.call(eager)

    def dies(inputs: Inputs) -> torch.Tensor:
        raise OSError("no room")

    table = {
        "eager": lambda: watched,
        "mean": calls.ENTRIES["mean"],
        "wrong": lambda: lambda inputs: 1.01 * inputs.call(eager),
        "dies": lambda: dies,
    }
    monkeypatch.setattr(calls, "ENTRIES", table)
    return seen


def test_every_kind_of_call_is_timed_in_common_rounds(planted: list[tuple[int, int]]) -> None:
    found = {times.call: times for times in measure(CASE, KINDS, ["eager", "mean", "wrong", "dies"], CPU, STOP)}
    assert list(found) == KINDS
    for times in found.values():
        assert {name: len(samples) for name, samples in times.samples.items()} == {"eager": 3, "mean": 3}
        assert all(us > 0 for samples in times.samples.values() for us in samples)
        assert times.missing.keys() == {"wrong", "dies"}
        assert times.missing["wrong"].startswith("RuntimeError: wrong:") and "no room" in times.missing["dies"]


def test_every_kind_can_be_asked_for_by_name() -> None:
    assert not [call for call in CALLS if "," in call]


def test_a_new_size_is_never_seen_twice(planted: list[tuple[int, int]]) -> None:
    list(measure(CASE, ["new size"], ["eager"], CPU, STOP))
    new = planted[2:]  # the check, and a call of the size that is known
    assert planted[:2] == [(6, 6)] * 2 and len(new) == 3
    assert len({h for h, _ in new} - {6}) == len({w for _, w in new} - {6}) == 3


def test_what_is_convgaps_is_warmed_for_the_sizes_to_come(
    planted: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: list[tuple[range, range, bool]] = []

    def warmup_sizes(heights: range, widths: range, function: Any, inputs: Any) -> None:
        warmed.append((heights, widths, inputs.x.requires_grad))

    monkeypatch.setattr(convgap, "warmup_sizes", warmup_sizes)
    monkeypatch.setitem(calls.ENTRIES, "torch", calls.ENTRIES["eager"])
    kinds = ["new size", "warmed size", "step at a new size", "step at a warmed size"]
    found = list(measure(CASE, kinds, ["eager", "torch"], CPU, STOP))
    assert not any(times.missing for times in found)
    # Of one of the two entries, at two of the four kinds; a training step wants gradients.
    assert [grad for _, _, grad in warmed] == [False, True]
    assert all(h in heights and w in widths for heights, widths, _ in warmed for h, w in planted)


def test_interpreted_kernels_are_not_timed() -> None:
    (times,) = measure(CASE, ["host"], ["triton", "cupy", "torch"], CPU, STOP)
    assert list(times.samples) == ["torch"] and times.missing.keys() == {"triton", "cupy"}


def test_the_first_call_is_that_of_a_fresh_process(
    planted: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def seconds(case: Case, entry: str) -> dict[str, float]:
        asked.append(entry)
        if entry == "mean":
            raise first_call.FirstCallError("first call: no answer")
        return {"empty cache": 2.0, "warm cache": 0.5}

    monkeypatch.setattr(first_call, "measure", seconds)
    cold, warm = measure(CASE, list(FIRST), ["eager", "mean"], CPU, STOP)
    assert cold.samples == {"eager": [2e6]} and warm.samples == {"eager": [5e5]}
    assert cold.missing == warm.missing == {"mean": "first call: no answer"}
    assert asked.count("eager") == 1


def test_the_command_writes_a_record_that_diff_takes(tmp_path: Path, capsys) -> None:
    path, text = tmp_path / "calls.json", tmp_path / "calls.txt"
    command = ["calls", "--shape", "tail:1,2,3,4", "--calls", "host,wall", "--backends", "eager,mean,triton"]
    assert main([*command, "--budget-seconds", "0.5", "--json", str(path), "--text", str(text)]) == 0
    shown = capsys.readouterr().out
    # Some versions of rich end their progress with an empty line.
    assert text.read_text().strip() == shown.strip() and "/ mean, 95 %" in shown and "…" not in shown
    without = not torch.cuda.is_available()
    assert ("interpreted without a GPU" in shown) == without
    assert ("no GPU: only what torch itself runs is timed" in shown) == without
    assert [times.call for times in load(path).calls] == ["host", "wall"]
    assert main(["diff", str(path), str(path)]) == 0


@pytest.mark.parametrize("option", [["--calls", "hosts"], ["--backends", "eagre"], ["--shape", "tail:1"]])
def test_what_does_not_exist_takes_one_line(option: list[str], capsys) -> None:
    assert main(["calls", *option]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ratios_are_to_eager_and_mean() -> None:
    samples = {
        name: synthetic.samples(us, seed=i) for i, (name, us) in enumerate((("triton", 5), ("eager", 20), ("mean", 10)))
    }
    table = call_table(CallTimes("host", "tail:1,2,3,4", "float32", samples))
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells[0] == ["triton", "eager", "mean"]
    assert cells[4][0].startswith("0.250 [") and cells[4][1] == "-" and cells[5][0].startswith("0.500 [")


def test_what_is_asked_for_twice_is_timed_once(planted: list[tuple[int, int]], tmp_path: Path) -> None:
    shapes = ["--shape", "tail:1,2,4,4", "--shape", "tail:1,2,4,4"]
    path, text = tmp_path / "calls.json", ["--text", str(tmp_path / "calls.txt")]
    options = ["--calls", "host,host", "--backends", "eager,eager", "--budget-seconds", "0.01"]
    assert main(["calls", *shapes, *options, "--json", str(path), *text]) == 0
    assert [(times.call, times.shape) for times in load(path).calls] == [("host", "tail:1,2,4,4")]
    assert "nothing was timed" not in (tmp_path / "calls.txt").read_text()


def test_nothing_timed_exits_with_1(planted: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calls", "--shape", "tail:1,2,4,4", "--calls", "host", "--backends", "triton"]) == 1
    assert capsys.readouterr().out.endswith("\nnothing was timed\n")


def test_what_no_machine_holds_is_refused_before_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calls", "--shape", "tail:1,1,999999999,999999999"]) == 2
    assert "--shape tail:1,1,999999999,999999999: needs" in capsys.readouterr().err
