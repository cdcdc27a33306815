"""`bench.py judge`: exit codes, what it writes, and what it refuses before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.candidates import export, flashinfer, forms
from harness.candidates.problems import calibration
from harness.candidates.verdict import SCHEMA, VERDICTS
from harness.cli import main
from harness.errors import UsageError
from tests.harness.candidates.judged import SEED
from tests.harness.candidates.test_judge import MODEL, replaced, write


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path, MODEL)
    bad = write(tmp_path, replaced("* self.multiplier", "* 0.5"), "bad.py")
    out, trace = tmp_path / "out.json", tmp_path / "trace.jsonl"
    arguments = ["judge", str(good), str(bad), "--seed", str(SEED), "--json", str(out), "--trace", str(trace)]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "ACCEPTED" in printed and "WRONG" in printed and "ranking" in printed
    first, second = json.loads(out.read_text())
    assert first["schema"] == SCHEMA and {first["verdict"], second["verdict"]} <= set(VERDICTS)
    assert first["verdict"] == "accepted" and first["reasons"] == [] and first["checks"]
    assert "multiplier" in second["reasons"][0]
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [line["evaluation"]["status"] for line in lines] == ["PASSED", "INCORRECT_NUMERICAL"]
    assert {line["definition"] for line in lines} <= set(flashinfer.DEFINITIONS)


def test_definitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", "--definitions", str(tmp_path / "definitions")]) == 0
    for name in flashinfer.DEFINITIONS:
        found = json.loads((tmp_path / "definitions" / f"{name}.json").read_text())
        axes = {axis for tensor in found["inputs"].values() for axis in tensor["shape"] or ()}
        assert axes <= set(found["axes"])
        compile(found["reference"], name, "exec")


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("x = 1\n", "a.py", "expected class ModelNew"),
        ("__global__ void f() {}", "a.cu", "expected a header in TOML"),
        ('/* judge\nentry = "f"\nend judge */ __global__ void f() {}', "a.cu", "operator"),
        ("{}", "a.json", "no solution.json"),
        ("# judge: dtypes = int8\n" + MODEL, "a.py", "int8"),
    ],
)
def test_what_is_no_candidate(text: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        forms.read(write(tmp_path, text, name))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["absent.py"],
        ["--limit", "0", "x.py"],
        ["--limit", "inf", "x.py"],
        ["--limit", "1e300", "x.py"],
        ["--memory", "inf", "x.py"],
        ["--memory", "1e300", "--queue", "."],
        ["--seconds", "nan", "x.py"],
        ["--depth", "0", "x.py"],
        ["--dtype", "int8", "x.py"],
    ],
)
def test_bad_usage_is_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, MODEL, "x.py").parent)
    assert main(["judge", *arguments]) == 2


def test_a_file_that_was_not_run_is_said_not_to_have_been(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "exported.py"
    path.write_text(export.source("tail"))
    for command in (["judge", str(path), "--rules", "strict"], ["export", "--check", str(path)]):
        assert main([*command, "--form-only"]) == 0
        out = capsys.readouterr().out
        assert "the file was not run, because of --form-only" in out
        assert "timed" not in out and "interpreted" not in out


def test_nothing_is_written_before_all_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "definitions"
    assert main(["judge", "absent.py", "--definitions", str(folder)]) == 2
    assert not folder.exists()
    folder.mkdir()
    candidate = folder / "multiply_gap.json"
    candidate.write_text(MODEL)
    assert main(["judge", str(candidate), "--definitions", str(folder)]) == 2
    assert "--definitions: " in capsys.readouterr().err and candidate.read_text() == MODEL


@pytest.mark.parametrize("options", [["--json", "/nonexistent/x.json"], ["--seed", "-5"]])
def test_calibration_asks_before_it_works(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "rows", lambda *_, **__: pytest.fail("worked"))
    assert main(["judge", "--calibrate", *options]) == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize("text", ["import torch\n", '{"definition": "a"}\n{"a": 1}\n', "\n\0\n"])
def test_nothing_is_appended_to_what_is_no_trace(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, trace = write(tmp_path, MODEL), tmp_path / "notes"
    trace.write_text(text)
    for arguments in ([str(good), "--rules", "strict", "--form-only"], ["--queue", str(tmp_path)]):
        assert main(["judge", *arguments, "--trace", str(trace)]) == 2
        assert "expected lines of a trace, got" in capsys.readouterr().err
    assert trace.read_text() == text


def test_a_trace_that_was_cut_off_is_appended_to(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    for text in ("", "\n", '{"definition": "a", "eval\n{"definition": "b"}\n'):
        trace.write_text(text)
        flashinfer.require_trace(trace)
    flashinfer.require_trace(tmp_path / "absent")
