"""What docs/rtx4090.md says of times: each measured, where there is a record of such a card, or else projected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.machine import projection
from harness.machine.projection import Line
from harness.records.as_json import load
from harness.records.record import CaseRecord, Result, Run
from harness.show.text import number
from harness.timing.floors import RTX_4090

MODES = ("cold", "warm")


def measured(results: Path) -> Run | None:
    """The record of a 4090 in a folder of results, if somebody has made one. UsageError if it is of another card."""
    path = results / "rtx4090.json.gz"
    if not path.exists():
        return None
    found = load(path)
    if found.environment.gpu != RTX_4090.name:
        raise UsageError(f"{path}: expected a record of {RTX_4090.name}, got one of {found.environment.gpu}")
    return found


def _projected(run: Run) -> list[Line]:
    bandwidth = projection.bandwidth_of(run)
    return projection.project(run, projection.fit(run, bandwidth), bandwidth)


def times(run: Run, own: Run | None, entries: Sequence[str]) -> Iterator[tuple[CaseRecord, list[str]]]:
    """Cases that have a time there, each with its cells: of every mode, one of each entry.

    run: the record that is projected from. own: the record of a 4090.
    """
    lines = {(line.case, line.entry): line for line in _projected(run)}
    there = {case.name: case for case in own.cases} if own else {}
    for name, case in ({case.name: case for case in run.cases} | there).items():
        mine = there.get(name)
        cells = [
            _cell(mine.result(entry) if mine else None, lines.get((name, entry)), mode)
            for mode in MODES
            for entry in entries
        ]
        if any(cells):
            yield case, cells


def _cell(result: Result | None, line: Line | None, mode: str) -> str:
    """One time in us with the word that says what it is; empty where there is none of either kind."""
    summary = result.summary(mode) if result else None
    if summary:
        return f"{number(summary.median)} measured"
    if line is None or line.low is None:
        return ""
    if mode == "cold":
        return f"{number(line.low)} to {number(line.high)} projected"
    return "as cold" if line.warm is None else f"{number(line.warm)} projected"


def provenance(run: Run, own: Run | None) -> str:
    """Where the times come from, and how far off the model is where it can be held against something."""
    memory = projection.fit(run, projection.bandwidth_of(run))
    middle, _ = projection.errors([line for line in _projected(run) if line.low is not None])
    env, known = run.environment, projection.baseline_us(memory)
    lines = [
        f"*Projected* from one {env.gpu} ({env.date[:10]}, commit {env.commit}), on which reading costs "
        f"{memory.start_us:.1f} us and its bytes at {memory.share:.1%} of DRAM's rate;",
        f"the model's median error there is {middle:.0%} on what it projects. The one time that is known of a 4090, "
        f"{projection.BASELINE_US:.0f} us of the baseline, it puts at {known:.0f} us.",
        "Nothing below is *measured*: there is no record of a 4090 yet.",
    ]
    if own is not None:
        env = own.environment
        lines[-1] = f"*Measured* on one {env.gpu}, driver {env.driver}; {env.date[:10]}, commit {env.commit}."
    return "\n".join(lines)


def seen() -> Iterator[list[str]]:
    """What 4090s are seen to reach in public: where, at which rate, which share, by what, says who."""
    assert RTX_4090.bandwidth
    for found in projection.SEEN:
        share = f"{found.rate / RTX_4090.bandwidth:.1%} of {RTX_4090.bandwidth:.0f}"
        shown = share if found.where == "DRAM" else ""
        yield [found.where, f"{found.rate:.0f} GB/s", shown, found.what, f"<{found.source}>"]
