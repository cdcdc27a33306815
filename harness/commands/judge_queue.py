"""`bench.py judge --queue`: candidates in bulk, stopped and resumed at will, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from harness.candidates import backlog, crew, flashinfer, page
from harness.candidates.job import Terms
from harness.candidates.verdict import Verdict, exit_code
from harness.candidates.web import judge_page
from harness.candidates.worker import Limits
from harness.errors import INTERRUPTED, UsageError
from harness.files import write_whole
from harness.options import refuse

EVERY_S = 2.0  # between two lines of progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a queue."""
    parser.add_argument(
        "--queue",
        type=Path,
        metavar="DIR",
        help="judge every file of a folder, or line of a JSONL of solutions",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="of a queue, beside the GPUs' (default: by the cores)"
    )
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler whose workers judge the queue")


def run(args: argparse.Namespace) -> int:
    """Judge what --trace has no verdict of yet; print the ranking of all. Exit codes as for files."""
    names = ("rules", "form_only", "full", "dtype", "layout", "operator", "definitions", "calibrate")
    refuse(args, names, "is not for --queue")
    if args.files:
        raise UsageError(f"--queue: expected no other FILE, got {args.files[0]}")
    if args.processes is not None and args.processes < 1:
        raise UsageError(f"--processes: expected a number from 1, got {args.processes}")
    if args.trace is None:
        raise UsageError("--queue: expected together with --trace FILE, which keeps what is judged")
    for path in filter(None, (args.json, args.html)):
        if path.suffix in backlog.SUFFIXES and path.resolve().parent == args.queue.resolve():
            raise UsageError(f"{path}: expected a file outside of {args.queue}, where it would be judged")
    problem = None
    if args.problem:
        try:
            problem = args.problem.name, args.problem.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--problem: {args.problem}: cannot be read ({error})") from None
    gpu = torch.cuda.is_available()
    terms = Terms(
        # The same each time: a queue that goes on asks the same questions.
        0 if args.seed is None else args.seed,
        Limits(args.limit, int(args.memory * 2**30)),
        args.seconds,
        args.depth,
        args.frozen_weights,
        args.form,
        problem,
    )
    tasks = backlog.tasks(args.queue, problem=problem is not None)
    hardware = torch.cuda.get_device_name() if gpu else "CPU"
    context = f"{backlog.version()} {torch.__version__} {hardware} {terms}"
    known = backlog.remembered(args.trace)
    found = {task: known[task.key(context)] for task in tasks if task.key(context) in known}
    waiting = [task for task in tasks if task not in found]
    if found:
        print(f"{len(found)} of {len(tasks)} have a verdict in {args.trace}", file=sys.stderr)
    backlog.whole_lines(args.trace)
    if args.cluster:
        coming = crew.cluster(args.cluster, waiting, terms, gpu=gpu)
    else:
        coming = crew.local(waiting, terms, args.processes)
    start = said = time.perf_counter()
    try:
        with args.trace.open("a", encoding="utf-8") as file:
            for done, (task, document) in enumerate(coming, 1):
                found[task] = backlog.verdict_of(document)
                key = task.key(context)
                file.write(_line(task, found[task], document, key, problem, hardware) + "\n")
                file.flush()
                now = time.perf_counter()
                if now - said > EVERY_S or done == len(waiting):
                    said = now
                    words = ", ".join(backlog.left(done, len(waiting), now - start))
                    print(f"{words}; {_accepted(found)} accepted", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"stopped with {len(found)} of {len(tasks)} judged: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    finally:
        coming.close()
    _report(args, [found[task] for task in tasks])
    return exit_code(list(found.values()))


def _accepted(found: dict[backlog.Task, Verdict]) -> int:
    return sum(verdict.verdict == "accepted" for verdict in found.values())


def _line(task: backlog.Task, verdict: Verdict, document: dict[str, Any], key: str, problem: Any, hardware: str) -> str:
    """A line of flashinfer-bench's trace, with the whole verdict and its key beside what is read there."""
    environment = {"hardware": hardware, "libs": {"torch": torch.__version__, "judge": backlog.version()}}
    definition = Path(problem[0]).stem if problem else verdict.form
    text = flashinfer.line(verdict, definition, {}, {}, Path(task.file).stem, environment)
    return json.dumps(json.loads(text) | {"judged": {"key": key, "verdict": document}})


def _report(args: argparse.Namespace, found: list[Verdict]) -> None:
    print("\n".join(page.ranking(found)))
    counts = {word: sum(verdict.verdict == word for verdict in found) for word in page.WORDS}
    print(", ".join(f"{count} {word}" for word, count in counts.items() if count))
    if args.problem:
        print("by a budget that is estimated, not derived")
    if args.json:
        write_whole(args.json, json.dumps([verdict.document() for verdict in found], indent=1) + "\n")
    if args.html:
        write_whole(args.html, judge_page(found))
