"""Which commit a record says it is of, and which command."""

import subprocess
from pathlib import Path

import pytest

from harness.records.environment import command_of, commit_of


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a source file, a document and a test, all committed."""
    for name in ("kernels.py", "docs/page.md", "tests/test_it.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("as committed\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first")
    return tmp_path


def git(folder: Path, *words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        pytest.skip("git is not installed")


def test_is_that_of_the_source(checkout: Path) -> None:
    assert commit_of(checkout) == git(checkout, "rev-parse", "--short=12", "HEAD").strip()


@pytest.mark.parametrize("name", ["record.json", "docs/page.md", "tests/test_it.py", "README.md"])
def test_what_no_number_depends_on_is_no_change(checkout: Path, name: str) -> None:
    (checkout / name).write_text("another\n")
    assert not commit_of(checkout).endswith("+changes")


def test_a_changed_source_file_is_said(checkout: Path) -> None:
    (checkout / "kernels.py").write_text("another\n")
    assert commit_of(checkout).endswith("+changes")


def test_a_checkout_around_it_is_not_its_own(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    inside = checkout / "site-packages"
    inside.mkdir()
    assert commit_of(inside) == ""
    assert commit_of(tmp_path_factory.mktemp("no repository")) == ""


def test_a_command_names_no_folder_of_one_machine() -> None:
    words = [
        "/home/me/lab/bench.py",
        "calls",
        "--calls",
        "host,step wall",
        "--json",
        "/home/me/out/calls.json",
    ]
    assert command_of(words) == "bench.py calls --calls 'host,step wall' --json calls.json"
    # What is no absolute path stays as it was said.
    words = [
        "bench.py",
        "--json=/tmp/a/b.json",
        "--logs",
        "/tmp/logs/",
        "--shape",
        "chain:1,2",
        "--plot",
        "out/a",
    ]
    assert command_of(words) == "bench.py --json=b.json --logs logs/ --shape chain:1,2 --plot out/a"
