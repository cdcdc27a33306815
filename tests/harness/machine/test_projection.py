"""The projection's model on figures that can be worked out by hand; no GPU and no compiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import UsageError
from harness.machine import projection
from harness.machine.occupancy import ARCHITECTURES
from harness.machine.projection import Memory, card_of, fit, model_us, project, sm_us
from harness.records.record import CardRecord, CaseRecord, Environment, Row, Run, to_json
from tests.harness.machine.test_inspect import FACTS

H200, ADA = ARCHITECTURES[90], ARCHITECTURES[89]
MIB = 1 << 20
# Its loop: 1024 instructions and 32 loads of 16 bytes, all of them under way; one block of 4 warps on each of 32 SMs.
BASELINE = replace(
    FACTS, backend="baseline", grid=32, registers=255, loop_instructions=1024, loop_bytes=512, in_flight=512
)


def record(capability: str | None = "9.0", gpu: str | None = "a card") -> Run:
    environment = Environment("", "", "", "", "", {}, gpu=gpu, capability=capability)
    large = CaseRecord(
        "tail/headline", "tail", "", "float32", "contiguous", "", 512 * MIB, floor_us={"cold": 118.6}
    )
    large.rows = [Row("triton", "timed", samples={"cold": [122.0] * 5}), Row("eager-ieee", "timed")]
    small = CaseRecord(
        "tail/other", "tail", "", "float32", "contiguous", "", 64 * MIB, floor_us={"cold": 18.6}
    )
    return Run(environment, {}, cases=[large, small])


def test_fit_finds_start_and_rate() -> None:
    """3 us and 80 % of 1000 GB/s: exact on points that lie on the line."""
    points = [(size, 3.0 + size / 800e3) for size in (10_000_000, 50_000_000, 300_000_000)]
    memory = fit(points, 1000.0)
    assert memory.start_us == pytest.approx(3.0) and memory.share == pytest.approx(0.8)


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (1, 3.0)], [(1, 3.0), (2, 2.0)]])
def test_fit_refuses_what_gives_no_rate(points: list[tuple[int, float]]) -> None:
    with pytest.raises(UsageError, match="cold floors"):
        fit(points, 1000.0)


def test_one_warp_per_scheduler_hides_nothing() -> None:
    """Each pass costs 4 cycles an instruction, a latency, and its transfer, one after the other."""
    passes = 512 * MIB / (32 * 512) / (32 * 4)
    once = 4 * 1024 / 2.52e3 + 0.7 + 32 * 512 / 16 / 2.52e3
    assert sm_us(BASELINE, ADA, 512 * MIB) == pytest.approx(passes * once)


def test_many_warps_are_bound_by_transfer_or_issue() -> None:
    crowded = replace(FACTS, registers=32, loop_instructions=1, loop_bytes=128, in_flight=128, grid=100_000)
    per_sm = 512 * MIB / ADA.sms
    assert sm_us(crowded, ADA, 512 * MIB, latency_us=0.0) == pytest.approx(per_sm / 64 / 2.52e3)
    slow = replace(crowded, loop_instructions=1_000)
    passes = 512 * MIB / (32 * 128) / (ADA.sms * 4)
    assert sm_us(slow, ADA, 512 * MIB, latency_us=0.0) == pytest.approx(passes * 1_000 / 2.52e3)


def test_more_loads_under_way_never_cost_time() -> None:
    lazy = replace(BASELINE, in_flight=64)
    assert sm_us(lazy, ADA, 512 * MIB) > sm_us(BASELINE, ADA, 512 * MIB)


def test_a_fed_kernel_is_bound_by_dram() -> None:
    us, bound = model_us([FACTS], ADA, 64 * MIB, Memory(4.0, 0.9))
    assert us == pytest.approx(4.0 + 64 * MIB / (0.9 * 1008e3)) and bound == "DRAM"
    assert model_us([FACTS, FACTS], ADA, 64 * MIB, Memory(4.0, 0.9))[0] == pytest.approx(us + 4.0)
    assert model_us([FACTS], ADA, 64 * MIB, Memory(4.0, 0.9), projection.L2_GB_PER_S)[1] in ("L2", "SMs")


def test_what_comes_on_top_of_memory_is_added() -> None:
    run = record()
    memory = fit(projection.floors(run), H200.bandwidth)
    (line,) = project(run, memory, [FACTS], [FACTS], H200)
    assert line.projected is not None and line.projected_high is not None
    assert line.measured == 122.0 and line.model == pytest.approx(118.6)
    dram = 512 * MIB / (memory.share * 1008e3)
    assert line.projected == pytest.approx(memory.start_us + dram + 122.0 - 118.6)
    assert line.projected < line.projected_high and line.projected_warm is None and line.bound == "DRAM"


def test_slow_multiprocessors_are_slow_on_both_cards() -> None:
    run = record()
    memory = fit(projection.floors(run), H200.bandwidth)
    slow = replace(FACTS, loop_instructions=20_000)
    start, sm = memory.start_us, sm_us(slow, H200, 512 * MIB)
    run.cases[0].rows[0].samples["cold"] = [start + 1.5 * sm] * 5
    (line,) = project(run, memory, [slow], [slow], H200)
    assert line.bound == "SMs" and line.projected == pytest.approx(start + 1.5 * sm_us(slow, ADA, 512 * MIB))


def test_memory_is_that_of_the_records_card() -> None:
    """Of the same architecture as another card, with another memory: the share is of its own rate."""
    run = record()
    assert card_of(run, 90) == H200
    run.card = CardRecord("another", 3352.0, 50 << 20, 114, "NVML")
    card = card_of(run, 90)
    assert (card.card, card.bandwidth, card.sms) == ("another", 3352.0, 114)
    assert (card.warps, card.clock) == (H200.warps, H200.clock)
    share = fit(projection.floors(run), card.bandwidth).share
    assert share == pytest.approx(fit(projection.floors(run), H200.bandwidth).share * H200.bandwidth / 3352.0)


def test_a_row_that_the_model_misses_is_not_projected() -> None:
    run = record()
    run.cases[0].rows[0].samples["cold"] = [500.0] * 5
    memory = fit(projection.floors(run), H200.bandwidth)
    (line,) = project(run, memory, [FACTS], [FACTS], H200)
    assert line.error < -0.5 and line.projected is None and line.projected_warm is None
    assert "none: the model misses it" in projection.render(run, memory, [line], [BASELINE])


def test_an_input_that_fits_the_l2_is_projected_warm_too() -> None:
    run = record()
    run.cases[0].compulsory_bytes = 64 * MIB
    run.cases[0].rows[0].samples["cold"] = [22.0] * 5
    run.cases[1].compulsory_bytes = 512 * MIB
    run.cases[0].floor_us, run.cases[1].floor_us = run.cases[1].floor_us, run.cases[0].floor_us
    (line,) = project(run, fit(projection.floors(run), H200.bandwidth), [FACTS], [FACTS], H200)
    assert (
        line.projected is not None
        and line.projected_warm is not None
        and line.projected_warm < line.projected
    )


def test_known_4090_row_is_no_input_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = replace(BASELINE, loop_instructions=64)
    before = projection.baseline_us([fed], Memory(4.0, 0.95))
    monkeypatch.setattr(projection, "BASELINE_US", 1.0)
    monkeypatch.setattr(projection, "BASELINE_SHARE", 0.1)
    assert projection.baseline_us([fed], Memory(4.0, 0.95)) == before
    assert before == pytest.approx(4.0 + 512 * MIB / (0.95 * 1008e3))


def test_every_projected_figure_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled = [FACTS, BASELINE]
    monkeypatch.setattr(projection, "collect_elsewhere", lambda arch: compiled)
    path = tmp_path / "record.json"
    path.write_text(to_json(record()))
    text, data = tmp_path / "out.txt", tmp_path / "out.json"
    assert main(["project", "--record", str(path), "--text", str(text), "--json", str(data)]) == 0
    shown = text.read_text()
    head, tail = shown.split("Projected for the RTX 4090")
    assert "error of the model" in head and "600" in head and "projected us, cold" in tail
    assert '"projected_for": "RTX 4090"' in data.read_text()


def test_records_join_and_the_later_one_counts() -> None:
    first, second = record(), record()
    first.cases = [replace(second.cases[0], name="only here"), *first.cases]
    second.cases = [replace(case, dtype="float16") for case in second.cases]
    found = projection.joined([first, second])
    assert [case.name for case in found.cases] == ["only here", *(case.name for case in second.cases)]
    assert {case.dtype for case in found.cases[1:]} == {"float16"}
    with pytest.raises(UsageError, match="records of one GPU"):
        projection.joined([first, record("9.0", "another")])


@pytest.mark.parametrize(
    ("gpu", "capability", "words"),
    [
        (None, None, "without a GPU"),
        ("NVIDIA GeForce RTX 4090", "8.9", "measured, there is nothing to project"),
        ("GeForce GT 710", "3.5", "known are"),
    ],
)
def test_records_that_give_nothing(
    gpu: str | None, capability: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text(to_json(record(capability, gpu)))
    assert main(["project", "--record", str(path)]) == 2
    assert words in capsys.readouterr().err
