"""`bench.py tune`: which launch constants would be faster on the card at hand, and a plan that sets them."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.cases.case import Case
from harness.console import console, progress
from harness.errors import UsageError
from harness.files import require_writable, write_whole
from harness.machine.compiled import stride_of
from harness.machine.resources import resources
from harness.options import add_case_options, chosen_cases, refuse, require_known
from harness.records.environment import environment
from harness.show.text import print_lines
from harness.timing import session
from harness.timing.telemetry import Telemetry
from harness.tuning import report
from harness.tuning.search import search
from harness.tuning.sweep import BACKENDS, Call, candidates
from harness.tuning.trial import Bench, Subject
from runtime import plan

SUMMARY = "which launch constants would be faster on this card, by how much, and a plan that sets them"
DEFAULT = ("chain/headline", "tail/headline")
SECONDS = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py tune`."""
    add_case_options(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="S",
        help="about how long it may take, once inputs are made (default: %(default)s)",
    )
    parser.add_argument("--warm", action="store_true", help="with a warm L2 (default: flushed, clean)")
    parser.add_argument("--list", action="store_true", help="only list the settings that would be tried; needs no GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write auto-tuning results (T4 format)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="write what is printed, too")
    parser.add_argument("--apply", type=Path, metavar="FILE", help=f"write a plan, which {plan.VARIABLE}=FILE loads")


def run(args: argparse.Namespace) -> int:
    """Search and report; 0 if the shipped constants are right on every case, 1 if not."""
    backends = args.backends or list(BACKENDS)
    require_known("backends", backends, BACKENDS)
    if not args.seconds > 0:
        raise UsageError(f"--seconds: expected a positive number, got {args.seconds}")
    if used := plan.active():
        raise UsageError(f"settings are compared with the constants as shipped, not with {used}: unset {plan.VARIABLE}")
    if args.operator:
        raise UsageError("--operator: only launches of the project's own kernels have constants to try")
    outputs = [path for path in (args.json, args.text, args.apply) if path]
    require_writable(args, "json", "text", "apply")
    out = console()
    if args.list:
        refuse(args, ("seconds", "warm", "json", "text", "apply"), "expected without --list, which times nothing")
        print_lines(out, _listed(chosen_cases(args, DEFAULT, gpu=True), backends))
        return 0
    device = _device()
    cases = chosen_cases(args, DEFAULT, gpu=True)
    telemetry = Telemetry(device)
    about, mode = environment(device, telemetry), "warm" if args.warm else "clean cold"
    with progress(out, len(cases) * (len(backends) + 1)) as advance:

        def tell(said: str) -> None:
            print_lines(out, [said])
            advance(said.partition(":")[0])

        subjects = []
        for case in cases:
            subjects.append(Subject.of(case, device))
            tell(f"{case.name}: inputs and their truth made")
        found = search(_bench(device, telemetry, warm=args.warm), subjects, backends, args.seconds, tell)
    text = report.render(found, about, mode)
    print()
    print(text, end="")
    if args.text:
        write_whole(args.text, text)
    if args.json:
        write_whole(args.json, json.dumps(report.t4(found, about, mode), indent=1) + "\n")
    if args.apply:
        write_whole(args.apply, report.plan(found, about).to_json())
    if outputs:
        print_lines(out, ["", *(f"wrote {path}" for path in outputs)])
    wrong = [sweep.trials[0] for sweep in found.sweeps if sweep.trials[0].invalidity != "correct"]
    print_lines(out, [f"{trial.case} {trial.backend} as shipped: {trial.reason}" for trial in wrong])
    return int(bool(wrong))


def _device() -> torch.device:
    if not torch.cuda.is_available():
        raise UsageError("without a GPU there is nothing to time; --list shows what would be tried")
    return torch.device("cuda", torch.cuda.current_device())


def _listed(cases: Sequence[Case], backends: Sequence[str]) -> list[str]:
    lines = []
    for case in cases:
        call = Call(case.problem, stride_of(case), getattr(torch, case.dtype), 0, case.multiplier is None)
        for backend in backends:
            tried = [f"{name} {value}" for found in candidates(backend, call) for name, value in found.items()]
            lines.append(f"{case.name} {backend}: {', '.join(tried) or 'nothing that changes its launches'}")
    return lines


def _bench(device: torch.device, telemetry: Telemetry, *, warm: bool) -> Bench:
    """The card and the clock."""
    flush = None if warm else session.flusher("read", device)

    def of(launch: Any) -> tuple[int, int]:
        return resources(launch.handle(device)[0])

    return Bench(
        device,
        session.capture,
        lambda replay: session.stopwatch(replay, flush),
        of,
        time.perf_counter,
        telemetry.throttle,
    )
