"""`bench.py check`: is every answer right? No timing, with or without a GPU."""

from __future__ import annotations

import argparse

import torch

from harness import measure, report
from harness.backends import choose
from harness.errors import UsageError
from harness.options import add_case_options, chosen_cases
from harness.progress import progress
from harness.records import Run

SUMMARY = "check every answer against float64 and against each other; no timing"
INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py check`."""
    add_case_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the cross-check; 0 if every answer is inside its budget, 1 if not, 130 after Ctrl-C."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    cases = chosen_cases(args, ("headline", "grid", "edge"), gpu=gpu)
    try:
        peers = choose(args.backends, gpu=gpu)
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = Run(environment=measure.environment(device, None), settings={"seed": str(args.seed)})
    out = report.console()
    report.print_lines(out, report.environment_lines(found))
    with progress(out, len(cases)) as advance:
        measure.run_cases(found, cases, peers, device, None, advance)
    report.print_check(found, out)
    report.print_provenance(found, out)
    return finish(found, out, timed=False)


def finish(found: Run, out: report.Console, *, timed: bool) -> int:
    """Last line and exit code of a run; timed: whether every right answer should have been timed too."""
    rows = [row for case in found.cases for row in case.rows]
    good = sum(row.status in ("right", "timed") for row in rows)
    wrong = len(found.wrong())
    untimed = sum(row.status == "right" for row in rows) if timed else 0
    verdict = f"{len(found.cases)} cases: {good} answers inside their budget, {wrong} wrong"
    report.section(out, verdict + (f", {untimed} not timed" if untimed else ""))
    if not found.finished:
        report.print_lines(out, ["interrupted: the cases above are complete, the rest did not run"])
        return INTERRUPTED
    return int(wrong > 0 or untimed > 0 or good == 0)
