"""`bench.py check`: is every answer right? No timing, with or without a GPU."""

from __future__ import annotations

import argparse

import torch

import convgap
from harness.console import progress
from harness.entries.entry import choose
from harness.errors import UsageError
from harness.mutants import score
from harness.options import add_case_options, chosen_cases
from harness.records.record import Run
from harness.show import tables
from harness.timing import measure

SUMMARY = "check every answer against float64 and against each other; no timing"
INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py check`."""
    add_case_options(parser)
    parser.add_argument(
        "--mutants",
        action="store_true",
        help="check the check: known-wrong implementations, and who catches them",
    )


def run(args: argparse.Namespace) -> int:
    """Print the cross-check; 0 if every answer is inside its budget, 1 if not, 130 after Ctrl-C."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if args.mutants:
        return _mutants(args.backends, device)
    cases = chosen_cases(args, ("headline", "grid", "edge"), gpu=gpu)
    try:
        peers = choose(args.backends, gpu=gpu)
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = Run(environment=measure.environment(device, None), settings={"seed": str(args.seed)})
    out = tables.console()
    tables.print_lines(out, tables.environment_lines(found))
    with progress(out, len(cases)) as advance:
        measure.run_cases(found, cases, peers, device, None, lambda case: advance(case.name))
    tables.print_check(found, out)
    tables.print_provenance(found, out)
    return finish(found, out, timed=False)


def _mutants(backends: list[str] | None, device: torch.device) -> int:
    """Print the table of mutants and the score; 0 if all are killed and nothing right is."""
    usable = [status.name for status in convgap.status(device) if status.usable]
    if unknown := [name for name in backends or [] if name not in usable]:
        raise UsageError(f"--backends: mutants are made of {', '.join(usable)}, got {unknown[0]!r}")
    found = list(score.scores(backends or usable, device.type))
    print(score.table(found), "", *score.summary(found), sep="\n")
    return int(any(s.killed == (s.mutant is score.RIGHT) for s in found))


def finish(found: Run, out: tables.Console, *, timed: bool) -> int:
    """Last line and exit code of a run; timed: whether every right answer should have been timed too."""
    rows = [row for case in found.cases for row in case.rows]
    good = sum(row.status in ("right", "timed") for row in rows)
    wrong = len(found.wrong())
    untimed = sum(row.status == "right" for row in rows) if timed else 0
    verdict = f"{len(found.cases)} cases: {good} answers inside their budget, {wrong} wrong"
    tables.section(out, verdict + (f", {untimed} not timed" if untimed else ""))
    if not found.finished:
        tables.print_lines(out, ["interrupted: the cases above are complete, the rest did not run"])
        return INTERRUPTED
    return int(wrong > 0 or untimed > 0 or good == 0)
