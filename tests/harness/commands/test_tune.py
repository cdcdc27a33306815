"""The command `tune`: what it refuses, what it lists, and what it writes; on a bench of no device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.cli import main
from harness.commands import tune
from harness.records.record import Environment
from harness.tuning import sweep
from runtime import plan
from tests.harness.tuning.made_up import CPU, FEW, MadeUp
from tests.usable import require

HERE = Environment("2026-01-01", "bench.py tune", "abc", "Linux", "3.13", {}, gpu="A Card")
SHAPE = ["--shape", "tail:1,2,40,40", "--backends", "triton"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backends", "torch"], "--backends: expected some of triton, cupy, got 'torch'"),
        (["--operator", "mine.py"], "--operator: only launches of the project's own kernels"),
        (["--seconds", "0"], "--seconds: expected a positive number, got 0.0"),
        (["--seconds", "nan"], "--seconds: expected a positive number, got nan"),
        (["--cases", "nothing"], "nothing"),
        (["--json", "a", "--apply", "a"], "a file of its own"),
        (["--apply", "absent/plan.json"], "no directory absent"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--list", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_lists_and_times_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    require("triton", CPU)
    assert main(["tune"]) == 2
    assert "--list shows what would be tried" in capsys.readouterr().err
    assert main(["tune", "--list", *SHAPE]) == 0
    assert "PART_WARPS 4" in capsys.readouterr().out


def test_under_a_plan_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan.Plan("", "A Card", "by a test", {}).to_json())
    monkeypatch.setattr(plan, "PATH", path)
    assert main(["tune", "--list"]) == 2
    assert "unset CONVGAP_PLAN" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Triton's kernels are compiled")
@pytest.mark.parametrize(("by", "constants"), [(1.25, {"triton": {"PART_WARPS": 4}}), (1.0, {})])
def test_it_writes_results_text_and_a_plan(
    by: float,
    constants: dict[str, dict[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    require("triton", CPU)
    made = MadeUp(lambda found, *_: 10.0 / (by if found["PART_WARPS"] == 4 else 1.0))
    monkeypatch.setattr(sweep, "tunable", lambda backend: FEW)
    monkeypatch.setattr(tune, "_device", lambda: CPU)
    monkeypatch.setattr(tune, "_bench", lambda *_, **__: made.bench())
    monkeypatch.setattr(tune, "environment", lambda *_: HERE)
    paths = {name: tmp_path / name for name in ("json", "text", "apply")}
    outputs = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    assert main(["tune", *SHAPE, *outputs]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 settings right" in out and "s left" in out and paths["text"].read_text() in out
    found = json.loads(paths["json"].read_text())
    assert found["metadata"]["gpu"] == "A Card" and len(found["results"]) == 4 + 2 * bool(constants)
    written = plan.load(paths["apply"])
    assert (written.card, written.constants) == ("A Card", constants)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU Triton's kernels are compiled")
def test_wrong_answers_of_the_shipped_constants_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require("triton", CPU)
    made = MadeUp(lambda *_: 10.0, wrong={"PART_WARPS": 8})
    monkeypatch.setattr(tune, "_device", lambda: CPU)
    monkeypatch.setattr(tune, "_bench", lambda *_, **__: made.bench())
    assert main(["tune", *SHAPE]) == 1
    assert "triton as shipped: " in capsys.readouterr().out
