"""Verdicts on distributions made to deserve them, refusals, and exit codes."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from harness.cli import main
from harness.records.as_json import to_json
from harness.records.differences import EFFECT, compare, compare_samples, judge
from harness.records.record import Run
from harness.timing.calls import CallTimes
from harness.timing.intervals import Interval
from tests import synthetic


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (0.99, 1.01, "same"),
        (1.04, 1.06, "slower"),
        (0.90, 0.95, "faster"),
        (1.02, 1.05, "ambiguous"),
        (0.95, 0.99, "ambiguous"),
        (0.80, 1.20, "ambiguous"),
        (0.0, inf, "ambiguous"),
    ],
)
def test_judge(low: float, high: float, verdict: str) -> None:
    assert judge(Interval(low, high), EFFECT) == verdict


@pytest.mark.parametrize("median", [12.0, 24.0, 120.0, 4200.0])
def test_back_to_back_runs_are_not_told_apart(median: float) -> None:
    # Two runs of one thing, their medians 1 % apart as clocks make them: 95 % of verdicts must not accuse.
    wrong = 0
    for trial in range(40):
        drift = 1 + 0.01 * (-1) ** trial
        old = synthetic.samples(median, seed=2 * trial, spread=0.02)
        new = synthetic.samples(median * drift, seed=2 * trial + 1, spread=0.02)
        wrong += compare_samples(old, new, EFFECT)[0] in ("slower", "faster")
    assert wrong <= 2


@pytest.mark.parametrize("median", [12.0, 24.0, 120.0, 4200.0])
@pytest.mark.parametrize("factor, verdict", [(1.10, "slower"), (1 / 1.10, "faster")])
def test_ten_percent_is_always_seen(median: float, factor: float, verdict: str) -> None:
    for trial in range(20):
        old = synthetic.samples(median, seed=trial, spread=0.02)
        new = synthetic.samples(factor * median, seed=trial + 100, spread=0.02)
        assert compare_samples(old, new, EFFECT)[0] == verdict


def test_less_than_an_event_resolves_is_no_change() -> None:
    # 4 us and 4.4 us: 10 %, but less than the 0.5 us an event resolves.
    assert compare_samples([4.0] * 50, [4.4] * 50, EFFECT)[0] == "same"


def test_a_few_samples_prove_nothing() -> None:
    assert compare_samples([100.0] * 5, [200.0] * 50, EFFECT)[0] == "ambiguous"


def test_rows_that_come_and_go() -> None:
    old, new = synthetic.run(), synthetic.run()
    new.cases[0].results[0].status, new.cases[0].results[0].samples = "wrong", {}
    old.cases[0].results[1].status, old.cases[0].results[1].samples = "unavailable", {}
    del new.cases[0].results[2]
    del old.cases[1].results[3]
    found = {(c.case, c.entry): c.verdict for c in compare(old, new) if c.mode == "cold"}
    assert found["chain-headline", "triton"] == "broken"
    assert found["chain-headline", "cupy"] == "repaired"
    assert found["chain-headline", "torch"] == "gone"
    assert found["tail-256x256", "inductor"] == "new"
    assert found["tail-256x256", "triton"] == "same"


@pytest.fixture
def files(tmp_path: Path):
    def write(old: Run, new: Run) -> list[str]:
        paths = [tmp_path / "old.json", tmp_path / "new.json"]
        for path, run in zip(paths, (old, new), strict=True):
            path.write_text(to_json(run))
        return ["diff", *map(str, paths)]

    return write


def test_exit_code_0_without_a_regression(files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files(synthetic.run(), synthetic.run(seed=1000))) == 0
    assert "20 same" in capsys.readouterr().out


def test_exit_code_1_with_a_regression(files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files(synthetic.run(), synthetic.run(seed=1000, factor=1.1))) == 1
    assert "20 slower" in capsys.readouterr().out


def test_a_backend_gone_wrong_is_a_regression(files) -> None:
    new = synthetic.run()
    new.cases[0].results[0].status, new.cases[0].results[0].samples = "wrong", {}
    assert main(files(synthetic.run(), new)) == 1


def test_faster_is_no_regression(files) -> None:
    assert main(files(synthetic.run(factor=1.1), synthetic.run())) == 0


def test_a_larger_effect_forgives_more(files) -> None:
    assert main([*files(synthetic.run(), synthetic.run(factor=1.1)), "--effect", "15"]) == 0


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_different_gpus_need_a_flag(files, capsys: pytest.CaptureFixture[str]) -> None:
    command = files(synthetic.run(), synthetic.run(gpu="Another GPU"))
    assert "different GPUs: Made-up GPU and Another GPU" in refused(command, capsys)
    assert main([*command, "--allow-different-gpu"]) == 0


def test_different_problems_under_one_name(files, capsys: pytest.CaptureFixture[str]) -> None:
    new = synthetic.run()
    new.cases[1].shape = "tail:1,2,3,4"
    assert "tail-256x256: not the same problem" in refused(files(synthetic.run(), new), capsys)


def test_unusable_input(files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = files(synthetic.run(), synthetic.run())
    assert "--effect" in refused([*command, "--effect", "-1"], capsys)
    Path(command[1]).write_text("{}")
    assert "old.json: expected a record" in refused(command, capsys)
    assert "missing.json: cannot be read" in refused(["diff", str(tmp_path / "missing.json"), command[2]], capsys)


def test_records_without_times(files, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [synthetic.run(), synthetic.run()]
    for run in runs:
        for case in run.cases:
            for row in case.results:
                row.samples = {}
    assert "neither record holds a timed entry" in refused(files(*runs), capsys)


@pytest.mark.parametrize(
    "change",
    [{"values": "normal"}, {"multiplier": "tensor"}, {"seed": 7}, {"op": "backward"}, {"layout": "sliced"}],
)
def test_another_problem_is_not_compared(change: dict[str, object], files, capsys: pytest.CaptureFixture[str]) -> None:
    new = synthetic.run()
    for name, value in change.items():
        setattr(new.cases[0], name, value)
    assert f"({next(iter(change))} " in refused(files(synthetic.run(), new), capsys)


def test_what_an_older_record_does_not_say_is_taken_as_equal(files) -> None:
    old = synthetic.run()
    for case in old.cases:
        case.values = case.multiplier = case.seed = None
    assert main(files(old, synthetic.run(seed=1000))) == 0


def test_an_interrupted_run_passes_no_gate(files, capsys: pytest.CaptureFixture[str]) -> None:
    part = synthetic.run()
    part.finished = False
    assert "the new record is of a run that was interrupted" in refused(files(synthetic.run(), part), capsys)
    assert "the old record is of a run that was interrupted" in refused(files(part, synthetic.run()), capsys)


def test_nothing_in_common_passes_no_gate(files, capsys: pytest.CaptureFixture[str]) -> None:
    other, empty = synthetic.run(), synthetic.run()
    for case in other.cases:
        case.name += "-other"
    empty.cases = []
    assert "no timed entry in common" in refused(files(synthetic.run(), other), capsys)
    assert "the new record holds no case" in refused(files(synthetic.run(), empty), capsys)


def with_calls(factor: float = 1.0) -> Run:
    run = synthetic.run()
    times = {"triton": synthetic.samples(factor * 12.0, spread=0.02), "eager": synthetic.samples(60.0)}
    run.calls = [CallTimes("host", "tail:1,2,3,4", "float32", times, {"cupy": "not here"})]
    return run


def test_calls_are_compared_too(files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files(with_calls(), with_calls(1.3))) == 1
    assert "slower" in capsys.readouterr().out
    assert main(files(with_calls(1.3), with_calls())) == 0
    gone = with_calls()
    del gone.calls[0].samples["triton"]
    gone.calls[0].missing["triton"] = "it raised"
    assert main(files(with_calls(), gone)) == 1


@pytest.mark.parametrize("effect", ["inf", "nan", "0"])
def test_an_effect_that_forgives_all_or_nothing(effect: str, files, capsys) -> None:
    assert "--effect" in refused([*files(synthetic.run(), synthetic.run()), "--effect", effect], capsys)
