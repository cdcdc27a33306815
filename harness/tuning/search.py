"""The search: every setting of each constant alone, then the best of all constants together, measured anew.

The fastest of many settings was lucky, in part: so what the first samples choose, fresh samples confirm, and only what
they confirm becomes a plan. All of it ends by a deadline; what was not reached says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from harness.timing.intervals import Interval, ratio_of_medians, summarise
from harness.timing.session import Stop, interleave
from harness.tuning.sweep import Values, candidates, constants_set, fingerprint, prepared
from harness.tuning.trial import CORRECT, Bench, Replay, Subject, Trial, attempt

EFFECT = 0.02
"""The least gain that a plan is worth: two processes differ by as much."""

SWEEPING = 0.8
"""Share of the time for the sweeps: what is measured anew is compiled already, and little."""

BUILDING = 0.8
"""Share of a sweep's time after which nothing more is built: the rest is for timing what there is."""

SWEEP = Stop(width=0.005, min_rounds=20, max_rounds=200)
CONFIRM = Stop(width=0.003, min_rounds=30, max_rounds=300)
"""When medians are known well enough: a quarter of EFFECT, and less where a plan hangs on it."""

ATTEMPTS = 3
"""Sets of constants that are confirmed at most: all that were better, then the best of them alone."""


@dataclass(frozen=True)
class Gain:
    """How many times faster than what is shipped, with the 95 % interval."""

    ratio: float
    interval: Interval

    @property
    def faster(self) -> bool:
        """Surely faster, and by enough to be worth it."""
        return self.interval.low > 1 and self.ratio >= 1 + EFFECT

    @property
    def slower(self) -> bool:
        """Surely slower."""
        return self.interval.high < 1


@dataclass
class Sweep:
    """One kernel set on one case. trials: the shipped constants first. throttled: rounds in which the card was."""

    backend: str
    case: str
    trials: list[Trial]
    rounds: int = 0
    throttled: int = 0

    def gain(self, trial: Trial) -> Gain | None:
        """Of a setting over the shipped constants, None if one of the two was not timed."""
        base = self.trials[0]
        if not trial.samples or not base.samples:
            return None
        ratio = summarise(base.samples).median / summarise(trial.samples).median
        return Gain(ratio, ratio_of_medians(base.samples, trial.samples, paired=True))

    def best(self) -> tuple[Trial, Gain] | None:
        """The fastest setting that was timed, None if nothing but the shipped constants was."""
        timed = [(t, gain) for t in self.trials[1:] if (gain := self.gain(t))]
        return max(timed, key=lambda pair: pair[1].ratio, default=None)


@dataclass
class Found:
    """All that was found. plans: by kernel set, the constants that were confirmed; empty where the shipped ones stay.
    confirmed: each set of constants that was measured anew, on each case where it changes something."""

    sweeps: list[Sweep] = field(default_factory=list)
    confirmed: list[Sweep] = field(default_factory=list)
    plans: dict[str, dict[str, int]] = field(default_factory=dict)


def search(
    bench: Bench,
    subjects: Sequence[Subject],
    backends: Sequence[str],
    seconds: float,
    tell: Callable[[str], object],
) -> Found:
    """Sweep every case with every kernel set, and confirm; `tell` is told of each step as it is done."""
    end = bench.clock() + seconds
    found = Found()
    swept = bench.clock() + SWEEPING * seconds
    jobs = [(name, subject, list(candidates(name, subject.call))) for name in backends for subject in subjects]
    left = sum(1 + len(settings) for _, _, settings in jobs)
    for backend, subject, settings in jobs:
        share = max(0.0, swept - bench.clock()) * (1 + len(settings)) / left
        sweep_ = sweep(bench, subject, backend, settings, bench.clock() + share)
        found.sweeps.append(sweep_)
        left -= 1 + len(settings)
        tell(f"{_said(sweep_)}; {max(0.0, end - bench.clock()):.0f} s left")
    for at, backend in enumerate(backends):
        until = bench.clock() + max(0.0, end - bench.clock()) / (len(backends) - at)
        sweeps = [sweep_ for sweep_ in found.sweeps if sweep_.backend == backend]
        found.plans[backend] = {}
        for values in proposals(sweeps):
            if bench.clock() >= until:
                break
            again = list(confirm(bench, subjects, backend, values, until))
            found.confirmed += again
            tell(f"{backend} with {_words(values)}: measured anew on {len(again)} cases")
            gains = [again_.gain(again_.trials[1]) for again_ in again]
            if all(g and not g.slower for g in gains) and any(g and g.faster for g in gains):
                found.plans[backend] = dict(values)
                break
    return found


def _words(values: Values) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _said(sweep_: Sweep) -> str:
    right = sum(trial.invalidity == CORRECT for trial in sweep_.trials)
    unreached = sum(trial.invalidity == "timeout" for trial in sweep_.trials)
    said = f"{sweep_.case} {sweep_.backend}: {right} of {len(sweep_.trials)} settings right, {sweep_.rounds} rounds"
    return said + (f", {unreached} not reached" if unreached else "")


def sweep(bench: Bench, subject: Subject, backend: str, settings: Sequence[dict[str, int]], until: float) -> Sweep:
    """Settings of one kernel set on one case, built one after the other and timed in turns."""
    start = bench.clock()
    building = start + BUILDING * (until - start)
    built = [attempt(bench, subject, backend, {})]
    for values in settings if built[0][1] else ():
        if bench.clock() < building:
            built.append(attempt(bench, subject, backend, values))
        else:
            late = Trial(backend, subject.case.name, values, "timeout", "the time was up before it")
            built.append((late, None))
    return _timed(bench, subject, backend, built, SWEEP, until)


def _timed(
    bench: Bench,
    subject: Subject,
    backend: str,
    built: Sequence[tuple[Trial, Replay | None]],
    stop: Stop,
    until: float,
) -> Sweep:
    meters = {str(i): bench.stopwatch(replay) for i, (_, replay) in enumerate(built) if replay}
    budget = max(0.0, until - bench.clock())
    stop = Stop(stop.width, stop.min_rounds, stop.max_rounds, budget)
    rounds = interleave(meters, stop, clock=bench.clock, mark=bench.mark)
    for i, samples in rounds.samples.items():
        built[int(i)][0].samples = samples
    throttled = sum(map(bool, rounds.marks))
    trials = [trial for trial, _ in built]
    return Sweep(backend, subject.case.name, trials, len(rounds.marks), throttled)


def proposals(sweeps: Sequence[Sweep]) -> Iterator[dict[str, int]]:
    """Constants of one kernel set to confirm: of each constant the best value, all together; then the best alone.

    A value is taken that is surely faster on one case at least and surely slower on none; the best of them is the one
    with the largest product of gains. A case that it does not change counts as 1.
    """
    gains: dict[tuple[str, int], list[Gain]] = {}
    refused: set[tuple[str, int]] = set()
    for sweep_ in sweeps:
        for trial in sweep_.trials[1:]:
            (setting,) = trial.values.items()
            gain = sweep_.gain(trial)
            if gain is not None:
                gains.setdefault(setting, []).append(gain)
            if gain is None or gain.slower:
                # Not reached, wrong or slower somewhere: what a plan sets has to be known everywhere.
                refused.add(setting)
    worth = {
        setting: prod(gain.ratio for gain in of)
        for setting, of in gains.items()
        if setting not in refused and any(gain.faster for gain in of)
    }
    best: dict[str, int] = {}
    ordered = sorted(worth, key=lambda setting: -worth[setting])
    for name, value in ordered:
        best.setdefault(name, value)
    if not best:
        return
    yield dict(best)
    if len(best) > 1:
        yield from ({name: value} for name, value in list(best.items())[: ATTEMPTS - 1])


def confirm(bench: Bench, subjects: Sequence[Subject], backend: str, values: Values, until: float) -> Iterator[Sweep]:
    """The constants against the shipped ones, built and timed anew, on each case where they change something."""
    changed = [subject for subject in subjects if _changes(backend, subject, values)]
    for at, subject in enumerate(changed):
        share = max(0.0, until - bench.clock()) / (len(changed) - at)
        mine = bench.clock() + share
        built = [attempt(bench, subject, backend, setting) for setting in ({}, values)]
        yield _timed(bench, subject, backend, built, CONFIRM, mine)


def _changes(backend: str, subject: Subject, values: Values) -> bool:
    before = fingerprint(prepared(backend, subject.call))
    with constants_set(backend, values):
        return fingerprint(prepared(backend, subject.call)) != before
