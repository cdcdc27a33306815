"""Records survive the trip to JSON and back, refuse what is none, and are written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path

import pytest

from harness import files
from harness.files import check_writable, write_whole
from harness.records.as_csv import to_csv
from harness.records.as_json import RecordError, from_json, load, to_json
from tests import synthetic


def test_round_trip_keeps_everything() -> None:
    run = synthetic.run()
    assert from_json(to_json(run)) == run


def test_numbers_that_are_not_finite_survive_in_standard_json() -> None:
    run = synthetic.run()
    rows = run.cases[0].results
    rows[0].error, rows[1].error, rows[2].error = inf, nan, -inf
    text = to_json(run)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no standard JSON"))
    back = from_json(text).cases[0].results
    assert back[0].error == inf and back[1].error is not None and isnan(back[1].error) and back[2].error == -inf


def broken(**changes: object) -> str:
    return json.dumps(json.loads(to_json(synthetic.run())) | changes)


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "not JSON"),
        ("[1]", "schema None"),
        (broken(schema=99), "schema 99"),
        (broken(cases=None), "record.cases"),
        (broken(extra=1), "extra"),
        (broken(cases=[{"name": "a"}]), r"record.cases\[0\]"),
        (broken(finished="yes"), "record.finished: expected bool, found 'yes'"),
        (broken(settings={"flush": 1}), "record.settings"),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(text: str, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        from_json(text)


def test_a_bad_sample_deep_inside_is_found() -> None:
    data = json.loads(to_json(synthetic.run()))
    data["cases"][1]["results"][2]["samples"]["cold"][3] = "fast"
    with pytest.raises(RecordError, match=r"cases\[1\]\.results\[2\]\.samples\['cold'\]\[3\]: expected float"):
        from_json(json.dumps(data))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere.json: cannot be read"):
        load(tmp_path / "nowhere.json")


def test_a_compressed_record_loads(tmp_path: Path) -> None:
    path = tmp_path / "run.json.gz"
    path.write_bytes(gzip.compress(to_json(synthetic.run()).encode()))
    assert load(path) == synthetic.run()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RecordError, match="cannot be read"):
        load(path)


def test_csv_has_one_line_per_row_and_mode() -> None:
    run = synthetic.run()
    lines = list(csv.DictReader(io.StringIO(to_csv(run))))
    assert len(lines) == 2 * (5 * 2 + 1)  # cases * (timed rows * modes + the row that could not run)
    first = lines[0]
    assert (first["case"], first["entry"], first["mode"]) == ("chain-headline", "triton", "cold")
    # 67,108,864 bytes in about 23.9 us, floor 18.6 us, eager 4203 us; the synthetic medians are 0.3 % off.
    assert float(first["gb_per_s"]) == pytest.approx(67_108_864 / 23.9e-6 / 1e9, rel=0.005)
    assert float(first["floor_share"]) == pytest.approx(18.6 / 23.9, rel=0.005)
    assert float(first["speed_up_low"]) <= 4203 / 23.9 * 1.005
    assert float(first["speed_up_high"]) >= 4203 / 23.9 * 0.995
    assert lines[10]["status"] == "unavailable" and lines[10]["median_us"] == ""


def test_speed_up_needs_both_rows() -> None:
    case = synthetic.run().cases[0]
    triton, cub = case.result("triton"), case.result("cub")
    assert triton is not None and cub is not None
    assert case.speed_up(triton, "cold") is not None
    assert case.speed_up(cub, "cold") is None
    case.reference = None
    assert case.speed_up(triton, "cold") is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    write_whole(path, "a long old content")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["run.csv"]


def test_check_writable_leaves_no_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "run.json")
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(OSError, match="no directory"):
        check_writable(tmp_path / "missing" / "run.json")


def changed(*place: object, value: object) -> str:
    """The record's JSON with one thing in it changed."""
    data = json.loads(to_json(synthetic.run()))
    *way, last = place
    inner = data
    for step in way:
        inner = inner[step]
    inner[last] = value
    return json.dumps(data)


SAMPLES = ("cases", 0, "results", 0, "samples")


@pytest.mark.parametrize(
    "text, says",
    [
        (changed(*SAMPLES, "cold", value=[1.0, 0.0]), "expected times above 0 us, found 0.0"),
        (changed(*SAMPLES, "cold", value=[-3.0]), "expected times above 0 us, found -3.0"),
        (changed(*SAMPLES, "cold", value=["nan"]), "expected times above 0 us, found nan"),
        (changed(*SAMPLES, "cold", value=["inf"]), "expected times above 0 us, found inf"),
        (changed("cases", 0, "results", 0, "host_us", value=[-1]), "host: expected times above 0"),
        (changed(*SAMPLES, "cold", value=[10**400]), "found one of 401 digits"),
        (changed(*SAMPLES, "cold", value="S").replace('"S"', "1" * 5000), "not "),
        (changed("environment", "date", value="S").replace('"S"', "[" * 100_000), "nested too deeply"),
        (changed("settings", value="S").replace('"S"', '{"a":' * 3000 + "1" + "}" * 3000), "deeply|settings"),
        (changed("cases", 1, "name", value="chain-headline"), "case chain-headline is there twice"),
        (changed("cases", 0, "results", 1, "entry", value="triton"), "entry triton is there twice"),
        ('{"schema": 1}', "not a record"),
        ('{"schema": 1, "cases": [3], "ceilings": []}', "not a record"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not "),
        ("", "not JSON"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(RecordError, match=says) as error:
        from_json(text)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_schema_1_is_brought_up_to_date() -> None:
    data = json.loads(to_json(synthetic.run()))
    data["schema"] = 1
    data["settings"]["modes"] = "warm,cold"
    del data["calls"], data["lost"]
    for case in data["cases"]:
        case["rows"] = case.pop("results")
        del case["values"], case["multiplier"], case["seed"], case["unmade"]
        for row in case["rows"]:
            row["backend"] = row.pop("entry")
    for ceiling in data["ceilings"]:
        ceiling["gb_per_s"] = 1.0
        del ceiling["mode"]
    expected = synthetic.run()
    expected.settings["modes"] = "warm,cold"
    expected.ceilings = [replace(ceiling, mode="warm") for ceiling in expected.ceilings]
    for case in expected.cases:
        case.values = case.multiplier = case.seed = None
    assert from_json(json.dumps(data)) == expected
