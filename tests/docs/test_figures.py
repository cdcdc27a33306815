"""The tables of the documents are what the records say."""

import gzip
import importlib.util
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from harness.records.as_json import to_json
from harness.show.text import number
from harness.timing.floors import RTX_4090

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(figures: ModuleType, tmp_path: Path) -> Path:
    for page in figures.BLOCKS:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


def test_pages_agree_with_their_records(figures: ModuleType) -> None:
    assert figures.main(["--check"]) == 0


@pytest.mark.parametrize(
    "page, block",
    [("README.md", "results"), ("docs/kernels.md", "chain goals"), ("docs/rtx4090.md", "4090 times")],
)
def test_a_changed_digit_is_found_and_mended(
    figures: ModuleType, copy: Path, page: str, block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    right = (copy / page).read_text()
    before, marks, after = right.partition(f"<!-- {block} -->")
    changed = re.sub(r"\| (\d)", lambda found: f"| {9 - int(found[1])}", after, count=1)
    assert changed != after
    (copy / page).write_text(before + marks + changed)
    assert figures.run(copy, check=True) == 1
    assert page in capsys.readouterr().out
    assert figures.run(copy, check=False) == 0
    assert (copy / page).read_text() == right


def test_a_page_without_its_marks_is_refused(figures: ModuleType, copy: Path) -> None:
    page = copy / "README.md"
    page.write_text(page.read_text().replace("<!-- end results -->", ""))
    with pytest.raises(figures.UsageError, match=r"README\.md: expected the marks"):
        figures.run(copy, check=True)


def test_a_record_of_a_4090_takes_the_place_of_what_is_projected(
    figures: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The record of the H100 as if it were of a 4090, with one case of its own and some that are not in it."""
    before = figures.times_4090()
    assert "measured" not in before and "Nothing below is *measured*" in figures.from_4090()
    run = figures.record("h100")
    kept = [case for case in run.cases if case.name.startswith("tail/")]
    own = replace(
        run,
        environment=replace(run.environment, gpu=RTX_4090.name),
        cases=[*kept, replace(kept[0], name="tail/own")],
    )
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "rtx4090.json.gz"
    path.write_bytes(gzip.compress(to_json(own).encode()))
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    lines = {line.split(" | ")[0].strip("| "): line for line in figures.times_4090().splitlines()[2:]}
    result = kept[0].result("triton")
    assert result is not None and (summary := result.summary("cold")) is not None
    assert f"| {number(summary.median)} measured |" in lines[kept[0].name]
    for name, line in lines.items():
        words = ("measured", "projected") if name.startswith("tail/") else ("projected", "measured")
        assert words[0] in line and words[1] not in line, line
    assert {case.name for case in own.cases} <= set(lines)
    assert f"*Measured* on one {RTX_4090.name}" in figures.from_4090()
    # A record of another card is no record of a 4090.
    path.write_bytes(gzip.compress(to_json(run).encode()))
    with pytest.raises(figures.UsageError, match="expected a record of NVIDIA GeForce RTX 4090, got one"):
        figures.times_4090()
