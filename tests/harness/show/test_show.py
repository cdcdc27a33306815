"""Tables fit 100 columns, say what they must, and are bare text when piped; plots are whole files."""

from __future__ import annotations

import io
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.console import WIDTH, console
from harness.errors import UsageError
from harness.records.record import Result, Run
from harness.show import cross_check, pictures, plots, tables, text
from harness.timing.intervals import Interval
from tests import synthetic


def printed(run: Run) -> str:
    file = io.StringIO()
    out = console(file)
    tables.print_timed(run, out)
    cross_check.print_check(run, out)
    return file.getvalue()


def crowded() -> Run:
    """As wide as it gets: every backend's name, long numbers, a wrong row."""
    run = synthetic.run()
    for case in run.cases:
        for row, name in zip(case.results, pictures.COLOURS, strict=False):
            row.entry = name
        case.reference = "eager-ieee"
        case.results[4].entry = "inductor-max"
        case.results[4].samples = {mode: [10 * us for us in values] for mode, values in case.results[4].samples.items()}
        case.results[5].status, case.results[5].reason, case.results[5].error = (
            "wrong",
            "321 of the budget at [0]",
            321.0,
        )
    return run


@pytest.mark.parametrize("run", [synthetic.run(), crowded()], ids=["usual", "crowded"])
def test_tables_fit_and_nothing_is_cut(run: Run) -> None:
    text = printed(run)
    table = [line for line in text.splitlines() if line.startswith(tuple(pictures.COLOURS))]
    assert table and max(map(len, table)) <= WIDTH
    assert "…" not in text


def test_three_modes_fit_too() -> None:
    run = synthetic.run()
    for case in run.cases:
        for row in case.results:
            if row.samples:
                row.samples["dirty"] = [us * 1.3 for us in row.samples["cold"]]
    text = printed(run)
    assert "dirty us" in text and "…" not in text
    assert max(len(line) for line in text.splitlines() if line.startswith(tuple(pictures.COLOURS))) <= WIDTH


def test_the_cross_check_of_all_rows_fits() -> None:
    run = synthetic.run()
    for case in run.cases:
        case.name = f"{case.name}, a name as long as any"
        case.results = [Result(name, "right", what="interpreter", error=0.00012) for name in pictures.COLOURS]
        case.pairwise = {a: dict.fromkeys(pictures.COLOURS, 0.1) for a in pictures.COLOURS}
    file = io.StringIO()
    cross_check.print_check(run, console(file))
    text = file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= WIDTH
    assert all(f"{name} (interpreter)" in text for name in pictures.COLOURS)
    assert text.count("0.00012") == 2 * len(pictures.COLOURS)
    assert text.count("0.1") == len(pictures.COLOURS) * (len(pictures.COLOURS) - 1)


def test_piped_text_has_no_escape_codes_and_no_boxes() -> None:
    text = printed(crowded())
    assert "\x1b" not in text
    assert not set(text) & set("─│┃━┏┓")


def test_every_figure_is_there() -> None:
    text = printed(synthetic.run())
    line = next(line for line in text.splitlines() if line.startswith("triton "))
    cells = line.split()
    # name, cold us, share of the floor, p20..p80, GB/s, speed-up, its reach, warm us, share, host, MB, error
    assert cells[0] == "triton" and cells[1] == "23.9" and cells[2] == "78%" and ".." in cells[3]
    assert cells[4].startswith("28") and cells[5].startswith("17") and cells[6].startswith("±")
    assert cells[-3:] == ["6.10", "0.00819", "0.1"]
    assert "cub: unavailable: CuPy's mean has no convolution" in text
    assert "floor 18.6 us measured cold" in text


def test_flags_and_notes_are_shown() -> None:
    run = synthetic.run()
    run.cases[0].flags.append("cold: throttled in 3 of 60 rounds (power cap)")
    run.cases[0].results[1].notes.append("timed by events")
    text = printed(run)
    assert "! cold: throttled in 3 of 60" in text and "cupy: timed by events" in text


@pytest.mark.parametrize(
    "value, shown",
    [
        (None, "-"),
        (0, "0"),
        (4203.4, "4203"),
        (23.94, "23.9"),
        (9.97, "9.97"),
        (0.00819, "0.00819"),
        (99.96, "100.0"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


def test_reach_of_a_speed_up_is_its_further_end() -> None:
    assert text.gain_text((2.0, Interval(1.9, 2.3))) == "2.00 ±15.0%"


needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="plots need matplotlib, the extra 'plot'")


@needs_matplotlib
def test_plots_into_a_directory(tmp_path: Path) -> None:
    written = plots.save(synthetic.run(), str(tmp_path))
    names = {f"{plot}{suffix}" for plot in pictures.COMPACT for suffix in (".png", ".svg")}
    assert {path.name for path in written} == names == set(os.listdir(tmp_path))
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        else:
            text = ET.tostring(ET.parse(path).getroot(), encoding="unicode")
            assert "Made-up GPU" in text


@needs_matplotlib
def test_plots_of_one_record_are_the_same_file(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in plots.save(synthetic.run(), str(tmp_path / "a.svg"))]
    again = [path.read_bytes() for path in plots.save(synthetic.run(), str(tmp_path / "b.svg"))]
    assert first == again and len(first) == 3


@pytest.mark.parametrize("name, files", [("x.png", 3), ("x.svg", 3), ("x", 6)])
def test_the_suffix_picks_the_format(tmp_path: Path, name: str, files: int) -> None:
    targets = [path.name for _, path in plots.targets(str(tmp_path / name))]
    assert len(targets) == files and all(target.startswith("x-") for target in targets)


@needs_matplotlib
def test_pictures_fit_a_page_and_the_dark_ones_differ(tmp_path: Path) -> None:
    run = synthetic.run()
    run.cases = [replace(run.cases[i % 2], name=f"{run.cases[i % 2].name}-{i}") for i in range(70)]
    light = plots.save(run, str(tmp_path / "light.png"))
    dark = plots.save(run, str(tmp_path / "dark.png"), theme="dark")
    for path, other in zip(light, dark, strict=True):
        width, height = (int.from_bytes(path.read_bytes()[at : at + 4]) for at in (16, 20))
        assert width <= 1600 and height <= 1200, path
        assert path.read_bytes() != other.read_bytes()


@needs_matplotlib
def test_all_of_them_draw_a_panel_for_every_case(tmp_path: Path) -> None:
    written = plots.save(synthetic.run(), str(tmp_path / "x.svg"), pictures.ALL)
    assert "x-time.svg" in {path.name for path in written}


@pytest.mark.parametrize("name", ["plot.pdf", ""])
def test_what_names_no_picture_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"expected \.png or \.svg"):
        plots.targets(name)


@pytest.mark.parametrize("name", [".", "./", "..", "/", "results.v2"])
def test_every_directory_is_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results.v2").mkdir()
    assert {path.parent for _, path in plots.targets(name)} == {Path(name)}


def test_a_name_may_hold_a_dot() -> None:
    assert plots.targets("a.b.png", ["time"]) == [("time", Path("a.b-time.png"))]


def test_without_matplotlib_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UsageError, match="extra 'plot'"):
        plots.require_matplotlib()


@needs_matplotlib
def test_nothing_timed_nothing_drawn(tmp_path: Path) -> None:
    run = synthetic.run()
    for case in run.cases:
        for row in case.results:
            row.samples = {}
    with pytest.raises(UsageError, match="no timed entry"):
        plots.save(run, str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_warm_run_is_headed_as_warm() -> None:
    run = synthetic.run()
    run.ceilings = [replace(ceiling, mode="warm") for ceiling in run.ceilings]
    for case in run.cases:
        for result in case.results:
            result.samples.pop("cold", None)
        case.floor_us.pop("cold")
    shown = printed(run)
    assert "measured, warm, 512 MiB moved" in shown and "cold" not in shown


def test_the_summary_is_of_the_product_and_names_who_is_faster() -> None:
    run = synthetic.run()
    fast, slow = run.cases
    fast.results[3].samples["cold"] = [us / 100 for us in fast.results[3].samples["cold"]]
    slow.results = [result for result in slow.results if result.entry in ("inductor", "eager-ieee")]
    lines = printed(run).split("Summary")[1].split("What ran")[0].splitlines()
    (first,) = (line.split() for line in lines if line.startswith("chain-headline"))
    (second,) = (line.split() for line in lines if line.startswith("tail-256x256"))
    assert first[1] == "cupy" and first[-1] == "inductor"
    assert second[1] == "-" and second[-1] == "inductor"
