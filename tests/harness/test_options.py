"""Options that several commands share: what asks for nothing, for too much, or for what does not exist."""

from __future__ import annotations

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
def test_what_no_machine_holds_is_refused(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(["check", *options], capsys)


def test_a_shape_given_twice_is_one_case(entries: dict[str, Entry], capsys) -> None:
    assert main(["check", *SMALL, *SMALL]) == 0
    assert "1 cases: 2 answers" in capsys.readouterr().out
