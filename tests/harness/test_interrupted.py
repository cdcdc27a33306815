"""Ctrl-C costs a command one line and exit code 130, wherever it comes; so does a Python without torch, with code 2."""

from __future__ import annotations

import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import pytest

from harness.candidates import judging
from harness.candidates.problems import calibration
from harness.cli import main
from harness.commands import calls, inspect_kernels
from harness.mutants import score
from harness.numerics import campaign
from harness.numerics.example import Example

ROOT = Path(__file__).parents[2]
CANDIDATE = str(ROOT / "examples" / "candidates" / "tail_triton.py")


def interrupt(*_: Any, **__: Any) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "module, name, command",
    [
        (judging, "judge", ["judge", CANDIDATE]),
        (calibration, "rows", ["judge", "--calibrate"]),
        (inspect_kernels, "collect_elsewhere", ["inspect"]),
        (calls, "measure", ["calls"]),
        (score, "scores", ["check", "--mutants"]),
    ],
)
def test_a_command_that_is_interrupted_says_so(
    module: Any,
    name: str,
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, name, interrupt)
    assert main(command) == 130
    assert capsys.readouterr().err == f"bench.py {command[0]}: interrupted\n"


def test_fuzz_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = count()

    def third(example: Example) -> bool:
        return next(numbers) < 2 or interrupt()

    monkeypatch.setattr(campaign, "check", third)
    assert main(["fuzz", "--backends", "torch", "--seed", "7"]) == 130
    captured = capsys.readouterr()
    assert "2 examples, no miss" in captured.out and "seed 7" in captured.out
    assert captured.out.splitlines()[0].endswith(", interrupted")
    assert captured.err == "bench.py fuzz: interrupted\n"


FINDER = "sys.meta_path.insert(0, type('Finder', (), {'find_spec': staticmethod(find)}))"
FRONT_DOOR = "sys.argv = ['bench.py', 'list']; runpy.run_path('bench.py', run_name='__main__')"


@pytest.mark.parametrize(
    "error, code, says",
    [
        ("KeyboardInterrupt", 130, "bench.py list: interrupted\n"),
        (
            "ModuleNotFoundError(name='torch')",
            2,
            "bench.py list: this Python has no torch: use `uv run bench.py`, which brings it\n",
        ),
    ],
)
def test_the_front_door_answers_for_what_is_imported(error: str, code: int, says: str) -> None:
    find = f"def find(name, *_):\n    if name == 'torch':\n        raise {error}"
    program = "\n".join(("import runpy, sys", find, FINDER, FRONT_DOOR))
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", says)
