"""`bench.py judge`: other people's kernels, each right or not, honest or not, and how fast. docs/judging.md."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from harness.candidates import flashinfer, forms, judging, page
from harness.candidates.judging import Judged
from harness.candidates.problems import calibration, derived, file, filters
from harness.candidates.problems.floor import floor
from harness.candidates.trials import OLD, TODAY, shaped_for
from harness.candidates.verdict import exit_code
from harness.candidates.web import judge_page
from harness.candidates.worker import Limits
from harness.commands import judge_queue
from harness.console import console, saying
from harness.errors import UsageError
from harness.files import require_writable, write_whole
from harness.options import DTYPES, add_operator, chosen_operator, refuse, words

FOR_RUNS = ("dtype", "layout", "depth", "frozen_weights", "full", "limit", "memory", "seconds")
"""Options of how a file is run."""
FOR_FILES = ("rules", "form_only", *FOR_RUNS)
MOST = 1e6
"""Seconds, and GiB, that a limit may have: more is none, and at some point beyond what clocks and counters hold."""

SUMMARY = "judge files of others: right, honest, and how fast"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py judge`."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a candidate; several make a ranking")
    parser.add_argument("--form", choices=forms.FORMS, help="what the files are (default: told by what is in them)")
    parser.add_argument(
        "--problem",
        type=Path,
        metavar="FILE",
        help="of KernelBench's form: judge by its Model, with an estimated budget",
    )
    add_operator(parser)
    judge_queue.add_arguments(parser)
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="honest and faulty answers to known problems beside the estimated budget",
    )
    parser.add_argument("--rules", choices=("strict",), help="also ask for the strict form of a single file")
    parser.add_argument("--form-only", action="store_true", help="with --rules: do not run the files")
    parser.add_argument(
        "--dtype", type=words, metavar="LIST", help="also in these dtypes (default: what a file claims)"
    )
    parser.add_argument(
        "--layout", type=words, metavar="LIST", help="also in these layouts (default: what a file claims)"
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="longest chain of additions (default: a left-to-right sum)"
    )
    parser.add_argument("--frozen-weights", action="store_true", help="weights may be taken once, at construction")
    parser.add_argument("--full", action="store_true", help="the published shape without a GPU, too (minutes)")
    parser.add_argument("--seed", type=int, help="draws the hidden shapes and all values (default: a new one)")
    parser.add_argument(
        "--limit", type=float, default=Limits.seconds, metavar="SECONDS", help="for one request (%(default)s)"
    )
    parser.add_argument("--memory", type=float, default=Limits.memory / 2**30, metavar="GIB", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="most time spent on sampling (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdict, or a list of them")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs nothing else")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="append a line of flashinfer-bench's trace for each")
    parser.add_argument(
        "--definitions", type=Path, metavar="DIR", help="write the definitions that a solution.json names"
    )


def run(args: argparse.Namespace) -> int:
    """Judge; 0 accepted, 1 any other verdict, 2 bad usage, 3 this machine cannot judge the file."""
    _require(args)
    if args.queue:
        return judge_queue.run(args)
    if args.calibrate:
        return _calibrate(args)
    settings = _settings(args)
    candidates = [_claimed(forms.read(path, args.form), args) for path in args.files]
    if args.definitions:
        for path in flashinfer.write_definitions(args.definitions):
            print(f"wrote {path}")
    if not candidates:
        return 0
    remarks: list[str] = []
    needed = None
    given: Any = settings.problem
    if given:
        remarks = list(filters.remarks(given, settings.seed)) if args.problem else []
        needed = floor(given, settings.seed)
        remarks.append(f"floor: {needed.words()}")
        settings = replace(settings, random=any(remark.startswith("random:") for remark in remarks))
    judged: list[Judged] = []
    with ExitStack() as stack:
        for candidate in candidates:
            with saying(console(sys.stderr)) as say:
                words = f"{len(judged) + 1} of {len(candidates)}, {candidate.path.name}: "
                judged.append(judging.judge(candidate, settings, stack, lambda text, words=words: say(words + text)))
        if settings.gpu and any(item.examination and item.verdict.verdict == "accepted" for item in judged):
            from harness.candidates import ranking
            from harness.candidates.problems import timing

            if given and needed:
                timing.rank(judged, given, needed, seed=settings.seed, seconds=args.seconds)
            else:
                ranking.rank(judged, seed=settings.seed % 2**32, seconds=args.seconds)
    found = [item.verdict for item in judged]
    for verdict in found:
        verdict.notes = [f"problem: {remark}" for remark in remarks] + verdict.notes
        print("\n".join(page.lines(verdict)) + "\n")
    if len(found) > 1:
        print("\n".join(page.ranking(found)))
    if args.problem:
        accepted = sum(verdict.verdict == "accepted" for verdict in found)
        print(f"{accepted} of {len(found)} accepted, by a budget that is estimated, not derived")
    if args.json:
        documents = [verdict.document() for verdict in found]
        write_whole(args.json, json.dumps(documents if len(found) > 1 else documents[0], indent=1) + "\n")
    if args.html:
        write_whole(args.html, judge_page(found))
    if args.trace:
        _append(args.trace, judged, settings)
    return exit_code(found)


def _require(args: argparse.Namespace) -> None:
    """UsageError for what needs no file to be read: numbers, outputs, and options that would be ignored."""
    for name in ("limit", "memory", "seconds"):
        if not 0 < getattr(args, name) <= MOST:
            raise UsageError(f"--{name}: expected a positive number of at most {MOST:.0f}, got {getattr(args, name)}")
    if args.depth is not None and not 1 <= args.depth < 2**22:
        raise UsageError(f"--depth: expected a number of additions from 1 to {2**22 - 1}, got {args.depth}")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed: expected a number from 0 to {2**63 - 1}, got {args.seed}")
    outputs = "json", "trace", "html"
    # Their folder need not be there yet.
    known = flashinfer.definition_files(args.definitions) if args.definitions else []
    require_writable(args, *outputs, definitions=[path for path in known if path.exists()])
    flashinfer.require_trace(args.trace)
    if args.queue:
        return
    refuse(args, ("cluster", "processes"), "expected together with --queue")
    if args.calibrate:
        if args.files:
            raise UsageError(f"--calibrate: expected no FILE, got {args.files[0]}")
        ignored = (*FOR_FILES, "problem", "operator", "form", "trace", "html", "definitions")
        refuse(args, ignored, "expected without --calibrate, which judges known answers")
        return
    if not args.files:
        if not args.definitions:
            raise UsageError("expected at least one FILE to judge")
        refuse(args, outputs, "expected together with a FILE to judge")
    if not args.rules:
        refuse(args, ("form_only",), "expected together with --rules strict")
    if args.form_only:
        refuse(args, (*FOR_RUNS, "trace"), "expected without --form-only, which runs nothing")
    if args.problem:
        names = ("rules", "depth", "dtype", "layout", "full")
        refuse(args, names, "is for this project's own operators, not for --problem")
    if args.operator:
        refuse(args, ("problem", "rules", "dtype", "layout", "full"), "is not for --operator")


def _settings(args: argparse.Namespace) -> judging.Settings:
    problem = file.read(args.problem) if args.problem else None
    if operator := chosen_operator(args):
        problem = derived.main_problem(operator, gpu=torch.cuda.is_available())
    return judging.Settings(
        secrets.randbits(31) if args.seed is None else args.seed,
        torch.cuda.is_available(),
        Limits(args.limit, int(args.memory * 2**30)),
        args.depth,
        args.frozen_weights,
        args.rules == "strict",
        args.full,
        not args.form_only,
        problem,
    )


def _calibrate(args: argparse.Namespace) -> int:
    """Print the table, and its rows to --json; 1 if an honest answer is refused or a fault is not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for row in calibration.rows(args.seed or 0, compiled=True, device=device):
        print(f"{row.problem} done", file=sys.stderr, flush=True)
        found.append(row)
    print("\n".join(calibration.table(found)))
    least, most = next(row.derived for row in found if row.derived)
    print(f"\nchain: the derived budget is {least:.3g} to {most:.3g} times the estimated one")
    if args.json:
        write_whole(args.json, json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return 0 if all(row.sound for row in found) else 1


def _claimed(candidate: forms.Candidate, args: argparse.Namespace) -> forms.Candidate:
    for name, values, known in (("dtype", args.dtype, DTYPES), ("layout", args.layout, forms.LAYOUTS)):
        if unknown := [value for value in values or [] if value not in known]:
            raise UsageError(f"--{name}: unknown {name} {unknown[0]!r}, expected some of {', '.join(known)}")
    asked = "problem" if args.problem else "operator"
    if getattr(args, asked) and candidate.form != "kernelbench":
        raise UsageError(f"{candidate.path}: expected class ModelNew, as --{asked} asks, got form {candidate.form!r}")
    return candidate.claiming(args.dtype, args.layout)


def _append(path: Path, judged: list[Judged], settings: judging.Settings) -> None:
    hardware = torch.cuda.get_device_name() if settings.gpu else "CPU"
    environment = {"hardware": hardware, "libs": {"torch": torch.__version__}}
    with path.open("a", encoding="utf-8") as file:
        for item in judged:
            name = item.candidate.details.get("name", item.candidate.path.stem)
            if given := settings.problem:
                inputs = {f"input_{i}": {"type": "random"} for i in range(len(given.inputs(settings.seed)))}
                text = flashinfer.line(item.verdict, given.path.stem, {}, inputs, name, environment)
            else:
                problem = TODAY if settings.gpu else OLD
                shaped = shaped_for(item.candidate.operators[0], problem)
                text = flashinfer.trace(item.verdict, shaped, 0.5, name, environment)
            file.write(text + "\n")
