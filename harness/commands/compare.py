"""`bench.py compare`: check every entry, time the right ones, report, and keep the record."""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import inf
from pathlib import Path

import torch

from harness.cases import operators
from harness.cases.case import Case
from harness.cases.catalogue import TIMED
from harness.commands.check import announce, finish
from harness.console import Console, console, progress
from harness.errors import UsageError
from harness.files import require_writable, write_whole
from harness.options import add_case_options, chosen_cases, chosen_entries, chosen_operator, words
from harness.records.as_csv import to_csv
from harness.records.as_json import to_json
from harness.records.environment import environment
from harness.records.record import CaseRecord, Run
from harness.runs import timer as timing
from harness.runs.check import Lost
from harness.runs.run import add_resume, begun, continue_elsewhere, run_cases
from harness.show import cross_check, plots, tables
from harness.show.page import record_page
from harness.show.text import print_lines
from harness.timing.session import FLUSHES, Stop

SUMMARY = "check every entry, then time the right ones (the default command)"
NAMES = {"read": "cold", "write": "dirty", "none": "unflushed"}  # mode that each flush makes
DEFAULT_SECONDS = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py compare`."""
    add_case_options(parser)
    parser.add_argument(
        "--backward",
        action="store_true",
        help="the gradients of the chosen chains, in place of their outputs",
    )
    group = parser.add_argument_group("timing (needs a GPU)")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--cold", action="store_true", help="only with a flushed L2 (default: flushed and warm)")
    one.add_argument("--warm", action="store_true", help="only with a warm L2")
    group.add_argument(
        "--flush",
        type=words,
        default=["read"],
        metavar="LIST",
        help="how to flush the L2: read (clean, the default), write (dirty), none",
    )
    group.add_argument(
        "--budget-seconds",
        type=float,
        default=DEFAULT_SECONDS,
        metavar="S",
        help="most time spent on sampling one case (default: %(default)s)",
    )
    group.add_argument(
        "--precision",
        type=float,
        default=100 * Stop.width,
        metavar="PERCENT",
        help="stop a case once every median is known this well (default: %(default)s)",
    )
    group.add_argument("--first-call", action="store_true", help="also time the first call of a fresh process (slow)")
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the whole record, raw samples included")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write one line per case, entry and mode")
    group.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs nothing else")
    plots.add_plot_options(group)
    add_resume(parser)


def run(args: argparse.Namespace) -> int:
    """Compare; 0 if every answer is inside its budget, 1 if not, 130 after Ctrl-C."""
    require_writable(args, "json", "csv", "html", plot=plots.files_of(args))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    operator = chosen_operator(args)
    cases = chosen_cases(args, operator.timed if operator else TIMED, gpu=gpu)
    if args.backward:
        cases = _backward(cases)
    entries = chosen_entries(args, gpu=gpu)
    settings = _settings(args)
    timer = timing.timer_for(device, settings)
    if args.plot is not None and timer is None:
        raise UsageError("--plot: there is nothing to draw without times, and timing needs a GPU")

    out = console()
    asked = {
        "flush": ",".join(args.flush),
        "modes": ",".join(settings.modes),
        "seed": str(args.seed),
        "budget_seconds": str(args.budget_seconds),
        "precision_percent": str(args.precision),
    }
    found = begun(args.resume, environment(device, timer and timer.telemetry), asked)
    if timer and not args.resume:
        timer.describe(found)
    if not args.resume:
        print_lines(out, tables.environment_lines(found))

    with progress(out, len(cases)) as advance:

        def done(record: CaseRecord) -> None:
            advance(record.name)
            if timer:
                tables.print_case(record, out)
            if args.json:
                write_whole(args.json, to_json(found))

        try:
            run_cases(found, cases, entries, device, timer, done)
        except Lost as lost:
            announce(out, lost)
            continue_elsewhere(found)
    if timer:
        tables.print_summary(found, out)
        cross_check.print_check(found, out)
    else:
        cross_check.print_check(found, out)
        tables.print_provenance(found, out)
        print_lines(out, ["", "no GPU: answers are checked, timing needs a GPU"])
    _write(args, found, out)
    return finish(found, out, timed=timer is not None)


def _backward(cases: list[Case]) -> list[Case]:
    # The tail's gradient is one number a plane, expanded: nothing is computed.
    kept = [case for case in cases if operators.of(case.problem).gradient_entries]
    if not kept:
        names = ", ".join(f"{operator.name}s" for operator in operators.known() if operator.gradient_entries)
        raise UsageError(f"--backward: only {names} have gradients to compare, and none is chosen")
    return [replace(case, name=f"backward/{case.name}", backward=True) for case in kept]


def _settings(args: argparse.Namespace) -> timing.Settings:
    if unknown := [flush for flush in args.flush if flush not in FLUSHES]:
        raise UsageError(f"--flush: unknown flush {unknown[0]!r}, expected some of {', '.join(FLUSHES)}")
    if not args.budget_seconds > 0:
        raise UsageError(f"--budget-seconds: expected a positive number, got {args.budget_seconds}")
    if not 0 < args.precision < inf:
        raise UsageError(f"--precision: expected a positive number of percent, got {args.precision}")
    modes = {} if args.warm else {NAMES[flush]: flush for flush in args.flush}
    if not args.cold:
        modes["warm"] = None
    stop = Stop(width=args.precision / 100, budget_s=args.budget_seconds)
    return timing.Settings(modes, stop, args.seed, args.first_call)


def _write(args: argparse.Namespace, found: Run, out: Console) -> None:
    written = []
    for path, convert in ((args.json, to_json), (args.csv, to_csv), (args.html, record_page)):
        if path:
            write_whole(path, convert(found))
            written.append(path)
    if args.plot is not None and any(result.samples for case in found.cases for result in case.results):
        written += plots.draw(found, args)
    if written:
        print_lines(out, ["", *(f"wrote {path}" for path in written)])
