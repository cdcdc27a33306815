"""What a run found, as plain data: raw samples, provenance, environment. JSON in and out, CSV out.

Only raw samples are stored. Medians and intervals are worked out from them wherever they are shown, so a
file can never disagree with itself.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import types
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import UsageError
from harness.timing.intervals import Interval, Summary, ratio_of_medians, summarise

SCHEMA = 1
Status = Literal["timed", "right", "wrong", "unavailable"]


class RecordError(UsageError):
    """A file that is no usable record; the message names the file and what is wrong with it."""


@dataclass
class Environment:
    """Where the numbers come from."""

    date: str
    command: str
    commit: str
    platform: str
    python: str
    versions: dict[str, str]
    gpu: str | None = None
    capability: str | None = None
    driver: str | None = None
    cuda: str | None = None


@dataclass
class CardRecord:
    """Published figures of the card: bandwidth in GB/s, l2 in bytes."""

    name: str
    bandwidth: float | None
    l2_bytes: int
    sms: int
    source: str


@dataclass
class CeilingRecord:
    """Measured ceiling: time in us for `size` bytes, the rate in GB/s, the launch that won."""

    kind: str
    size: int
    us: float
    gb_per_s: float
    how: str


@dataclass
class Clocks:
    """NVML's reading beside a case: MHz, degrees Celsius, watts."""

    sm_mhz: int
    memory_mhz: int
    temperature_c: int
    power_w: float
    throttle: list[str]


@dataclass
class Row:
    """One backend on one case.

    error: worst error in units of the budget, None if it gave no answer. what: what actually ran.
    how: "graph" or "events". samples: us per call, by mode: "cold" (clean), "dirty", "unflushed" or "warm".
    host_us: host time per call, one per chunk.
    extra_bytes: peak memory beyond the inputs. first_call_s: seconds, by state of the disk cache.
    """

    backend: str
    status: Status
    what: str = ""
    reason: str = ""
    error: float | None = None
    how: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    host_us: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    first_call_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self, mode: str) -> Summary | None:
        """Summary of the samples of `mode`, None if there are none."""
        return summarise(self.samples[mode]) if self.samples.get(mode) else None


@dataclass
class CaseRecord:
    """One case: what it is, its floors in us by mode, and one row per backend.

    marks: by mode, one list per round of what disturbed it. ended: by mode, what stopped the measurement.
    pairwise: largest difference between two backends in units of the sum of their budgets.
    reference: the row that speed-ups are over.
    """

    name: str
    op: str
    shape: str
    dtype: str
    layout: str
    why: str
    compulsory_bytes: int
    reference: str | None = None
    working_set_over_l2: float | None = None
    floor_us: dict[str, float | None] = field(default_factory=dict)
    datasheet_us: float | None = None
    rtx4090_us: float | None = None
    rows: list[Row] = field(default_factory=list)
    pairwise: dict[str, dict[str, float]] = field(default_factory=dict)
    marks: dict[str, list[list[str]]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    before: Clocks | None = None
    after: Clocks | None = None
    flags: list[str] = field(default_factory=list)

    def row(self, backend: str) -> Row | None:
        """Row of that name, None if the case has none."""
        return next((row for row in self.rows if row.backend == backend), None)

    def speed_up(self, row: Row, mode: str) -> tuple[float, Interval] | None:
        """How many times faster than the reference row, with its interval; paired by round."""
        base = self.row(self.reference) if self.reference else None
        if base is None or not row.samples.get(mode) or not base.samples.get(mode):
            return None
        above, below = summarise(base.samples[mode]).median, summarise(row.samples[mode]).median
        return above / below, ratio_of_medians(base.samples[mode], row.samples[mode], paired=True)


@dataclass
class Run:
    """One run of the lab. finished is False when it was interrupted."""

    environment: Environment
    settings: dict[str, str]
    card: CardRecord | None = None
    ceilings: list[CeilingRecord] = field(default_factory=list)
    cases: list[CaseRecord] = field(default_factory=list)
    finished: bool = True
    schema: int = SCHEMA

    def wrong(self) -> list[tuple[CaseRecord, Row]]:
        """Every row whose answer was outside its budget."""
        return [(case, row) for case in self.cases for row in case.rows if row.status == "wrong"]


def to_json(run: Run) -> str:
    """Standard JSON; a number that is not finite becomes the string "nan", "inf" or "-inf"."""
    return json.dumps(_plain(asdict(run)), indent=1, allow_nan=False) + "\n"


def from_json(text: str, name: str = "record") -> Run:
    """Run from to_json's text; RecordError if it is anything else."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{name}: not JSON ({error})") from None
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise RecordError(f"{name}: expected a record of schema {SCHEMA}, found schema {found!r}")
    return _build(Run, data, name)


def load(path: Path) -> Run:
    """Run from a file; RecordError if it cannot be read or is no record."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from None
    return from_json(text, str(path))


def to_csv(run: Run) -> str:
    """One line per case, backend and mode; times in us, rates in GB/s."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(_CSV_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_rows(run))
    return out.getvalue()


_CSV_COLUMNS = (
    *("case", "op", "shape", "dtype", "layout", "backend", "status", "reference", "mode"),
    *("median_us", "p20_us", "p80_us", "low_us", "high_us", "rounds", "gb_per_s", "floor_us", "floor_share"),
    *("speed_up", "speed_up_low", "speed_up_high", "error_over_budget", "host_us", "extra_bytes"),
    *("how", "gpu", "what", "reason"),
)


def _csv_rows(run: Run) -> Iterator[dict[str, object]]:
    for case in run.cases:
        for row in case.rows:
            common = {
                "case": case.name,
                "op": case.op,
                "shape": case.shape,
                "dtype": case.dtype,
                "layout": case.layout,
                "backend": row.backend,
                "status": row.status,
                "reference": case.reference,
                "error_over_budget": row.error,
                "host_us": summarise(row.host_us).median if row.host_us else None,
                "extra_bytes": row.extra_bytes,
                "how": row.how,
                "gpu": run.environment.gpu,
                "what": row.what,
                "reason": row.reason,
            }
            for mode in row.samples or [""]:
                summary = row.summary(mode)
                if summary is None:
                    yield common
                    continue
                floor = case.floor_us.get(mode)
                gain = case.speed_up(row, mode)
                yield common | {
                    "mode": mode,
                    "median_us": summary.median,
                    "p20_us": summary.p20,
                    "p80_us": summary.p80,
                    "low_us": summary.interval.low,
                    "high_us": summary.interval.high,
                    "rounds": summary.count,
                    "gb_per_s": case.compulsory_bytes / summary.median / 1e3,
                    "floor_us": floor,
                    "floor_share": floor and floor / summary.median,
                    "speed_up": gain and gain[0],
                    "speed_up_low": gain and gain[1].low,
                    "speed_up_high": gain and gain[1].high,
                }


def write_whole(path: Path, content: str | bytes) -> None:
    """Write the file whole or not at all: beside its place first, then moved over it. May raise OSError."""
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise OSError now, with a plain message, if write_whole(path) would fail later."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, expected a file name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no directory {path.parent}")
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _build(kind: Any, data: Any, where: str) -> Any:
    """`data` as `kind` (a dataclass, list, dict, union, literal or plain type), checked all the way down."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        if not isinstance(data, dict):
            raise RecordError(f"{where}: expected an object, found {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        names = [f.name for f in fields(kind)]
        if set(data) != set(names):
            odd = sorted(set(data) ^ set(names))
            raise RecordError(f"{where}: fields missing or unknown: {', '.join(odd)}")
        return typing.cast(Any, kind)(
            **{name: _build(hints[name], data[name], f"{where}.{name}") for name in names}
        )
    if origin is types.UnionType:
        if data is None and type(None) in args:
            return None
        return _build(next(arg for arg in args if arg is not type(None)), data, where)
    if origin is list and isinstance(data, list):
        return [_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
    if origin is dict and isinstance(data, dict):
        return {key: _build(args[1], item, f"{where}[{key!r}]") for key, item in data.items()}
    if origin is Literal and data in args:
        return data
    if kind is float and data in ("nan", "inf", "-inf"):
        return float(data)
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
        return data
    raise RecordError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {data!r}")
