"""One case after the other: build every row, check every answer, time the right ones."""

from __future__ import annotations

import gc
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.cases.catalogue import Case
from harness.cases.inputs import Inputs, make_inputs
from harness.cases.spelling import spell
from harness.entries import gradients
from harness.entries.entry import REFERENCES, Built, Peer, Unavailable, release
from harness.numerics.budget import Comparison, compare, matrix
from harness.numerics.truth import Truth, truth
from harness.records.record import CardRecord, CaseRecord, CeilingRecord, Clocks, Environment, Row, Run
from harness.timing import first_call, session
from harness.timing.floors import RTX_4090, Card, Ceilings, card
from harness.timing.session import Flush, Stop
from harness.timing.telemetry import Telemetry

PACKAGES = {
    "torch": ("torch",),
    "triton": ("triton",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "numpy": ("numpy",),
}


@dataclass(frozen=True)
class Settings:
    """How to time. modes: name -> what flushes the L2 before a sample, None for a warm L2."""

    modes: Mapping[str, Flush | None]
    stop: Stop = field(default_factory=Stop)
    seed: int = 0
    first_call: bool = False


@dataclass
class Ready:
    """A row whose answer was right, and the means to time it."""

    peer: Peer
    built: Built
    row: Row


def environment(device: torch.device, telemetry: Telemetry | None) -> Environment:
    """Everything about this process that the numbers may depend on."""
    found = Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        commit=_commit(),
        platform=platform.platform(),
        python=platform.python_version(),
        versions={name: version for name, names in PACKAGES.items() if (version := _version(names))},
    )
    if device.type == "cuda":
        found.gpu = torch.cuda.get_device_name(device)
        found.capability = "".join(map(str, torch.cuda.get_device_capability(device)))
        found.driver = telemetry.driver() if telemetry else None
        found.cuda = torch.version.cuda
    return found


def _version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _commit() -> str:
    """Commit of this source tree, marked if files differ from it; "" outside a git checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def check_case(
    case: Case, peers: Sequence[Peer], device: torch.device
) -> tuple[CaseRecord, list[Ready], Truth]:
    """Run every row once and hold its answer against the float64 truth, and every two against each other."""
    inputs = make_inputs(case, device)
    expected = (gradients.truth if case.backward else truth)(case.problem, inputs)
    record = CaseRecord(
        name=case.name,
        op="backward" if case.backward else case.op,
        shape=spell(case.problem),
        dtype=case.dtype,
        layout=case.layout,
        why=case.reason,
        compulsory_bytes=_compulsory_bytes(case, inputs),
    )
    ready: list[Ready] = []
    answers: dict[str, Tensor] = {}
    for peer in peers:
        row = Row(peer.name, "unavailable")
        record.rows.append(row)
        try:
            built = gradients.build(peer.name, case, inputs) if case.backward else peer.build(case, inputs)
            row.what = built.what
            _poison(case, inputs)
            with built.context():
                answer = gradients.joined(built.call())
            if answer.is_cuda:
                torch.cuda.synchronize()  # so that a kernel's crash is this row's and not a later one's
        except Unavailable as reason:
            row.reason = str(reason)
            continue
        except Exception as error:  # whatever a row dies of, the others go on
            row.status = "wrong" if peer.product else "unavailable"
            row.reason = _one_line(error)
            continue
        verdict = _compare(answer, case, built, expected)
        row.error = verdict.worst
        row.status = "right" if verdict.passed else "wrong"
        answers[peer.name] = answer
        if verdict.passed:
            ready.append(Ready(peer, built, row))
        else:
            row.reason = verdict.message
    if case.backward:
        # Every two right rows are within the sum of their budgets; for as many numbers as x has, that
        # is enough to know.
        return record, ready, expected
    plans = {r.peer.name: _plan(r.built, expected) for r in ready}
    right = {name: answers[name] for name in plans}
    for (a, b), worst in matrix(right, expected.expected, expected.magnitude, case.dtype, plans).items():
        record.pairwise.setdefault(a, {})[b] = worst
        record.pairwise.setdefault(b, {})[a] = worst
    return record, ready, expected


def _poison(case: Case, inputs: Inputs) -> None:
    """Leave NaN in the memory that the next output is likely to get.

    Otherwise a row that writes nothing could return what a right one has just left there.
    """
    x, weight = inputs.x, inputs.weight
    shapes = [case.problem.out_shape] * 4
    if case.backward and weight is not None:
        shapes += [x.shape, weight.shape]
    blocks = [torch.full(shape, torch.nan, dtype=x.dtype, device=x.device) for shape in shapes]
    del blocks


def _plan(built: Built, expected: Truth) -> dict[str, Any]:
    """What harness.numerics.budget.budget needs to know of a row."""
    return expected.plan(built.depth, stores=built.stores, operand_error=built.operand_error)


def _compare(answer: Tensor, case: Case, built: Built, expected: Truth) -> Comparison:
    return compare(answer, expected.expected, expected.magnitude, case.dtype, **_plan(built, expected))


def _compulsory_bytes(case: Case, inputs: Inputs) -> int:
    """The problem's bytes; for an expanded input the bytes that exist. Backward, with the band sums at hand:
    the gradient of x and, two times its size, the weight and its gradient."""
    if case.backward and inputs.weight is not None:
        return (inputs.x.numel() + 2 * inputs.weight.numel()) * inputs.x.element_size()
    size = case.problem.compulsory_bytes(inputs.x.element_size())
    return min(size, inputs.x.untyped_storage().nbytes()) if "expanded" in case.layout else size


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]}..."


@dataclass
class Timer:
    """Times the right rows of cases. All that touches a device is a field, so that a test can stand in.

    prepares: by mode, what is enqueued before a sample, None for a warm L2.
    """

    settings: Settings
    telemetry: Telemetry
    prepares: Mapping[str, Callable[[], object] | None]
    ceilings: Ceilings
    card: Card
    capture: Callable[[Callable[[], Any]], tuple[Callable[[], object], Any]] = session.capture
    stopwatch: Callable[..., session.Stopwatch] = session.stopwatch
    extra_memory: Callable[[Callable[[], object]], int] = session.extra_memory
    host_cost: Callable[[Callable[[], object], float], list[float]] = session.host_cost

    @classmethod
    def on(cls, device: torch.device, settings: Settings) -> Timer:
        """Timer of a CUDA device."""
        telemetry = Telemetry(device)
        prepares = {mode: flush and session.flusher(flush, device) for mode, flush in settings.modes.items()}
        properties = torch.cuda.get_device_properties(device)
        return cls(
            settings, telemetry, prepares, Ceilings(device, prepares), card(properties, telemetry.bandwidth())
        )

    def describe(self, run: Run) -> None:
        """Enter the card and its ceilings in the record."""
        c = self.card
        run.card = CardRecord(c.name, c.bandwidth, c.l2_bytes, c.sms, c.source)
        run.ceilings = [CeilingRecord(f.kind, f.size, f.us, f.gb_per_s, f.how) for f in self.ceilings.large()]
        for reason in filter(None, (self.telemetry.reason, self.ceilings.reason)):
            run.settings["missing"] = "; ".join(filter(None, (run.settings.get("missing"), reason)))

    def time_case(self, case: Case, record: CaseRecord, ready: list[Ready], expected: Truth) -> None:
        """Fill in the times of every right row, the floors and the state of the card."""
        size = record.compulsory_bytes
        record.working_set_over_l2 = size / self.card.l2_bytes
        record.datasheet_us, record.rtx4090_us = self.card.floor_us(size), RTX_4090.floor_us(size)
        record.floor_us = {mode: self.ceilings.read_us(size, mode) for mode in self.settings.modes}
        record.before = self._clocks()
        launches, outputs = self._launches(ready)
        for mode in self.settings.modes:
            self._time_mode(mode, record, launches)
        record.after = self._clocks()
        for r in ready:
            self._recheck(case, r, launches, outputs, expected)
            self._beside(case, r)
        record.reference = next(
            (name for name in REFERENCES if (row := record.row(name)) and any(row.samples.values())), None
        )

    def _launches(
        self, ready: list[Ready]
    ) -> tuple[dict[str, tuple[Row, Callable[[], object]]], dict[str, Any]]:
        """What to time for each row: its graph's replay, or the call itself where it cannot be captured."""
        launches: dict[str, tuple[Row, Callable[[], object]]] = {}
        outputs: dict[str, Any] = {}
        for r in ready:
            name, why_not = r.peer.name, r.peer.why_not
            if r.peer.graph:
                try:
                    with r.built.context():
                        replay, outputs[name] = self.capture(r.built.call)
                    launches[name] = (r.row, replay)
                    r.row.how = "graph"
                    continue
                except Exception as error:  # a capture can fail in as many ways as there are libraries
                    why_not = _one_line(error)
            r.row.how = "events"
            r.row.notes.append(f"timed by events around plain calls, no graph: {why_not}")
            launches[name] = (r.row, _in_context(r.built))
        return launches, outputs

    def _time_mode(
        self, mode: str, record: CaseRecord, launches: Mapping[str, tuple[Row, Callable[[], object]]]
    ) -> None:
        """Interleaved samples of one mode; once more if the card was throttled, all of them kept."""
        prepare = self.prepares[mode]
        watches = {name: self.stopwatch(launch, prepare) for name, (_, launch) in launches.items()}
        stop = replace(self.settings.stop, budget_s=self.settings.stop.budget_s / len(self.settings.modes))
        marks: list[list[str]] = []
        for _ in range(2):
            rounds = session.interleave(watches, stop, mark=self.telemetry.throttle, seed=self.settings.seed)
            for name, samples in rounds.samples.items():
                launches[name][0].samples.setdefault(mode, []).extend(samples)
            marks += rounds.marks
            record.ended[mode] = rounds.ended
            if not any(rounds.marks):
                break
        record.marks[mode] = marks
        if throttled := [reason for mark in marks for reason in mark]:
            count = sum(1 for mark in marks if mark)
            reasons = ", ".join(dict.fromkeys(throttled))
            record.flags.append(
                f"{mode}: throttled in {count} of {len(marks)} rounds ({reasons}); measured twice, all kept"
            )
        for name, watch in watches.items():
            row = launches[name][0]
            row.status = "timed"
            if watch.host_bound:
                row.notes.append(f"{mode}: the host could not stay ahead, so its time is in the samples")

    def _recheck(
        self,
        case: Case,
        r: Ready,
        launches: Mapping[str, tuple[Row, Callable[[], object]]],
        outputs: Mapping[str, Any],
        expected: Truth,
    ) -> None:
        """Poison the graph's output, replay once more, compare again: what was timed is what is right."""
        output = outputs.get(r.peer.name)
        if output is None:
            return
        for part in output if case.backward else (output,):
            part.fill_(torch.nan)
        launches[r.peer.name][1]()
        verdict = _compare(gradients.joined(output), case, r.built, expected)
        if not verdict.passed:
            r.row.status, r.row.error, r.row.samples = "wrong", verdict.worst, {}
            r.row.reason = f"after timing, the graph's answer: {verdict.message}"

    def _beside(self, case: Case, r: Ready) -> None:
        """Host cost, memory and, if asked for, the first call."""
        summary = next(iter(r.row.samples.values()), [1.0])
        with r.built.context():
            r.row.extra_bytes = self.extra_memory(r.built.call)
            r.row.host_us = self.host_cost(r.built.call, sorted(summary)[len(summary) // 2])
        if self.settings.first_call and not case.backward and r.row.status == "timed":
            try:
                r.row.first_call_s = first_call.measure(case, r.peer.name)
            except first_call.FirstCallError as error:
                r.row.notes.append(str(error))

    def _clocks(self) -> Clocks | None:
        reading = self.telemetry.read()
        return None if reading is None else Clocks(**asdict(reading))


def timer_for(device: torch.device, settings: Settings) -> Timer | None:
    """Timer of the device; None without a GPU, where an interpreter's time would mean nothing."""
    return Timer.on(device, settings) if device.type == "cuda" else None


def _in_context(built: Built) -> Callable[[], object]:
    if built.context is nullcontext:
        return built.call

    def call() -> Tensor:
        with built.context():
            return built.call()

    return call


def run_cases(
    run: Run,
    cases: Sequence[Case],
    peers: Sequence[Peer],
    device: torch.device,
    timer: Timer | None,
    done: Callable[[CaseRecord], object],
) -> None:
    """Check, and with a timer also time, each case; `done` is told of each finished one.

    Ctrl-C leaves the finished cases in the run and marks it unfinished.
    """
    run.finished = False
    try:
        for case in cases:
            record, ready, expected = check_case(case, peers, device)
            if timer is not None and ready:
                _time(timer, case, record, ready, expected)
            del ready
            run.cases.append(record)
            done(record)
            _free()
        run.finished = True
    except KeyboardInterrupt:
        _free()


def _time(timer: Timer, case: Case, record: CaseRecord, ready: list[Ready], expected: Truth) -> None:
    """Time the case; what goes wrong is flagged, its rows stay "right", and the other cases go on."""
    try:
        timer.time_case(case, record, ready, expected)
    except Exception as error:  # out of memory, mostly
        record.flags.append(f"timing failed: {_one_line(error)}")


def _free() -> None:
    """Give back what the case just done held: compiled code, graphs and their memory."""
    release()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
