"""Files of others for an operator of one's own: right, wrong and dishonest softmaxes before `judge --operator`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.candidates.problems.derived import HIDDEN, hidden, main_problem
from harness.cases import operators
from harness.cli import main

ROOT = Path(__file__).parents[3]
OPERATOR = ["--operator", str(ROOT / "examples" / "second_operator" / "softmax.py")]

MODEL = """
import torch

class ModelNew(torch.nn.Module):
    def forward(self, x):
        {body}
"""
BODIES = {
    "right": "return torch.softmax(x, 1)",
    "right, in float64": "return torch.softmax(x.double(), 1).float()",
    "rows swapped": "return torch.softmax(x, 1).flip(0)",
    "along the columns": "return torch.softmax(x, 0)",
    "no largest subtracted": "return x.exp() / x.exp().sum(1, keepdim=True)",
    "half precision": "return torch.softmax(x.half(), 1).float()",
    "a ten-thousandth too large": "return torch.softmax(x, 1) * 1.0001",
    "last element dropped": "return torch.softmax(torch.cat([x[:, :-1], x[:, -1:] - 1e38], 1), 1)",
    "argument changed": "return torch.softmax(x, 1, out=x)",
    "first answer kept": "self.kept = getattr(self, 'kept', torch.softmax(x, 1)); return self.kept",
    "raises": "raise RuntimeError('out of order')",
}
SAYS = {"argument changed": "inputs: changed one of its arguments", "raises": "RuntimeError: out of order"}


GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is known to one test only; and on every machine the path without a GPU is taken."""
    monkeypatch.setattr(operators, "_own", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.skipif(not GPU, reason="nothing is timed without a GPU")
def test_on_a_gpu_the_example_kernel_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    path = ROOT / "examples" / "candidates" / "softmax_triton.py"
    assert main(["judge", *OPERATOR, "--seconds", "2", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "by the judge's own clock" in printed and "eager-ieee" in printed


def judged(path: Path, record: Path, *words: str) -> dict[str, Any]:
    code = main(["judge", *OPERATOR, "--seed", "1", "--json", str(record), *words, str(path)])
    found = json.loads(record.read_text())
    assert code == (0 if found["verdict"] == "accepted" else 1)
    return found


@pytest.mark.parametrize("name", BODIES)
def test_a_file_is_judged_by_the_operators_own_budget(name: str, tmp_path: Path) -> None:
    path = tmp_path / "candidate.py"
    path.write_text(MODEL.format(body=BODIES[name]))
    found = judged(path, tmp_path / "verdict.json")
    if name.startswith("right"):
        assert found["verdict"] == "accepted", found["reasons"]
        assert found["settings"]["budget"].startswith("derived")
    else:
        assert found["verdict"] in ("wrong", "refused", "crashed")
        assert SAYS.get(name, "") in found["reasons"][0]


def test_the_example_kernel_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton", reason="the example is a Triton kernel")
    trace = tmp_path / "trace.jsonl"
    path = ROOT / "examples" / "candidates" / "softmax_triton.py"
    found = judged(path, tmp_path / "verdict.json", "--trace", str(trace))
    assert found["verdict"] == "accepted", found["reasons"]
    assert "ACCEPTED" in capsys.readouterr().out
    assert json.loads(trace.read_text())["definition"] == "softmax:3,1000"


def test_sizes_are_hidden_and_drawn_again_by_their_seed() -> None:
    softmax = operators.load(Path(OPERATOR[1]))
    drawn = [p.case for p in hidden(softmax, 5)]
    assert drawn == [p.case for p in hidden(softmax, 5)] != [p.case for p in hidden(softmax, 6)]
    assert [case.values for case in drawn] == list(HIDDEN)
    assert main_problem(softmax, gpu=True).case.problem == softmax.sizes(8192, 2048)
    problem = main_problem(softmax, gpu=False)
    x = problem.inputs(3)
    assert torch.equal(problem.model(0)(*x), torch.softmax(x[0], 1))


@pytest.mark.parametrize(
    "words, says",
    [
        (["--problem", OPERATOR[1]], "--problem: is not for --operator"),
        (["--dtype", "float16"], "--dtype: is not for --operator"),
        (["--rules", "strict"], "--rules: is not for --operator"),
    ],
)
def test_what_does_not_go_with_an_operator_is_refused(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "candidate.py"
    path.write_text(MODEL.format(body=BODIES["right"]))
    assert main(["judge", *OPERATOR, *words, str(path)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_file_of_another_form_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "candidate.py"
    path.write_text("def multiply_gap(y, multiplier):\n    return y\n")
    assert main(["judge", *OPERATOR, str(path)]) == 2
    assert "expected class ModelNew, as --operator asks, got form 'functions'" in capsys.readouterr().err
