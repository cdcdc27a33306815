"""`bench.py list` and `bench.py show`: everything that there is, and a saved record again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from harness.cases.catalogue import SETS
from harness.cli import main
from harness.commands import COMMANDS
from harness.entries.entry import ENTRIES
from harness.records.as_json import to_json
from tests import synthetic


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    path.write_text(to_json(synthetic.run()))
    return path


def test_the_list_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["case"] for line in found["cases"]] == [case.name for cases in SETS.values() for case in cases]
    assert [line["entry"] for line in found["entries"]] == list(ENTRIES)
    assert [line["command"] for line in found["commands"]] == list(COMMANDS)
    assert all(all(line.values()) for lines in found.values() for line in lines)


def test_a_part_of_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "cases"]) == 0
    out = capsys.readouterr().out
    assert (
        "KernelBench level 2 problem 44" in out
        and "chain:16,64,128,128,128,k3,s2,p1,op1" in out
        and "doctor" not in out
    )


def test_tables_again(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(record)]) == 0
    out = capsys.readouterr().out
    assert "Made-up GPU" in out and "chain-headline" in out and "Worst error against float64" in out


def test_a_compressed_record(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = record.with_suffix(".json.gz")
    packed.write_bytes(gzip.compress(record.read_bytes()))
    assert main(["show", str(packed), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| case | floor | Triton | CUDA |")
    assert lines[2].startswith("| chain-headline | 18.6 | 23.9 | **22.1** | 32.0 | 541 | 42")
    packed.write_bytes(packed.read_bytes()[:50])
    assert main(["show", str(packed)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_files(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(record), "--html", str(tmp_path / "p.html"), "--csv", str(tmp_path / "p.csv")]) == 0
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "p.csv").read_text().startswith("case,")
    assert main(["show", str(record), "--html", str(tmp_path / "absent" / "p.html")]) == 2
    assert main(["show", str(record), "--plot-all"]) == 2
    assert main(["show", str(tmp_path / "absent.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
