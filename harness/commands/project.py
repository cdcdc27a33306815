"""`bench.py project`: what an RTX 4090 would need, from what was measured on another card."""

from __future__ import annotations

import argparse
import io
from dataclasses import asdict
from pathlib import Path

from harness.console import console
from harness.errors import UsageError
from harness.files import add_outputs, check_outputs, write_outputs
from harness.machine import projection
from harness.machine.projection import BASELINE_US, Line, Memory
from harness.records.as_json import load
from harness.records.record import Run
from harness.show.text import NONE, new_table, number, print_lines
from harness.timing.floors import RTX_4090

SUMMARY = "projected times on an RTX 4090, with the model's error on what was measured"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py project`."""
    parser.add_argument(
        "--record",
        type=Path,
        required=True,
        action="append",
        metavar="FILE",
        help="what `bench.py compare --json` wrote on a GPU; repeated, a later one replaces cases of the same name",
    )
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Print validation and projection. UsageError if the record gives nothing to project."""
    check_outputs(args, "project")
    record = projection.joined([load(path) for path in args.record])
    bandwidth = projection.bandwidth_of(record)
    memory = projection.fit(record, bandwidth)
    lines = projection.project(record, memory, bandwidth)
    if not lines:
        names = ", ".join(projection.ENTRIES)
        raise UsageError(f"{', '.join(map(str, args.record))}: no timed entry of {names}")
    found = [asdict(line) | {"error": line.error} for line in lines]
    document = {"projected_for": RTX_4090.name, "memory": asdict(memory), "lines": found}
    write_outputs(args, "project", render(record, memory, lines), document)
    return 0


def render(record: Run, memory: Memory, lines: list[Line]) -> str:
    """Validation first, then the projection; every projected figure says that it is one."""
    out = io.StringIO()
    shown = console(out)
    gpu = record.environment.gpu
    middle, worst = projection.errors(lines)
    known = projection.baseline_us(memory)
    low, high = (projection.there(memory, rate).share for rate in projection.seen("DRAM"))
    l2 = projection.seen("L2")[1] / 1e3
    error = known / BASELINE_US - 1
    print_lines(shown, [
        f"Measured on {gpu}: reading costs {memory.start_us:.1f} us + bytes at {memory.share:.1%} of DRAM's rate",
        "", "Validation: the model against what was measured, cold",
    ])  # fmt: skip
    table = new_table(("case", "entry", "measured us", "model us", "error"), 2)
    rows = [(line.case, line.entry, line.measured, line.floor, line.error) for line in lines]
    for *words, measured, model, off in [
        *rows, ("tail/headline", "baseline on RTX 4090", BASELINE_US, known, error),
    ]:  # fmt: skip
        table.add_row(*words, number(measured), number(model), f"{off:+.0%}")
    shown.print(table)
    print_lines(shown, [
        f"error of the model: on {gpu} median {middle:.0%}, worst {worst:.0%}; on the RTX 4090 {error:+.0%}, from "
        "one entry",
        "", "Projected for the RTX 4090 (a model's figures, not measured)",
    ])  # fmt: skip
    table = new_table(("case", "entry", "projected us, cold", "projected us, warm"), 2)
    for line in lines:
        cold = f"{number(line.low)} to {number(line.high)}"
        warm = "as cold" if line.warm is None else number(line.warm)
        if line.low is None:
            cold, warm = "none: memory does not limit it", NONE
        table.add_row(line.case, line.entry, cold, warm)
    shown.print(table)
    print_lines(shown, [
        f"cold: with {high:.1%} and with {low:.1%} of DRAM bandwidth, the most and the least that is seen on 4090s in "
        f"public; warm: the input is in the L2 (at most 72 MiB), which gives {l2:.1f} TB/s. docs/rtx4090.md has the "
        "sources."
    ])  # fmt: skip
    return out.getvalue()
