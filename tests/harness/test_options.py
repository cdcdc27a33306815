"""Options that several commands share: what asks for nothing, for too much, or for what does not exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.cli import main
from harness.entries.entry import Entry
from tests.harness.test_cli import SMALL, refused


@pytest.mark.parametrize(
    "command, says",
    [
        (["check", "--cases", ""], "--cases"),
        (["check", "--cases", " , "], "--cases"),
        (["check", "--backends", ""], "--backends"),
        (["check", "--dtype", ""], "--dtype"),
        (["compare", "--flush", ""], "--flush"),
        (["check", "--seed", str(2**70)], "--seed"),
        (["check", "--seed", "-1"], "--seed"),
        (["check", "--seed", "9" * 5000], "--seed"),
        (["fuzz", "--seed", str(2**70)], "--seed"),
        (["fuzz", "--templates", "0"], "--templates"),
        (["fuzz", "--examples", "0"], "--examples"),
        (["fuzz", "--examples", "-3"], "--examples"),
        (["sanitize", "--tools", ""], "--tools"),
    ],
)
def test_what_asks_for_nothing_or_too_much_is_refused(
    command: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {says}: expected" in last


@pytest.mark.parametrize(
    "options, says",
    [
        (["--shape", "tail:1,1,999999999,999999999"], "GiB to be checked"),
        (["--shape", f"tail:1,1,{2**40},{2**40}"], "shape "),
        (["--shape", f"tail:1,1,1,{10**30}"], "shape "),
        (["--shape", "chain:1,1,1,2,2,k9999999,s9999999"], "GiB to be checked"),
        (["--shape", "tail:1,2,3,4", "--values", ""], "--values"),
        (["--shape", "tail:1,2,3,4", "--multiplier", ""], "--multiplier"),
        (["--shape", ""], "expected chain:"),
    ],
)
def test_what_no_machine_holds_is_refused(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refused(["check", *options], capsys)


def test_a_shape_given_twice_is_one_case(entries: dict[str, Entry], capsys) -> None:
    assert main(["check", *SMALL, *SMALL]) == 0
    assert "1 cases: 2 answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, says",
    [
        ("check --mutants --cases nosuch", "--cases: expected without --mutants"),
        ("check --mutants --dtype bogus", "--dtype: expected without --mutants"),
        ("check --mutants --seed 3", "--seed: expected without --mutants"),
        ("check --mutants --shape tail:1,1,2,2", "--shape: expected without --mutants"),
        ("judge FILE --calibrate", "--calibrate: expected no FILE, got FILE"),
        ("judge --calibrate --html x", "--html: expected without --calibrate"),
        ("judge --calibrate --trace x", "--trace: expected without --calibrate"),
        ("judge --calibrate --limit 5", "--limit: expected without --calibrate"),
        ("judge --calibrate --form-only", "--form-only: expected without --calibrate"),
        ("judge FILE --form-only", "--form-only: expected together with --rules strict"),
        ("judge FILE --rules strict --form-only --depth 9", "--depth: expected without --form-only"),
        ("judge FILE --rules strict --form-only --trace x", "--trace: expected without --form-only"),
        ("judge FILE --processes 2", "--processes: expected together with --queue"),
        ("judge --definitions x --json y", "--json: expected together with a FILE"),
        ("judge --queue . --trace x --form-only", "--form-only: is not for --queue"),
        ("tune --list --json x.json", "--json: expected without --list"),
        ("tune --list --apply plan.json", "--apply: expected without --list"),
        ("tune --list --seconds 5", "--seconds: expected without --list"),
        ("export --check FILE --form-only --output x", "--output: expected without --check"),
        ("export --check FILE --strategy tail", "--strategy: expected without --check"),
        ("export --form-only", "--form-only: expected together with --check"),
        ("brief --entry foo", "--entry: expected together with --profile"),
        ("brief --code FILE --strategy tail", "--strategy: expected without --code"),
        ("sanitize --drive --logs x", "--logs: expected without --drive"),
        ("compare --theme dark", "--theme: expected --plot PATH beside it"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    line: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    assert says in refused(line.split(), capsys)
    assert os.listdir() == ["FILE"]
