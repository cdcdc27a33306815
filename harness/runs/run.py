"""A run: one case after the other, in this process, or in a new one after a kernel has cost it the GPU."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from harness.cases.case import Case
from harness.entries.entry import Entry
from harness.errors import UsageError, one_line
from harness.records.as_json import load, to_json
from harness.records.record import CaseRecord, Environment, Result, Run
from harness.runs.check import Lost, check_case, described, device_lost
from harness.runs.timer import Timer
from runtime import plan

RESUME = "--resume"


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The option that continue_elsewhere gives its new process: the record to go on with."""
    parser.add_argument(RESUME, type=Path, help=argparse.SUPPRESS)


def run_cases(
    run: Run,
    cases: Sequence[Case],
    entries: Sequence[Entry],
    device: torch.device,
    timer: Timer | None,
    done: Callable[[CaseRecord], object],
) -> None:
    """Check, and with a timer also time, each case that the run does not hold yet; `done` is told of each.

    Ctrl-C leaves the finished cases in the run and marks it unfinished. Raises Lost when the GPU is lost: the run then
    holds what it had, and `lost` whose call it was.
    """
    run.finished = False
    known = {record.name for record in run.cases}
    try:
        for case in cases:
            if case.name in known:
                continue
            try:
                record = _one(case, entries, device, timer, run.lost.get(case.name, {}))
            except Lost as lost:
                run.lost.setdefault(case.name, {})[lost.entry] = lost.reason
                raise
            run.cases.append(record)
            done(record)
            if device_lost(device):
                raise Lost(case.name, "", "; ".join(record.flags))
            _free()
        run.finished = True
    except KeyboardInterrupt:
        _free()


def _one(
    case: Case, entries: Sequence[Entry], device: torch.device, timer: Timer | None, lost: dict[str, str]
) -> CaseRecord:
    """The case's record. What there is no room for, or cannot be timed, is flagged, and the other cases go on."""
    try:
        record, ready, expected = check_case(case, entries, device, lost)
    except Lost:
        raise
    except Exception as error:  # no memory, mostly; or whatever an operator of one's own dies of
        record = described(case)
        record.unmade = one_line(error)
        reason = f"the case could not be made: {record.unmade}"
        record.results = [Result(entry.name, "unavailable", reason=reason) for entry in entries]
        return record
    if timer is not None and ready:
        try:
            timer.time_case(case, record, ready, expected)
        except Exception as error:  # out of memory, mostly
            record.flags.append(f"timing failed: {one_line(error)}")
    return record


def continue_elsewhere(run: Run) -> NoReturn:
    """Become a new process of the same command line, which goes on with this run: the lost GPU context ends here."""
    handle, name = tempfile.mkstemp(prefix="convgap-run-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        file.write(to_json(run))
    sys.stdout.flush()
    sys.stderr.flush()
    words = sys.orig_argv[1:]
    if RESUME in words:
        words = words[: words.index(RESUME)]
    os.execv(sys.executable, [sys.executable, *words, RESUME, name])


def begun(path: Path | None, environment: Environment, settings: dict[str, str]) -> Run:
    """A new run; or with a path the one that continue_elsewhere left there, whose file is then gone.

    UsageError if that one had a GPU and this process has none.
    """
    if path is None:
        return Run(environment, settings | plan_setting())
    run = load(path)
    path.unlink()
    if run.environment.gpu != environment.gpu:
        raise UsageError(f"the GPU is lost for new processes too: {run.environment.gpu} is not there any more")
    return run


def plan_setting() -> dict[str, str]:
    """What a record says of the plan whose launch constants it was made with; nothing where there is none."""
    used = plan.active()
    return {} if used is None else {"plan": str(used)}


def _free() -> None:
    """Give back what the case just done held: compiled code, graphs and their memory."""
    # Past eight shapes torch.compile would refuse the next.
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
