"""Records as JSON, and back: checked all the way down, older ones brought up to date.

Written by hand, for a library that does this (msgspec, pydantic) is not where the lab has to run: beside torch on a
machine with a GPU and no network.
"""

from __future__ import annotations

import gzip
import json
import math
import types
import typing
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import UsageError
from harness.records.record import SCHEMA, Run

GZIP = b"\x1f\x8b"
"""What a file that gzip made begins with."""


class RecordError(UsageError):
    """A file that is no usable record; the message names the file and what is wrong with it."""


def to_json(run: Run) -> str:
    """Standard JSON; a number that is not finite becomes the string "nan", "inf" or "-inf"."""
    return json.dumps(_plain(asdict(run)), indent=1, allow_nan=False) + "\n"


def from_json(text: str, name: str = "record") -> Run:
    """Run from to_json's text, of this schema or an older one; RecordError if it is anything else."""
    try:
        data = json.loads(text)
        found = data.get("schema") if isinstance(data, dict) else None
        if found == 1:
            _from_schema_1(data)
        elif found != SCHEMA:
            raise RecordError(f"{name}: expected a record of schema 1 or {SCHEMA}, found schema {found!r:.80}")
        run: Run = _build(Run, data, name)
    except RecordError:
        raise
    except RecursionError:
        raise RecordError(f"{name}: not a record: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RecordError(f"{name}: not JSON ({error})") from None
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{name}: not a record ({type(error).__name__}: {error})") from None
    _require_sense(run, name)
    return run


def load(path: Path) -> Run:
    """Run from a file, which gzip may have compressed; RecordError if it cannot be read or is no record."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if content.startswith(GZIP) else content).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from None
    return from_json(text, str(path))


def _from_schema_1(data: dict[str, Any]) -> None:
    """Bring a record of schema 1 up to date, in place: it called results rows, and entries backends."""
    data |= {"schema": SCHEMA, "calls": [], "lost": {}}
    for case in data["cases"]:
        case |= {"results": case.pop("rows"), "values": None, "multiplier": None, "seed": None}
        case["unmade"] = ""
        for result in case["results"]:
            result["entry"] = result.pop("backend")
    for ceiling in data["ceilings"]:
        del ceiling["gb_per_s"]
        # The first mode of the run: it measured them in no other.
        ceiling["mode"] = data["settings"].get("modes", "cold").split(",")[0]


def _require_sense(run: Run, name: str) -> None:
    """RecordError if a name is there twice, or if a sample is no time that a call can take."""
    _require_once(f"{name}: case", (case.name for case in run.cases))
    _require_once(f"{name}: call", (f"{call.call} of {call.shape}, {call.dtype}" for call in run.calls))
    for case in run.cases:
        _require_once(f"{name}: case {case.name}: entry", (result.entry for result in case.results))
        for result in case.results:
            for what, samples in [*result.samples.items(), ("host", result.host_us)]:
                _require_times(f"{name}: case {case.name}: {result.entry}: {what}", samples)
    for call in run.calls:
        for entry, samples in call.samples.items():
            _require_times(f"{name}: call {call.call} of {call.shape}: {entry}", samples)


def _require_once(what: str, names: Iterable[str]) -> None:
    if twice := [found for found, count in Counter(names).items() if count > 1]:
        raise RecordError(f"{what} {twice[0]} is there twice")


def _require_times(what: str, samples: list[float]) -> None:
    if odd := [us for us in samples if not 0 < us < math.inf]:
        raise RecordError(f"{what}: expected times above 0 us, found {odd[0]}")


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
        return typing.cast(Any, kind)(**{name: _build(hints[name], data[name], f"{where}.{name}") for name in names})
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
        try:
            return float(data)
        except OverflowError:
            raise RecordError(f"{where}: expected a number, found one of {len(str(data))} digits") from None
    if isinstance(kind, type) and isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
        return data
    raise RecordError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {data!r:.80}")
