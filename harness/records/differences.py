"""Two records side by side: faster, slower, same or ambiguous, with the interval behind each word."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import Any, Literal

from harness.records.as_json import RecordError
from harness.records.record import CaseRecord, Result, Run
from harness.timing.intervals import Interval, ratio_of_medians, summarise

Verdict = Literal["faster", "slower", "same", "ambiguous", "broken", "repaired", "gone", "new"]

EFFECT = 0.03  # drift of clocks and placement of memory move a median by 1 to 2 % from process to process
RESOLUTION_US = 0.5  # of a CUDA event, as its documentation gives it: less than that is no difference
FEWEST = 6  # samples: with fewer there is no 95 % interval of a median


@dataclass(frozen=True)
class Change:
    """One entry of both records in one mode. ratio: new median over old. old_us, new_us: medians, nan without any."""

    case: str
    entry: str
    mode: str
    verdict: Verdict
    ratio: Interval
    old_us: float
    new_us: float

    @property
    def regression(self) -> bool:
        """Slower, or one that gave the right answer before and gives it no more."""
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
    """Every (case, entry, mode) that either record timed, in the new record's order, then what is gone; then calls."""
    changes = []
    for case in _both(old, new):
        before, after = _case(old, case), _case(new, case)
        for entry in dict.fromkeys(r.entry for c in (after, before) if c for r in c.results):
            a, b = before and before.result(entry), after and after.result(entry)
            modes = dict.fromkeys(mode for r in (b, a) if r for mode in r.samples if r.samples[mode])
            changes += [
                _change(case, entry, mode, _times(a, mode), _times(b, mode), effect, _failed(a), _failed(b))
                for mode in modes
            ]
    return changes + _calls(old, new, effect)


def _times(result: Result | None, mode: str) -> list[float]:
    return result.samples.get(mode, []) if result else []


def _failed(result: Result | None) -> bool:
    return result is not None and result.status in ("wrong", "unavailable")


def _calls(old: Run, new: Run, effect: float) -> list[Change]:
    before, after = ({(c.call, c.shape, c.dtype): c for c in run.calls} for run in (old, new))
    changes = []
    for key in dict.fromkeys([*after, *before]):
        a, b = before.get(key), after.get(key)
        for entry in dict.fromkeys(e for call in (b, a) if call for e in (*call.samples, *call.missing)):
            x, y = (call.samples.get(entry, []) if call else [] for call in (a, b))
            failed, fails = (bool(call and entry in call.missing) for call in (a, b))
            if x or y:
                changes.append(_change(f"{key[1]}, {key[2]}", entry, key[0], x, y, effect, failed, fails))
    return changes


def _both(old: Run, new: Run) -> list[str]:
    return list(dict.fromkeys(case.name for run in (new, old) for case in run.cases))


def _case(run: Run, name: str) -> CaseRecord | None:
    return next((case for case in run.cases if case.name == name), None)


def _change(
    case: str,
    entry: str,
    mode: str,
    old: list[float],
    new: list[float],
    effect: float,
    failed_before: bool,
    fails_now: bool,
) -> Change:
    old_us, new_us = (summarise(samples).median if samples else nan for samples in (old, new))
    if old and new:
        verdict, ratio = compare_samples(old, new, effect)
    else:
        ratio = Interval(nan, nan)
        verdict = ("broken" if fails_now else "gone") if old else "repaired" if failed_before else "new"
    return Change(case, entry, mode, verdict, ratio, old_us, new_us)


def require_comparable(old: Run, new: Run, *, allow_different_gpu: bool) -> None:
    """RecordError unless both are whole runs, of one kind of GPU (or that is allowed), on the same problems."""
    for which, run in (("old", old), ("new", new)):
        if not run.finished:
            raise RecordError(f"the {which} record is of a run that was interrupted: it says nothing of the rest")
        if not run.cases and not run.calls:
            raise RecordError(f"the {which} record holds no case")
    gpus = old.environment.gpu, new.environment.gpu
    if gpus[0] != gpus[1] and not allow_different_gpu:
        raise RecordError(f"different GPUs: {gpus[0]} and {gpus[1]} (--allow-different-gpu compares them all the same)")
    for name in _both(old, new):
        a, b = _case(old, name), _case(new, name)
        if a and b and (odd := [what for what, x, y in _problems(a, b) if None not in (x, y) and x != y]):
            both = " and ".join(", ".join(f"{what} {getattr(case, what)}" for what in odd) for case in (a, b))
            raise RecordError(f"case {name}: not the same problem in both records ({both})")


def _problems(a: CaseRecord, b: CaseRecord) -> list[tuple[str, Any, Any]]:
    """All that says which problem a case is, of both. What an older record does not say is None."""
    names = ("op", "shape", "dtype", "layout", "values", "multiplier", "seed")
    return [(name, getattr(a, name), getattr(b, name)) for name in names]


def require_overlap(changes: list[Change]) -> None:
    """RecordError unless something was timed in both records: the absence of regressions would mean nothing."""
    if not changes:
        raise RecordError("neither record holds a timed entry")
    if all(change.verdict in ("gone", "new", "repaired") for change in changes):
        raise RecordError("the records have no timed entry in common")
