"""The softmax of examples/second_operator goes through every command that chain and tail go through."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cases import operators
from harness.cases.inputs import make_inputs
from harness.cases.spelling import arguments, case_and_entry, parse
from harness.cli import main
from harness.commands import calls
from harness.entries.entry import choose
from harness.numerics.campaign import draw, search
from harness.numerics.example import templates_of
from harness.records.as_json import load
from harness.records.environment import environment
from harness.records.record import Run
from harness.runs.run import run_cases
from harness.timing.session import Stop
from tests.harness.planted import fake_timer

FILE = Path(__file__).parents[3] / "examples" / "second_operator" / "softmax.py"
OPERATOR = ["--operator", str(FILE)]


@pytest.fixture
def softmax(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, known to this test only."""
    monkeypatch.setattr(operators, "_own", {})
    return operators.load(FILE)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line without a GPU, on every machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def mistaken(softmax: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Puts a function of x in the place of the softmax in plain torch, as if it were ours."""

    def plant(wrong: Any) -> None:
        way = replace(softmax.implementations["eager"], call=lambda i: wrong(i.x), product=True)
        monkeypatch.setattr(softmax, "implementations", {"planted": way}, raising=False)

    return plant


def test_the_example_is_short() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) < 150


def _run(operator: Any, device: torch.device, timer: Any = None) -> Run:
    found = Run(environment(device, None), {})
    cases = [case.small() for group in operator.cases.values() for case in group]
    entries = choose(None, gpu=True, table=operator.entries())
    run_cases(found, cases, entries, device, timer, lambda _: None)
    return found


def test_it_is_checked(softmax: Any, device: torch.device) -> None:
    usable = [name for name, way in softmax.implementations.items() if not way.unusable(device)]
    for case in _run(softmax, device).cases:
        assert not case.unmade
        assert [r.entry for r in case.results if r.status == "right"] == usable
        assert case.op == "softmax" and case.multiplier is None


def test_it_is_timed(softmax: Any, device: torch.device) -> None:
    case = _run(softmax, device, fake_timer([])).cases[0]
    assert {r.entry for r in case.results if r.samples} >= {"eager"}
    assert case.reference == "eager" and case.compulsory_bytes == 2 * 4 * 3 * 1000


@pytest.mark.parametrize("name", ["triton", "cupy"])
def test_random_calls_find_nothing(softmax: Any, device: torch.device, name: str) -> None:
    pytest.importorskip("hypothesis", reason="hypothesis draws the examples")
    if reason := softmax.implementations[name].unusable(device):
        pytest.skip(reason)
    found = search(name, device.type, examples=60, seed=0, pool_size=10, operator=softmax)
    assert not found.miss
    assert found.ran.total() == 60 and set(found.ran) == {"right", "samples permuted"}


MISTAKES = {
    "no largest subtracted": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "first element dropped": lambda x: torch.softmax(torch.cat([x[:, :1] - 1e30, x[:, 1:]], 1), 1),
    "rows swapped": lambda x: torch.softmax(x, 1).flip(0),
    "along the columns": lambda x: torch.softmax(x, 0) if len(x) else x.contiguous(),
    "half precision": lambda x: torch.softmax(x.half(), 1).float(),
    "a ten-thousandth too large": lambda x: torch.softmax(x, 1) * 1.0001,
    "nothing": lambda x: torch.zeros_like(x, memory_format=torch.contiguous_format),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_softmax_is_found(softmax: Any, mistaken: Any, device: torch.device, name: str) -> None:
    mistaken(MISTAKES[name])
    results = [case.results[0] for case in _run(softmax, device).cases]
    assert any(result.status == "wrong" for result in results)
    pytest.importorskip("hypothesis", reason="hypothesis draws the examples")
    found = search("planted", device.type, examples=60, seed=0, pool_size=10, operator=softmax)
    assert found.miss and f"--operator {FILE}" in found.miss


def test_a_case_survives_the_way_to_another_process(softmax: Any) -> None:
    case = softmax.cases["edge"][1]
    words = arguments(case, "eager")
    assert words[0] == f"--operator={FILE}"
    again, entry = case_and_entry(words)
    assert replace(again, reason=case.reason) == case and entry == "eager"


def test_the_command_of_a_random_call_makes_it_again(softmax: Any, no_gpu: None) -> None:
    pool = templates_of(softmax, 0, 6)
    for template in range(6):
        example = draw("eager", "cpu", pool, "right", template, template)
        words = shlex.split(example.command())
        assert words[:2] == ["python3", "bench.py"]
        assert main(words[2:]) == 0


def test_check_compare_show_and_list(softmax: Any, no_gpu: None, tmp_path: Path, capsys: Any) -> None:
    record = str(tmp_path / "record.json")
    assert main(["check", *OPERATOR, "--backends", "cupy,eager"]) == 0
    assert "softmax/edge/nonfinite" in capsys.readouterr().out
    assert main(["compare", *OPERATOR, "--backends", "cupy,eager", "--json", record]) == 0
    assert [case.shape for case in load(Path(record)).cases] == ["softmax:3,1000"]
    capsys.readouterr()
    assert main(["show", record]) == 0
    assert "softmax/headline" in capsys.readouterr().out
    assert main(["list", *OPERATOR, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["entry"] for line in found["entries"]] == ["triton", "cupy", "eager"]
    assert {line["shape"].partition(":")[0] for line in found["cases"]} == {"softmax"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="timing needs a GPU")
def test_on_a_gpu_all_three_are_timed(softmax: Any, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    assert main(["compare", *OPERATOR, "--budget-seconds", "1", "--json", str(record)]) == 0
    (case,) = load(record).cases
    assert case.shape == "softmax:8192,2048" and case.reference == "eager"
    assert [(r.entry, r.status) for r in case.results] == [
        ("triton", "timed"),
        ("cupy", "timed"),
        ("eager", "timed"),
    ]


def test_calls(softmax: Any, no_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = Stop(min_rounds=2, max_rounds=2, budget_s=1.0)
    monkeypatch.setattr(calls, "Stop", lambda **_: few)
    record = tmp_path / "calls.json"
    kinds = "host,new size,step wall,first call"
    assert main(["calls", *OPERATOR, "--calls", kinds, "--json", str(record)]) == 0
    times = load(record).calls
    assert [found.call for found in times] == kinds.split(",")
    for found in times:
        assert list(found.samples) == ["eager"]
        assert found.missing["triton"].startswith("interpreted")


@pytest.mark.parametrize(
    "words, says",
    [
        (["check", "--shape", "tail:1,2,3,4"], "--shape: expected softmax:ROWS,COLUMNS with --operator"),
        (["check", "--shape", "softmax:3,0"], "columns: expected at least 1, got 0"),
        (["check", "--shape", "softmax:3"], "expected 2 sizes first: softmax:ROWS,COLUMNS"),
        (["check", "--dtype", "float16"], "unknown dtype 'float16', expected some of float32"),
        (["check", "--layout", "channels_last"], "unknown layout 'channels_last'"),
        (["check", "--multiplier", "2"], "--multiplier: softmax has none"),
        (["check", "--mutants"], "--mutants: they are wrong chains and tails"),
        (["check", "--op", "chain"], "--op chain excludes"),
        (["check", "--backends", "torch"], "no entry is named 'torch'; expected some of triton, cupy, eager"),
        (["compare", "--backward"], "--backward: only chains have gradients"),
        (["fuzz", "--backends", "eager"], "--backends: expected some of triton, cupy, got 'eager'"),
        (["calls", "--dtype", "float16"], "--dtype: expected one of float32, got 'float16'"),
        (["calls", "--backends", "mean"], "--backends: expected some of triton, cupy, eager"),
    ],
)
def test_what_it_has_not_is_refused(softmax: Any, no_gpu: None, words: list[str], says: str, capsys: Any) -> None:
    assert main([words[0], *OPERATOR, *words[1:]]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_strided_rows_have_the_values_of_contiguous_ones(softmax: Any) -> None:
    case = replace(softmax.cases["edge"][1], problem=parse("softmax:4,9"))
    contiguous = make_inputs(case, "cpu").x
    for layout in softmax.layouts:
        x = make_inputs(case, "cpu", layout=layout).x
        assert torch.equal(x, x[:1].expand(4, 9) if layout == "expanded" else contiguous)
