"""Blocks that a command writes into a document."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from harness.cli import main
from harness.errors import UsageError
from harness.files import check_outputs, replace_block, require_writable, write_whole
from harness.records.as_json import to_json
from runtime import plan
from tests import synthetic
from tests.harness.candidates.test_judge import MODEL

ROOT = Path(__file__).parents[2]


def test_only_the_block_changes(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("above\n<!-- a -->\nold\n<!-- end a -->\nbelow\n<!-- b -->\nkept\n<!-- end b -->\n")
    replace_block(path, "a", "new\n")
    once = path.read_text()
    assert once == ("above\n<!-- a -->\n```\nnew\n```\n<!-- end a -->\nbelow\n<!-- b -->\nkept\n<!-- end b -->\n")
    replace_block(path, "a", "new")
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["no marks", "<!-- a --> only the first", "<!-- end a --> only the last"])
def test_a_document_without_the_marks_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    args = Namespace(json=None, text=None, page=path)
    for call in (lambda: check_outputs(args, "a"), lambda: replace_block(path, "a", "new")):
        with pytest.raises(UsageError, match="expected the marks"):
            call()
    assert path.read_text() == text


def test_a_document_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        check_outputs(Namespace(json=None, text=None, page=tmp_path / "absent.md"), "a")


def test_a_link_is_followed_and_a_file_keeps_its_permissions(tmp_path: Path) -> None:
    target, link = tmp_path / "there.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o640
    ahead = tmp_path / "ahead.json"
    ahead.symlink_to(tmp_path / "free.json")
    write_whole(ahead, "made")
    assert ahead.is_symlink() and (tmp_path / "free.json").read_text() == "made"


def test_a_device_and_a_pipe_are_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_writable(Namespace(), json=[Path("/dev/null"), Path("/dev/null"), pipe])
    write_whole(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "through")
    assert os.read(reader, 100) == b"through" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_standard_output_that_goes_to_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    program = "from pathlib import Path\nfrom harness.files import write_whole\nwrite_whole(Path('/dev/stdout'), 'one')"
    with path.open("w") as file:
        before = os.fstat(file.fileno()).st_ino
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True, cwd=ROOT)
    assert path.read_text() == "one" and path.stat().st_ino == before


@pytest.mark.parametrize("second", ["a.json", "./a.json", "link.json", "sub/../a.json"])
def test_two_outputs_in_one_file_are_refused(second: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.json").symlink_to("a.json")
    with pytest.raises(UsageError, match="expected a file of its own"):
        require_writable(Namespace(json=tmp_path / "a.json", csv=tmp_path / second), "json", "csv")
    require_writable(Namespace(json=tmp_path / "a.json", csv=tmp_path / "b.json"), "json", "csv")
    assert sorted(os.listdir(tmp_path)) == ["link.json", "sub"]


@pytest.mark.parametrize("name", ["ring", "a\0b", "n" * 300, "sub", "absent/file"])
def test_a_name_that_cannot_be_written_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError) as error:
        require_writable(Namespace(json=tmp_path / name), "json")
    assert "\n" not in str(error.value) and str(error.value).startswith("--json: ")


CLOBBERING = [
    "judge input --json input",
    "judge other input --html ./input",
    "judge input --rules strict --form-only --trace link",
    "judge --problem input other --json input",
    "judge --queue folder --trace t --json folder/out.json",
    "judge --queue lines --trace lines",
    "show input --csv input",
    "show input --html folder/../input",
    "diff input other third --plot input",
    "project --record other --record input --json input",
    "brief --code input --output input",
    "brief --profile input --output input",
    "compare --operator input --json input",
    "calls --operator input --text input",
]
"""Command lines, each with an output that is an input, by another name or the same."""


@pytest.mark.parametrize("line", CLOBBERING)
def test_an_output_that_is_an_input_is_refused_and_the_input_kept(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("link").symlink_to("input")
    text = MODEL if line.startswith("judge") else to_json(synthetic.run())
    for name in ("input", "other", "third", "lines"):
        Path(name).write_text(text)
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "expected another file than the input" in captured.err or "expected a file outside of folder" in captured.err
    assert Path("input").read_text() == Path("lines").read_text() == text


def test_the_plan_is_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PATH", tmp_path / "plan.json")
    with pytest.raises(UsageError, match="than the input"):
        require_writable(Namespace(json=tmp_path / "plan.json"), "json")


def test_a_full_disk_takes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    assert main(["check", "--shape", "tail:1,1,2,2", "--backends", "torch"]) == 0
    capsys.readouterr()
    assert main(["--shape", "tail:1,1,2,2", "--backends", "torch", "--csv", "/dev/full"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left" in error
