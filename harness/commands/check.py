"""`bench.py check`: is every answer right? No timing, with or without a GPU."""

from __future__ import annotations

import argparse

import torch

import convgap
from harness.cases.catalogue import SETS
from harness.console import Console, console, progress
from harness.errors import INTERRUPTED, UsageError
from harness.mutants import score
from harness.options import add_case_options, chosen_cases, chosen_entries, refuse
from harness.records.environment import environment
from harness.records.record import Run
from harness.runs.check import Lost
from harness.runs.run import add_resume, begun, continue_elsewhere, run_cases
from harness.show import cross_check, tables
from harness.show.text import print_lines, section

SUMMARY = "check every answer against float64 and against each other; no timing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py check`."""
    add_case_options(parser)
    parser.add_argument(
        "--mutants",
        action="store_true",
        help="check the check: known-wrong implementations, and who catches them",
    )
    add_resume(parser)


def run(args: argparse.Namespace) -> int:
    """Print the cross-check; 0 if every answer is inside its budget, 1 if not, 130 after Ctrl-C."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if args.mutants:
        if args.operator:
            raise UsageError("--mutants: they are wrong chains and tails, not for --operator")
        ignored = ("cases", "shape", "op", "dtype", "layout", "values", "multiplier", "seed")
        refuse(args, ignored, "expected without --mutants, which brings its own calls")
        return _mutants(args.backends, device)
    cases = chosen_cases(args, tuple(SETS), gpu=gpu)
    entries = chosen_entries(args, gpu=gpu)
    found = begun(args.resume, environment(device, None), {"seed": str(args.seed)})
    out = console()
    if not args.resume:
        print_lines(out, tables.environment_lines(found))
    with progress(out, len(cases)) as advance:
        try:
            run_cases(found, cases, entries, device, None, lambda case: advance(case.name))
        except Lost as lost:
            announce(out, lost)
            continue_elsewhere(found)
    cross_check.print_check(found, out)
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


def announce(out: Console, lost: Lost) -> None:
    """Say that the run goes on in a new process."""
    whose = f"{lost.case}: {lost.entry or 'timing'}"
    print_lines(out, [f"{whose}: the GPU was lost, and a new process goes on: {lost.reason}"])


def finish(found: Run, out: Console, *, timed: bool) -> int:
    """Last line and exit code of a run; timed: whether every right answer should have been timed too."""
    results = [result for case in found.cases for result in case.results]
    good = sum(result.status in ("right", "timed") for result in results)
    wrong = len(found.wrong())
    untimed = sum(result.status == "right" for result in results) if timed else 0
    unmade = sum(bool(case.unmade) for case in found.cases)
    verdict = f"{len(found.cases)} cases: {good} answers inside their budget, {wrong} wrong"
    verdict += f", {untimed} not timed" if untimed else ""
    section(out, verdict + (f", {unmade} cases could not be made" if unmade else ""))
    if not found.finished:
        print_lines(out, ["interrupted: the cases above are complete, the rest did not run"])
        return INTERRUPTED
    return int(wrong > 0 or untimed > 0 or unmade > 0 or good == 0)
