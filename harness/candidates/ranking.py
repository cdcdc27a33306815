"""Times of accepted candidates, in the same rounds as the project's own entries and the framework's.

Each candidate is sampled in its own process, one sample a turn; nothing else runs on the card meanwhile. What it says
of time is held against two witnesses: the judge's wall clock over many calls, and the profiler. After timing x is
overwritten with data that nobody has seen, and the captured graph has to be right on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch

from harness.candidates import answers
from harness.candidates.checks import Examination
from harness.candidates.exam import Rules, received
from harness.candidates.judging import Judged
from harness.candidates.packing import spec, storage
from harness.candidates.trials import Trial
from harness.candidates.verdict import Check, Found
from harness.candidates.worker import Ended, Worker
from harness.cases import operators
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs
from harness.entries.entry import choose
from harness.numerics.budget import Comparison
from harness.runs.check import check_case
from harness.runs.timer import Settings, Timer
from harness.timing import session
from harness.timing.intervals import ratio_of_medians, summarise
from harness.timing.session import Stop

ROWS = ("triton", "cupy", "eager-tf32", "eager-ieee", "inductor")
MODES = {"cold": "read", "warm": None}
MANY = 200
LONGEST_US = 2e6  # of as many calls as the judge's own clock is held against
# Beyond these the process's events and the other two witnesses disagree: a factor, and us for what hangs on a launch.
DISAGREE = 1.5, 15.0
ATTEMPTS = 5  # at the wall clock, before they count as disagreeing


@dataclass
class Clocked:
    """A candidate on the card, ready to be sampled."""

    judged: Judged
    worker: Worker

    def ask(self, what: str, blobs: Any = (), **more: Any) -> tuple[dict[str, Any], list[bytearray]]:
        """A question about time to the candidate's process; Found for what it was seen doing."""
        answer, found = self.worker.ask("time", blobs, what=what, **more)
        if answer.get("findings"):
            raise Found("refused", str(answer["findings"][0]))
        return answer, found

    def capture(self, blobs: Any, **arguments: Any) -> None:
        """Have one call captured in a graph, where it can be."""
        answer, _ = self.ask("prepare", blobs, **arguments)
        self.judged.verdict.timing = {"how": answer["how"]}
        if answer["why"]:
            note = f"timed by events around plain calls, no graph: {answer['why']}"
            self.judged.verdict.notes.append(note)

    def unseen(self, seed: int) -> Comparison:
        """The captured call once more, on data drawn from `seed`, which nobody has seen before."""
        raise NotImplementedError


@dataclass
class Timed(Clocked):
    """On one of this project's own operators. inputs: the case's, on the CPU."""

    rules: Rules
    inputs: Inputs
    case: Case

    def unseen(self, seed: int) -> Comparison:
        """x overwritten in place, as in `Clocked`."""
        secret = self.inputs.x.normal_(generator=torch.Generator().manual_seed(seed))
        shape = self.case.problem.out_shape
        most = 4 * torch.Size(shape).numel()
        _, blobs = self.worker.ask("time", [storage(secret)], most=most, what="secret")
        out = received(blobs[0], torch.float32, shape)
        inputs = replace(self.inputs, x=secret)
        expected = answers.right(self.case.problem, inputs)
        return answers.judge(out, self.case.problem, inputs, expected, tf32=self.rules.tf32, chain=self.rules.chain)


def rank(judged: Sequence[Judged], *, seed: int, seconds: float) -> None:
    """Time the accepted among the candidates; their verdicts get `timing`, or a refusal. Needs a GPU."""
    device = torch.device("cuda", torch.cuda.current_device())
    timer = Timer.on(device, Settings(MODES, seed=seed))  # pyright: ignore[reportArgumentType]
    for operator in operators.BUILT_IN:
        chosen = [
            j
            for j in judged
            if j.verdict.verdict == "accepted" and j.examination and operator == j.candidate.operators[0]
        ]
        if chosen:
            (case,) = select(("headline",), op=operator, gpu=True)[:1]
            _rank(chosen, case, timer, Stop(width=0.01, min_rounds=30, max_rounds=200, budget_s=seconds))


def _rank(judged: list[Judged], case: Case, timer: Timer, stop: Stop) -> None:
    _, ready, _ = check_case(case, choose(list(ROWS), gpu=True), timer.ceilings.device, {})
    replays: dict[str, Callable[[], object]] = {}
    kept = []
    for row in ready:
        with row.built.context():
            replays[row.entry.name], out = session.capture(row.built.call)
        kept.append(out)
    size = case.problem.compulsory_bytes(4)
    compete(judged, lambda item: _prepare(item, case), replays, timer, stop, case.name, size)


def compete(
    judged: Sequence[Judged],
    prepare: Callable[[Judged], Clocked],
    replays: dict[str, Callable[[], object]],
    timer: Timer,
    stop: Stop,
    name: str,
    size: int,
) -> None:
    """Time candidates in the same rounds as `replays`; their verdicts get times, or a refusal.

    name: of what is timed. size: bytes that no call can do without.
    """
    timed: dict[str, Clocked] = {}
    for index, item in enumerate(judged):
        _guarded(item, lambda item=item, index=index: timed.update({f"candidate {index}": prepare(item)}))
    samples: dict[str, dict[str, list[float]]] = {}
    marks: list[str] = []
    for mode in MODES:
        meters: dict[str, Callable[[], float]] = {
            row: session.stopwatch(replay, timer.prepares[mode]) for row, replay in replays.items()
        }
        for row, item in timed.items():
            meters[row] = _meter(item, mode)
        rounds = session.interleave(
            meters, replace(stop, budget_s=stop.budget_s / len(MODES)), mark=timer.telemetry.throttle
        )
        samples[mode] = rounds.samples
        marks += [reason for mark in rounds.marks for reason in mark]
    for row, item in timed.items():
        if item.judged.verdict.verdict == "accepted":
            item.judged.verdict.timing = _summary(row, samples, timer, name, size, marks)
            _guarded(item.judged, lambda item=item: _witnesses(item, timer))


def _guarded(item: Judged, action: Callable[[], object]) -> None:
    """What goes wrong with one candidate's clock is that candidate's verdict."""
    try:
        action()
    except Found as found:
        item.verdict.verdict, item.verdict.reasons = found.verdict, [found.reason]
    except Ended as ended:
        item.verdict.verdict, item.verdict.reasons = ended.verdict, [ended.reason]


def _prepare(item: Judged, case: Case) -> Timed:
    """Build the case's problem in the candidate's process, with the case's own weights, and capture one call."""
    examination = item.examination
    assert isinstance(examination, Examination) and isinstance(case.multiplier, float)
    trial = Trial(f"timed {case.op}", case.problem, case.multiplier, case.seed)
    examination.build(trial)
    examination.set_weights(1)
    inputs = replace(trial.inputs(1, "uniform"), **examination.current.weights)
    found = Timed(item, examination.worker, examination.rules, inputs, case)
    found.capture([storage(inputs.x)], x=spec(inputs.x, "timed"))
    return found


def _meter(item: Clocked, mode: str) -> Callable[[], float]:
    def sample() -> float:
        if item.judged.verdict.verdict != "accepted":
            return 1.0
        value = float("nan")

        def ask() -> None:
            nonlocal value
            value = float(item.ask("sample", mode=mode)[0]["us"])

        _guarded(item.judged, ask)
        return value if value == value else 1.0

    return sample


def _summary(
    name: str,
    samples: dict[str, dict[str, list[float]]],
    timer: Timer,
    case: str,
    size: int,
    marks: list[str],
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "case": case,
        "gpu": timer.card.name,
        "how": "graph",
        "rows": {},
        "warm": {},
    }
    names = {name: "candidate"} | {row: row for row in samples["cold"] if not row.startswith("candidate")}
    for mode, key in (("cold", "rows"), ("warm", "warm")):
        for row, shown in names.items():
            summary = summarise(samples[mode][row])
            interval = summary.interval
            found[key][shown] = {
                "us": summary.median,
                "low": interval.low,
                "high": interval.high,
                "samples": summary.count,
            }
    own = samples["cold"][name]
    for row in names:
        if row != name:
            ratio = ratio_of_medians(samples["cold"][row], own, paired=True)
            found["rows"][row]["over_candidate"] = [ratio.low, ratio.high]
    found["reference"] = next((row for row in ("eager-tf32", "eager-ieee") if row in found["rows"]), None)
    found["floor_us"] = timer.ceilings.read_us(size, "cold")
    found["datasheet_floor_us"] = timer.card.floor_us(size)
    if found["floor_us"]:
        found["share_of_floor"] = found["floor_us"] / found["rows"]["candidate"]["us"]
    if marks:
        found["throttled"] = sorted(set(marks))
    return found


def _witnesses(item: Clocked, timer: Timer) -> None:
    """Floor, wall clock, profiler, and the graph on data that it has not seen."""
    verdict, timing = item.judged.verdict, item.judged.verdict.timing
    us = timing["rows"]["candidate"]["us"]
    lowest = timing["datasheet_floor_us"] or 0.8 * (timing["floor_us"] or 0.0)
    if us < lowest:
        raise Found("refused", f"impossible: {us:.1f} us, and to read its input alone takes {lowest:.1f} us")
    factor, more = DISAGREE
    wall = inf
    # Others on the card make a wall clock run long, for a while; no candidate can make it run short.
    for _ in range(ATTEMPTS):
        wall = min(wall, _wall(item, max(5, min(MANY, int(LONGEST_US / us)))))
        if wall <= factor * us + more:
            break
    else:
        raise Found("refused", f"timer: events say {us:.1f} us, the judge's own clock {wall:.1f} us a call")
    timing["wall_us"] = wall
    try:
        kernels = item.ask("kernels")[0]["kernels"]
    except Ended as ended:
        verdict.notes.append(f"no second witness: {ended.reason}")
    else:
        timing["kernels"] = kernels
        total = sum(kernel["us"] for kernel in kernels)
        if not kernels:
            raise Found("refused", "idle: the profiler saw no kernel in the calls that were timed")
        if total > factor * us + more:
            raise Found("refused", f"timer: events say {us:.1f} us, the profiler {total:.1f} us in its kernels")
    found = item.unseen(time.time_ns() % 2**31)
    verdict.checks.append(Check("after timing, on data not seen before", found.passed, found.message, found.worst))
    if not found.passed:
        raise Found("refused", f"graph: after timing, on data that it had not seen: {found.message}")


def _wall(item: Clocked, count: int) -> float:
    """us a call by the judge's clock: many calls with flushes, less as many flushes alone."""

    def seconds(call: bool) -> float:
        start = time.perf_counter()
        item.ask("many", count=count, flush=True, call=call)
        return time.perf_counter() - start

    seconds(True)
    return 1e6 * (min(seconds(True) for _ in range(3)) - min(seconds(False) for _ in range(3))) / count
