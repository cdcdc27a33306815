"""The projection's model on figures that can be worked out by hand; no GPU and no compiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import main
from harness.commands.project import render
from harness.errors import UsageError
from harness.machine import projection
from harness.machine.projection import Memory, fit, project
from harness.records.as_json import to_json
from harness.records.record import CaseRecord, Environment, Result, Run
from harness.timing.floors import RTX_4090, Card

MIB = 1 << 20
BANDWIDTH = 4800.0


def record(gpu: str | None = "a card", us: float = 122.0) -> Run:
    """Two floors, and one time of the larger case."""
    environment = Environment("", "", "", "", "", {}, gpu=gpu)
    large = CaseRecord("tail/headline", "tail", "", "float32", "contiguous", "", 512 * MIB, floor_us={"cold": 118.6})
    large.results = [Result("triton", "timed", samples={"cold": [us] * 5}), Result("eager-ieee", "timed")]
    small = CaseRecord("tail/other", "tail", "", "float32", "contiguous", "", 64 * MIB, floor_us={"cold": 18.6})
    return Run(environment, {}, Card("a card", BANDWIDTH, 50 << 20, 132), cases=[large, small])


def with_floors(points: list[tuple[int, float]]) -> Run:
    case = record().cases[1]
    run = record()
    run.cases = [replace(case, compulsory_bytes=size, floor_us={"cold": us}) for size, us in points]
    return run


def test_fit_finds_start_and_rate() -> None:
    """3 us and 80 % of 1000 GB/s: exact on points that lie on the line."""
    points = [(size, 3.0 + size / 800e3) for size in (10_000_000, 50_000_000, 300_000_000)]
    memory = fit(with_floors(points), 1000.0)
    assert memory.start_us == pytest.approx(3.0) and memory.share == pytest.approx(0.8)


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (1, 3.0)], [(1, 3.0), (2, 2.0)]])
def test_fit_refuses_what_gives_no_rate(points: list[tuple[int, float]]) -> None:
    with pytest.raises(UsageError, match="cold floors"):
        fit(with_floors(points), 1000.0)


def test_what_comes_on_top_of_memory_is_added() -> None:
    run = record()
    memory = fit(run, BANDWIDTH)
    (line,) = project(run, memory, BANDWIDTH)
    assert line.measured == 122.0 and line.floor == pytest.approx(118.6)
    # The record's card gives more of its DRAM's rate than 4090s are seen to give: 921.85 GB/s at most, 866.65 at least.
    assert memory.share > 921.85 / 1008
    for found, rate in ((line.low, 921.85e3), (line.high, 866.65e3)):
        assert found == pytest.approx(memory.start_us + 512 * MIB / rate + 122.0 - 118.6)
    assert line.warm is None


def test_a_card_that_gives_less_than_4090s_do_is_the_measure() -> None:
    memory = Memory(4.0, 0.5)
    assert projection.there(memory, 921.85) == memory
    assert projection.there(Memory(4.0, 1.0), 504.0) == memory


def test_rates_that_are_seen_have_a_source_and_lie_where_they_may() -> None:
    """86 to 91.5 % of the datasheet's rate; an L2 faster than DRAM."""
    assert RTX_4090.bandwidth
    low, high = projection.seen("DRAM")
    assert low / RTX_4090.bandwidth == pytest.approx(0.860, abs=5e-4)
    assert high / RTX_4090.bandwidth == pytest.approx(0.914, abs=1e-3)
    assert projection.seen("L2")[0] > RTX_4090.bandwidth
    assert all(found.source.startswith("https://") and found.what for found in projection.SEEN)


def test_what_memory_does_not_limit_is_not_projected() -> None:
    run = record(us=500.0)
    memory = fit(run, BANDWIDTH)
    (line,) = project(run, memory, BANDWIDTH)
    assert line.error < -0.5 and (line.low, line.high, line.warm) == (None, None, None)
    assert "none: memory does not limit it" in render(run, memory, [line])


def test_an_input_that_fits_the_l2_is_projected_warm_too() -> None:
    run = record(us=22.0)
    large, small = run.cases
    large.compulsory_bytes, small.compulsory_bytes = 64 * MIB, 512 * MIB
    large.floor_us, small.floor_us = small.floor_us, large.floor_us
    (line,) = project(run, fit(run, BANDWIDTH), BANDWIDTH)
    assert line.low is not None and line.warm is not None and line.warm < line.low


def test_known_4090_time_is_no_input_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    before = projection.baseline_us(Memory(4.0, 0.95))
    monkeypatch.setattr(projection, "BASELINE_US", 1.0)
    assert projection.baseline_us(Memory(4.0, 0.95)) == before
    assert before == pytest.approx(4.0 + 512 * MIB / 921.85e3)


def test_every_projected_figure_says_so(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(to_json(record()))
    text, data = tmp_path / "out.txt", tmp_path / "out.json"
    assert main(["project", "--record", str(path), "--text", str(text), "--json", str(data)]) == 0
    shown = text.read_text()
    head, tail = shown.split("Projected for the RTX 4090")
    assert "error of the model" in head and "600" in head and "projected us, cold" in tail
    assert f'"projected_for": "{RTX_4090.name}"' in data.read_text()


def test_records_join_and_the_later_one_counts() -> None:
    first, second = record(), record()
    first.cases = [replace(second.cases[0], name="only here"), *first.cases]
    second.cases = [replace(case, dtype="float16") for case in second.cases]
    found = projection.joined([first, second])
    assert [case.name for case in found.cases] == ["only here", *(case.name for case in second.cases)]
    assert {case.dtype for case in found.cases[1:]} == {"float16"}
    with pytest.raises(UsageError, match="records of one GPU"):
        projection.joined([first, record("another")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"environment": Environment("", "", "", "", "", {})}, "without a GPU"),
        ({"environment": Environment("", "", "", "", "", {}, gpu=RTX_4090.name)}, "nothing to project"),
        ({"card": None}, "does not say the bandwidth"),
    ],
)
def test_records_that_give_nothing(
    change: dict, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text(to_json(replace(record(), **change)))
    assert main(["project", "--record", str(path)]) == 2
    assert words in capsys.readouterr().err
