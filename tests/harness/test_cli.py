"""The command line: its errors, its exit codes, and whole runs on fake backends and a fake device."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from convgap.probe import cannot_interpret
from harness.cases.case import Case
from harness.cases.inputs import Inputs
from harness.cli import COMMANDS, main
from harness.commands import check, compare, doctor
from harness.console import console
from harness.entries.entry import Built, Entry
from harness.machine import compilers
from harness.records.as_json import load
from harness.runs import timer
from tests.harness.planted import broken, eagerly, fake_timer
from torch_impl import backward

ROOT = Path(__file__).parents[2]
SMALL = ["--shape", "tail:2,3,4,5"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs are about the command line: on every machine they take the path without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Exit code 2, one line on standard error, nothing on standard output."""
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", ["compare", "check"])
@pytest.mark.parametrize(
    "options, says",
    [
        (["--cases", "chain/headlin"], "chain/headline"),
        (["--backends", "tritn"], "no entry is named 'tritn'"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--layout", "nhwc"], "unknown layout 'nhwc'"),
        (["--shape", "tail:1,2,3"], "expected 4 sizes first"),
        (["--shape", "conv:1,2,3,4"], "expected chain:"),
        (["--cases", "tail/headline", "--op", "chain"], "no case is left"),
    ],
)
def test_bad_choices_take_one_line(
    command: str, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused([command, *options], capsys)


@pytest.mark.parametrize(
    "options, says",
    [
        (["--flush", "wash"], "unknown flush 'wash'"),
        (["--budget-seconds", "0"], "--budget-seconds"),
        (["--precision", "-1"], "--precision"),
        (["--plot", "somewhere"], "timing needs a GPU"),
        (["--json", "no/such/place.json"], "no directory no/such"),
        (["--csv", "."], "is a directory"),
    ],
)
def test_bad_options_of_compare_take_one_line(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused([*SMALL, *options], capsys)


def test_an_unwritable_output_is_found_before_anything_runs(
    entries: dict[str, Entry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compare, "run_cases", lambda *_: pytest.fail("ran although the output cannot be written"))
    refused([*SMALL, "--json", str(tmp_path / "a.json"), "--csv", str(tmp_path / "no" / "b.csv")], capsys)
    assert os.listdir(tmp_path) == []


def test_argparse_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--cold", "--warm"])
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["compare", "check"])
def test_right_answers_exit_with_0(command: str, entries: dict[str, Entry], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "shape/tail:2,3,4,5" in out and "2 answers inside their budget, 0 wrong" in out
    assert "absent: not on 1 of 1 cases: not made for this case" in out
    assert ("timing needs a GPU" in out) == (command == "compare")
    assert "\x1b" not in out


def test_a_wrong_answer_exits_with_1(entries: dict[str, Entry], capsys: pytest.CaptureFixture[str]) -> None:
    entries["wrong"] = Entry("wrong", "planted", eagerly(1.01), cpu=True)
    assert main(SMALL) == 1
    out = capsys.readouterr().out
    assert "wrong: wrong:" in out and "1 wrong" in out


def test_a_product_backend_that_dies_is_wrong_and_another_row_is_not(
    entries: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    entries["other"] = Entry("other", "planted", broken, cpu=True)
    assert main(SMALL) == 0
    assert "other: not on 1 of 1 cases: RuntimeError: device on fire" in capsys.readouterr().out
    entries["own"] = Entry("own", "planted", broken, product=True, cpu=True)
    assert main(SMALL) == 1
    assert "own: wrong: RuntimeError: device on fire" in capsys.readouterr().out


BACKWARD = [
    "--backward",
    "--shape",
    "chain:2,3,4,5,6,k3,s2,p1,op1",
    "--backends",
    "torch,eager-ieee,inductor",
]


def test_gradients_are_compared_on_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*BACKWARD, "--json", str(tmp_path / "run.json")]) == 0
    out = capsys.readouterr().out
    assert "2 answers inside their budget, 0 wrong" in out
    assert "inductor: not on 1 of 1 cases: the entry is for outputs, not for gradients" in out
    (case,) = load(tmp_path / "run.json").cases
    assert (case.name, case.op) == ("backward/shape/chain:2,3,4,5,6,k3,s2,p1,op1", "backward")
    # dx, and two times the size of the weight.
    assert case.compulsory_bytes == 4 * (2 * 3 * 5 * 6 + 2 * 3 * 4 * 3 * 3)


def test_a_wrong_gradient_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = backward.band_fill
    monkeypatch.setattr(backward, "band_fill", lambda problem, d, dx: right(problem, d, dx).roll(1, 3))
    assert main(BACKWARD) == 1
    assert "torch: wrong:" in capsys.readouterr().out


def test_only_chains_have_gradients_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--backward: only chains have gradients" in refused(["--backward", *SMALL], capsys)


def test_no_answer_at_all_exits_with_1(entries: dict[str, Entry]) -> None:
    assert main([*SMALL, "--backends", "absent"]) == 1


def test_the_record_is_written(entries: dict[str, Entry], tmp_path: Path) -> None:
    assert main([*SMALL, "--json", str(tmp_path / "run.json"), "--csv", str(tmp_path / "run.csv")]) == 0
    run = load(tmp_path / "run.json")
    assert run.finished and [found.status for found in run.cases[0].results] == [
        "right",
        "right",
        "unavailable",
    ]
    assert run.cases[0].shape == "tail:2,3,4,5" and run.environment.versions["torch"]
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 4
    assert sorted(os.listdir(tmp_path)) == ["run.csv", "run.json"]


def test_ctrl_c_keeps_what_is_finished(
    entries: dict[str, Entry], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = itertools.count()

    def interrupted(case: Case, inputs: Inputs) -> Built:
        if next(count) == 1:
            raise KeyboardInterrupt
        return eagerly()(case, inputs)

    entries["right"] = Entry("right", "planted", interrupted, cpu=True)
    path = tmp_path / "run.json"
    assert main([*SMALL, "--shape", "tail:2,3,6,7", "--json", str(path)]) == 130
    out = capsys.readouterr().out
    assert "interrupted" in out and "tail:2,3,4,5" in out and "tail:2,3,6,7" not in out
    run = load(path)
    assert not run.finished and [case.shape for case in run.cases] == ["tail:2,3,4,5"]


def test_dtype_and_layout_make_variants_with_names_of_their_own(entries: dict[str, Entry], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    options = ["--dtype", "float32,float64", "--layout", "contiguous,channels_last", "--json", str(path)]
    assert main([*SMALL, *options]) == 0
    assert [case.name.partition("@")[2] for case in load(path).cases] == [
        "",
        "channels_last",
        "float64",
        "float64@channels_last",
    ]


def test_the_seed_changes_the_inputs(entries: dict[str, Entry]) -> None:
    seen: list[torch.Tensor] = []

    def watch(case: Case, inputs: Inputs) -> Built:
        seen.append(inputs.x)
        return eagerly()(case, inputs)

    entries["right"] = Entry("right", "planted", watch, cpu=True)
    for seed in ("0", "0", "1"):
        assert main([*SMALL, "--seed", seed]) == 0
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_every_command_has_its_three_names() -> None:
    assert {"compare", "check", "doctor", "diff"} <= set(COMMANDS)
    for module in (compare, check, doctor):
        assert module.SUMMARY and callable(module.add_arguments) and callable(module.run)


def test_the_front_door_opens() -> None:
    """bench.py itself, in a fresh process whose output is a pipe."""
    env = os.environ | {"FORCE_COLOR": "1"}  # must not bring colour back into a pipe
    done = subprocess.run(
        [sys.executable, "bench.py", "check", *SMALL, "--backends", "eager-ieee"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "shape/tail:2,3,4,5" in done.stdout and "\x1b" not in done.stdout


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_front_door_interprets_triton_where_there_is_no_gpu() -> None:
    # In a process whose environment does not say so: these tests' own does.
    env = compilers.environment()
    done = subprocess.run(
        [sys.executable, "bench.py", "check", *SMALL, "--backends", "triton"],
        cwd=ROOT,
        env=env | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if reason := cannot_interpret(version("triton"), version("numpy")):
        pytest.skip(reason)
    assert "triton: interpreter" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_whole_timed_run(
    entries: dict[str, Entry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(timer, "timer_for", lambda device, settings: fake_timer([]))
    entries["wrong"] = Entry("wrong", "planted", eagerly(1.01), cpu=True)
    path = tmp_path / "run.json"
    command = [*SMALL, "--json", str(path), "--csv", str(tmp_path / "run.csv")]
    plot = ["--plot", str(tmp_path / "p.svg")] if find_spec("matplotlib") else []
    assert main([*command, *plot]) == 1
    out = capsys.readouterr().out
    assert "cold us" in out and "speed-up over eager-ieee" in out and "Summary" in out
    assert "1 cases: 2 answers inside their budget, 1 wrong" in out
    assert len(os.listdir(tmp_path)) == 2 + 3 * bool(plot)
    assert load(path).ceilings[0].kind == "empty"
    assert main(["diff", str(path), str(path)]) == 0


def test_a_right_row_that_was_not_timed_exits_with_1(
    entries: dict[str, Entry], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopwatch(launch: Any, prepare: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(timer, "timer_for", lambda *_: fake_timer([], stopwatch=stopwatch))
    assert main(SMALL) == 1
    assert "2 not timed" in capsys.readouterr().out


def test_version_and_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == "bench.py 0.1.0\n"
    assert console().width == 100
    monkeypatch.setenv("COLUMNS", "70")
    assert console().width == 70
    monkeypatch.setenv("COLUMNS", "wide")
    assert console().width == 100
