"""The tables of the documents are what the records say."""

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

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


@pytest.mark.parametrize("page, block", [("README.md", "results"), ("docs/kernels.md", "chain goals")])
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
