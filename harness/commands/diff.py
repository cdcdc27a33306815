"""Two records side by side: faster, slower, same or ambiguous, with the interval behind each word."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Literal

from harness.errors import UsageError
from harness.records.record import CaseRecord, RecordError, Row, Run, load
from harness.timing.intervals import Interval, ratio_of_medians, summarise

Verdict = Literal["faster", "slower", "same", "ambiguous", "broken", "repaired", "gone", "new"]

SUMMARY = "compare two records: faster, slower, same or ambiguous"
EFFECT = 0.03  # drift of clocks and placement of memory move a median by 1 to 2 % from process to process
RESOLUTION_US = 0.5  # of a CUDA event, as its documentation gives it: less than that is no difference
FEWEST = 6  # samples: with fewer there is no 95 % interval of a median


@dataclass(frozen=True)
class Change:
    """One row of both records. ratio: new median over old. old_us, new_us: medians, nan without samples."""

    case: str
    backend: str
    mode: str
    verdict: Verdict
    ratio: Interval
    old_us: float
    new_us: float

    @property
    def regression(self) -> bool:
        """A slower row, or one that gave the right answer before and gives it no more."""
        return self.verdict in ("slower", "broken")


def judge(ratio: Interval, effect: float) -> Verdict:
    """Word for an interval of new/old: same if it lies within `effect` of 1, a side if it lies beyond."""
    if ratio.low > 1 + effect:
        return "slower"
    if ratio.high < 1 / (1 + effect):
        return "faster"
    if 1 / (1 + effect) <= ratio.low and ratio.high <= 1 + effect:
        return "same"
    return "ambiguous"


def compare_samples(old: list[float], new: list[float], effect: float) -> tuple[Verdict, Interval]:
    """Verdict on two sets of samples in us, and the bootstrap interval of new median over old.

    Six samples at least on each side, otherwise ambiguous. The effect is never smaller than what an event
    can resolve.
    """
    if min(len(old), len(new)) < FEWEST:
        return "ambiguous", Interval(0.0, inf)
    ratio = ratio_of_medians(new, old, paired=False)
    return judge(ratio, max(effect, RESOLUTION_US / summarise(old).median)), ratio


def compare(old: Run, new: Run, effect: float = EFFECT) -> list[Change]:
    """Every (case, backend, mode) that either record timed, in the new record's order, then what is gone."""
    changes = []
    for case in _both(old, new):
        before, after = _case(old, case), _case(new, case)
        for backend in dict.fromkeys(r.backend for c in (after, before) if c for r in c.rows):
            a, b = before and before.row(backend), after and after.row(backend)
            modes = dict.fromkeys(mode for row in (b, a) if row for mode in row.samples if row.samples[mode])
            changes += [_change(case, backend, mode, a, b, effect) for mode in modes]
    return changes


def _both(old: Run, new: Run) -> list[str]:
    return list(dict.fromkeys(case.name for run in (new, old) for case in run.cases))


def _case(run: Run, name: str) -> CaseRecord | None:
    return next((case for case in run.cases if case.name == name), None)


def _change(case: str, backend: str, mode: str, old: Row | None, new: Row | None, effect: float) -> Change:
    a, b = (row.samples.get(mode, []) if row else [] for row in (old, new))
    old_us, new_us = (summarise(samples).median if samples else nan for samples in (a, b))
    if a and b:
        verdict, ratio = compare_samples(a, b, effect)
    else:
        ratio = Interval(nan, nan)
        if a:
            verdict = "broken" if new and new.status in ("wrong", "unavailable") else "gone"
        else:
            verdict = "repaired" if old and old.status in ("wrong", "unavailable") else "new"
    return Change(case, backend, mode, verdict, ratio, old_us, new_us)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py diff`."""
    parser.add_argument("old", type=Path, help="JSON record to compare with")
    parser.add_argument("new", type=Path, help="JSON record to judge")
    parser.add_argument(
        "--allow-different-gpu", action="store_true", help="compare records of two kinds of GPU"
    )
    parser.add_argument(
        "--effect",
        type=float,
        default=100 * EFFECT,
        metavar="PERCENT",
        help="smallest change that matters (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the verdicts; 0 without a regression, 1 with one. UsageError if they cannot be compared."""
    from harness.show.tables import console, diff_table

    if not args.effect > 0:
        raise UsageError(f"--effect: expected a positive number of percent, got {args.effect}")
    old, new = load(args.old), load(args.new)
    require_comparable(old, new, allow_different_gpu=args.allow_different_gpu)
    changes = compare(old, new, args.effect / 100)
    if not changes:
        raise RecordError("neither record holds a timed row")
    console().print(diff_table(changes))
    counts = {
        verdict: sum(c.verdict == verdict for c in changes)
        for verdict in dict.fromkeys(c.verdict for c in changes)
    }
    console().print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(any(change.regression for change in changes))


def require_comparable(old: Run, new: Run, *, allow_different_gpu: bool) -> None:
    """RecordError unless both runs used one kind of GPU (or that is allowed) and the same problems."""
    gpus = old.environment.gpu, new.environment.gpu
    if gpus[0] != gpus[1] and not allow_different_gpu:
        raise RecordError(
            f"different GPUs: {gpus[0]} and {gpus[1]} (--allow-different-gpu compares them all the same)"
        )
    for name in _both(old, new):
        a, b = _case(old, name), _case(new, name)
        if a and b and (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
            raise RecordError(f"case {name}: not the same problem in both records ({a.shape} and {b.shape})")
