"""`bench.py calls`: what a person waits for, beside eager torch, torch.compile and torch.mean in the same run."""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import Any

import torch

from harness.cases import spelling
from harness.cases.case import Case
from harness.console import console, progress
from harness.errors import UsageError
from harness.files import require_writable, write_whole
from harness.options import DTYPES, add_operator, chosen_operator, require_known, require_memory, words
from harness.records.as_json import to_json
from harness.records.environment import environment
from harness.records.record import Run
from harness.runs.run import plan_setting
from harness.show.calls import call_text
from harness.show.page import record_page
from harness.timing.calls import CALLS, ENTRIES, measure
from harness.timing.session import Stop
from harness.timing.telemetry import Telemetry

SUMMARY = "what a person waits for: host and wall time of eager calls, new sizes, training steps, the first call"
SHAPES = ("tail:1,128,32,32", "chain:1,64,128,32,32,k3,s2,p1,op1", "chain:2,16,32,24,24,k3,s2,p1,op1")
"""A tail, a chain of two launches, and one of one launch, all so small that the host decides."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py calls`."""
    add_operator(parser)
    parser.add_argument(
        "--shape",
        action="append",
        metavar="SHAPE",
        help=f"a problem (default: {', '.join(SHAPES)}); may be repeated",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: float32")
    parser.add_argument("--calls", type=words, metavar="LIST", help=f"some of {', '.join(CALLS)} (default: all)")
    parser.add_argument("--backends", type=words, metavar="LIST", help=f"some of {', '.join(ENTRIES)} (default: all)")
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=4.0,
        metavar="S",
        help="most time spent on one kind of call of one problem, first calls excluded (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record, raw samples included")
    parser.add_argument("--text", type=Path, metavar="FILE", help="write what is printed, too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs nothing else")


def run(args: argparse.Namespace) -> int:
    """Print one table per kind of call; 1 if an entry of the product that works here was not timed, or nothing was."""
    require_writable(args, "json", "text", "html")
    operator = chosen_operator(args)
    callers = operator.callers() if operator else ENTRIES
    require_known("calls", args.calls, CALLS)
    require_known("backends", args.backends, callers)
    if operator and args.dtype not in operator.dtypes:
        raise UsageError(f"--dtype: expected one of {', '.join(operator.dtypes)}, got {args.dtype!r}")
    if not args.budget_seconds > 0:
        raise UsageError(f"--budget-seconds: expected a positive number, got {args.budget_seconds}")
    try:
        shapes = args.shape or (_smallest(operator) if operator else SHAPES)
        problems = {spelling.spell(problem): problem for problem in map(spelling.parse, shapes)}
    except ValueError as error:
        raise UsageError(str(error)) from None
    cases = [Case(f"calls/{text}", problem, "given", dtype=args.dtype) for text, problem in problems.items()]
    for case in cases:
        require_memory(case)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kinds, names = args.calls or list(CALLS), args.backends or list(callers)
    telemetry = Telemetry(device) if device.type == "cuda" else None
    asked = {"budget_seconds": str(args.budget_seconds)} | plan_setting()
    found = Run(environment(device, telemetry), asked, finished=False)
    stop = Stop(width=0.02, min_rounds=20, max_rounds=100, budget_s=args.budget_seconds)
    with progress(console(), len(cases) * len(kinds)) as advance:
        for case in cases:
            for times in measure(case, kinds, names, device, stop):
                found.calls.append(times)
                advance(f"{case.name}, {times.call}")
    found.finished = True
    text = call_text(found)
    timed = any(samples for times in found.calls for samples in times.samples.values())
    if not timed:
        text += "\nnothing was timed\n"
    print(text, end="")
    if args.text:
        write_whole(args.text, text)
    if args.json:
        write_whole(args.json, to_json(found))
    if args.html:
        write_whole(args.html, record_page(found))
    return int(not timed or any(_failed(why) for times in found.calls for why in times.missing.values()))


def _smallest(operator: Any) -> list[str]:
    """The shape of an operator's smallest case that is about speed."""
    cases = [case for name in operator.timed for case in operator.cases.get(name, ())]
    cases = cases or [case for group in operator.cases.values() for case in group]
    problem = min((case.small().problem for case in cases), key=lambda problem: prod(problem.in_shape))
    return [spelling.spell(problem)]


def _failed(reason: str) -> bool:
    """Whether an entry has no times because it went wrong, not because it has nothing to do here."""
    return reason.startswith("RuntimeError: wrong:")
