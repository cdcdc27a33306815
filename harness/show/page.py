"""A record as one page for a browser: no network, no other file.

The pages are Jinja2 templates (harness/show/pages): it escapes what a record holds, and PyTorch brings it along.
"""

from __future__ import annotations

from functools import cache
from math import log10
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from harness.records.record import CaseRecord, Result, Run
from harness.show.calls import CALL_HEADS, call_lines
from harness.show.cross_check import pair_text
from harness.show.tables import environment_lines, first_mode, provenance, share
from harness.show.text import NONE, error_text, gain_text, label, number, size_text
from harness.timing.calls import CALLS
from harness.timing.intervals import Summary, summarise

GROUPS = (
    ("triton", "Triton", ("triton", "triton-tail")),
    ("cupy", "CUDA", ("cupy", "cupy-tail")),
    ("torch", "bands in plain torch", ("torch",)),
    ("compiled", "torch.compile", ("inductor", "inductor-max")),
    ("eager", "eager torch", ("eager-tf32", "eager-ieee")),
)
"""Style, name and entries of what is drawn in one colour; whatever is not named is `other`."""

OTHER = ("other", "others")

LEFT, RIGHT, LINE = 345.0, 950.0, 17.0
"""Of the overview, in its own units: where its axis begins and ends, and the height of a case's line."""

STRIP = 216.0
"""Width of the strip of samples."""


def style_of(entry: str) -> tuple[str, str]:
    """CSS class and legend of an entry."""
    return next(((style, name) for style, name, entries in GROUPS if entry in entries), OTHER)


@cache
def _templates() -> Environment:
    package = __name__.rpartition(".")[0]
    return Environment(
        loader=PackageLoader(package, "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def fill(template: str, **values: Any) -> str:
    """The text of a page made of a template of harness/show/pages."""
    return _templates().get_template(template).render(**values)


def record_page(run: Run) -> str:
    """The whole record: overview, table, every case with its samples, cross-check, what ran."""
    mode = first_mode(run)
    timed = [case for case in run.cases if any(result.samples.get(mode) for result in case.results)]
    names = list(dict.fromkeys(result.entry for case in run.cases for result in case.results))
    pairs = [name for name in names if any(name in case.pairwise for case in run.cases)]
    return fill(
        "record.html",
        title=_title(run, names),
        calls=_calls(run),
        environment=environment_lines(run),
        finished=run.finished,
        mode=mode,
        groups=_legend(names),
        entries=names,
        chart=_chart(timed, mode),
        cases=[_case(case, names, mode) for case in timed],
        errors=[{"name": label(case), "cells": _errors(case, names)} for case in run.cases],
        pairs={
            "names": pairs,
            "lines": [{"name": a, "cells": [pair_text(run, a, b) for b in pairs]} for a in pairs],
        },
        provenance=[line.strip() for line in provenance(run)],
        command=run.environment.command,
    )


def _title(run: Run, names: list[str]) -> str:
    if not run.cases:
        return "What a person waits for"
    return f"One operator, {len(names)} implementations, {len(run.cases)} cases"


def _calls(run: Run) -> list[dict[str, Any]]:
    """Kinds of call, each with a table for every problem."""
    return [
        {
            "name": kind,
            "what": CALLS.get(kind, ""),
            "times": [
                {
                    "title": f"{times.shape}, {times.dtype}",
                    "heads": CALL_HEADS,
                    "lines": list(call_lines(times)),
                    "missing": [f"{entry}: {why}" for entry, why in times.missing.items()],
                }
                for times in run.calls
                if times.call == kind
            ],
        }
        for kind in dict.fromkeys(times.call for times in run.calls)
    ]


def _legend(names: list[str]) -> list[dict[str, str]]:
    used = dict.fromkeys(style_of(name) for name in names)
    return [{"style": style, "name": name} for style, name in used]


def _chart(cases: list[CaseRecord], mode: str) -> dict[str, Any]:
    """Dots of time over the floor, on a logarithmic axis; over the fastest where no floor was measured."""
    found = []
    for case in cases:
        times = {result.entry: s.median for result in case.results if (s := result.summary(mode))}
        base = case.floor_us.get(mode) or min(times.values())
        found.append((case, base, {name: us / base for name, us in times.items()}))
    ratios = [ratio for _, _, each in found for ratio in each.values()] or [1.0]
    low, high = log10(min(0.9, *ratios)), log10(max(2.0, *ratios))
    scale = (RIGHT - LEFT) / (high - low)

    def at(ratio: float) -> float:
        return round(LEFT + (log10(ratio) - low) * scale, 1)

    ticks = [m * 10**e for e in range(7) for m in (1, 2, 5) if low <= log10(m * 10**e) <= high]
    lines = [
        {
            "name": label(case),
            "anchor": case.name,
            "y": round(28 + LINE * i, 1),
            "dots": [
                {
                    "x": at(ratio),
                    "style": style_of(name)[0],
                    "title": f"{name}: {number(ratio * base)} us, {number(ratio)} floors",
                }
                for name, ratio in sorted(each.items(), key=lambda pair: -pair[1])
            ],
        }
        for i, (case, base, each) in enumerate(found)
    ]
    return {
        "height": round(36 + LINE * len(lines)),
        "ticks": [{"x": at(value), "value": value, "text": f"{value:g}"} for value in ticks],
        "lines": lines,
    }


def _case(case: CaseRecord, names: list[str], mode: str) -> dict[str, Any]:
    found = {result.entry: s for result in case.results if (s := result.summary(mode))}
    best = min((s.median for s in found.values()), default=None)
    floor = case.floor_us.get(mode)
    cells = [
        {
            "text": number(s.median) if s else "",
            "value": s.median if s else "",
            "best": s is not None and s.median == best,
        }
        for s in (found.get(name) for name in names)
    ]
    samples = [us for result in case.results for us in result.samples.get(mode, ())]
    return {
        "name": label(case),
        "anchor": case.name,
        "shape": case.shape,
        "dtype": case.dtype,
        "layout": case.layout,
        "why": case.why,
        "megabytes": size_text(case.compulsory_bytes),
        "floor": number(floor) if floor else "",
        "floor_value": floor or "",
        "reference": case.reference,
        "cells": cells,
        "lines": [_entry(case, result, found.get(result.entry), mode, samples) for result in case.results],
        "notes": [f"{result.entry}: {note}" for result in case.results for note in result.notes] + case.flags,
    }


def _entry(
    case: CaseRecord, result: Result, summary: Summary | None, mode: str, of_case: list[float]
) -> dict[str, Any]:
    line = {
        "name": result.entry,
        "style": style_of(result.entry)[0],
        "what": result.what,
        "status": result.status,
        "reason": result.reason,
        "error": error_text(result.error),
        "median": "",
    }
    if summary is None:
        return line
    low, high = min(of_case), max(of_case)
    scale = STRIP / (log10(high / low) or 1.0)
    return line | {
        "median": number(summary.median, 4),
        "interval": f"{number(summary.interval.low, 4)} to {number(summary.interval.high, 4)}",
        "share": share(case, mode, summary.median),
        "gain": gain_text(case.speed_up(result, mode)),
        "host": number(summarise(result.host_us).median) if result.host_us else NONE,
        "count": summary.count,
        "strip": [round(2 + scale * log10(us / low), 1) for us in result.samples[mode]],
    }


def _errors(case: CaseRecord, names: list[str]) -> list[dict[str, Any]]:
    results = (case.result(name) for name in names)
    return [
        {
            "text": error_text(result.error if result else None),
            "wrong": result is not None and result.status == "wrong",
        }
        for result in results
    ]
