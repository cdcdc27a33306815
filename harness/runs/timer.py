"""The right entries of a case timed: interleaved, in CUDA graphs where they can be, and checked again after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.cases import operators
from harness.cases.case import Case
from harness.entries import gradients
from harness.entries.entry import Built
from harness.errors import one_line
from harness.numerics.truth import Truth
from harness.records.record import CaseRecord, Result, Run
from harness.runs.check import Ready, judged
from harness.timing import first_call, session
from harness.timing.floors import RTX_4090, Card, Ceilings, card
from harness.timing.session import Flush, Stop
from harness.timing.telemetry import Telemetry


@dataclass(frozen=True)
class Settings:
    """How to time. modes: name -> what flushes the L2 before a sample, None for a warm L2."""

    modes: Mapping[str, Flush | None]
    stop: Stop = field(default_factory=Stop)
    seed: int = 0
    first_call: bool = False


@dataclass
class Timer:
    """Times the right entries of cases. All that touches a device is a field, so that a test can stand in.

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
        return cls(settings, telemetry, prepares, Ceilings(device, prepares), card(properties, telemetry.bandwidth()))

    def describe(self, run: Run) -> None:
        """Enter the card and its ceilings in the record."""
        run.card, run.ceilings = self.card, self.ceilings.large()
        missing = [f"floors by {name}: {why}" for name, why in self.ceilings.reasons.items()]
        missing += [f"clocks: {self.telemetry.reason}"] if self.telemetry.reason else []
        if missing:
            run.settings["missing"] = "; ".join(missing)

    def time_case(self, case: Case, record: CaseRecord, ready: list[Ready], expected: Truth) -> None:
        """Fill in the times of every right entry, the floors and the state of the card."""
        size = record.compulsory_bytes
        record.working_set_over_l2 = size / self.card.l2_bytes
        record.datasheet_us, record.rtx4090_us = self.card.floor_us(size), RTX_4090.floor_us(size)
        record.floor_us = {mode: self.ceilings.read_us(size, mode) for mode in self.settings.modes}
        record.before = self.telemetry.read()
        launches, outputs = self._launches(ready)
        for mode in self.settings.modes:
            self._time_mode(mode, record, launches)
        record.after = self.telemetry.read()
        for r in ready:
            self._recheck(case, r, launches, outputs, expected)
            self._beside(case, r)
        record.reference = next(
            (
                name
                for name in operators.of(case.problem).references
                if (result := record.result(name)) and any(result.samples.values())
            ),
            None,
        )

    def _launches(self, ready: list[Ready]) -> tuple[dict[str, tuple[Result, Callable[[], object]]], dict[str, Any]]:
        """What to time for each entry: its graph's replay, or the call itself where it cannot be captured."""
        launches: dict[str, tuple[Result, Callable[[], object]]] = {}
        outputs: dict[str, Any] = {}
        for r in ready:
            name, why_not = r.entry.name, r.entry.why_not
            if r.entry.graph:
                try:
                    with r.built.context():
                        replay, outputs[name] = self.capture(r.built.call)
                    launches[name] = (r.result, replay)
                    r.result.how = "graph"
                    continue
                except Exception as error:  # a capture can fail in as many ways as there are libraries
                    why_not = one_line(error)
            r.result.how = "events"
            r.result.notes.append(f"timed by events around plain calls, no graph: {why_not}")
            launches[name] = (r.result, _in_context(r.built))
        return launches, outputs

    def _time_mode(
        self, mode: str, record: CaseRecord, launches: Mapping[str, tuple[Result, Callable[[], object]]]
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
            result = launches[name][0]
            result.status = "timed"
            if watch.host_bound:
                result.notes.append(f"{mode}: the host could not stay ahead, so its time is in the samples")

    def _recheck(
        self,
        case: Case,
        r: Ready,
        launches: Mapping[str, tuple[Result, Callable[[], object]]],
        outputs: Mapping[str, Any],
        expected: Truth,
    ) -> None:
        """Poison the graph's output, replay once more, compare again: what was timed is what is right."""
        output = outputs.get(r.entry.name)
        if output is None:
            return
        for part in output if case.backward else (output,):
            part.fill_(torch.nan)
        launches[r.entry.name][1]()
        verdict = judged(gradients.joined(output), case, r.built, expected)
        if not verdict.passed:
            r.result.status, r.result.error, r.result.samples = "wrong", verdict.worst, {}
            r.result.reason = f"after timing, the graph's answer: {verdict.message}"

    def _beside(self, case: Case, r: Ready) -> None:
        """Host cost, memory and, if asked for, the first call."""
        summary = next(iter(r.result.samples.values()), [1.0])
        with r.built.context():
            r.result.extra_bytes = self.extra_memory(r.built.call)
            r.result.host_us = self.host_cost(r.built.call, sorted(summary)[len(summary) // 2])
        if self.settings.first_call and not case.backward and r.result.status == "timed":
            try:
                r.result.first_call_s = first_call.measure(case, r.entry.name)
            except first_call.FirstCallError as error:
                r.result.notes.append(str(error))


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
