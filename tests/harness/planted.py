"""Entries planted in the bench that need nothing but torch, and a timer of no device."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from harness.cases.case import Case
from harness.cases.inputs import Inputs
from harness.entries.entry import Built, Entry, Unavailable
from harness.runs.timer import Settings, Timer
from harness.timing.floors import Card, Ceiling
from harness.timing.session import Stop
from reference import eager


def eagerly(factor: float = 1.0) -> Callable[[Case, Inputs], Built]:
    def build(case: Case, inputs: Inputs) -> Built:
        return Built(
            lambda: factor * inputs.call(eager),
            "torch eager",
            eager.depth(case.problem),
            eager.stores(case.problem) + 1,
        )

    return build


def unavailable(case: Case, inputs: Inputs) -> Built:
    raise Unavailable("not made for this case")


def broken(case: Case, inputs: Inputs) -> Built:
    raise RuntimeError("device on\nfire")


def three() -> dict[str, Entry]:
    """One right, one right and the reference, one absent."""
    return {
        "right": Entry("right", "planted", eagerly(), product=True, cpu=True),
        "eager-ieee": Entry("eager-ieee", "planted", eagerly(), cpu=True),
        "absent": Entry("absent", "planted", unavailable, cpu=True),
    }


class FakeStopwatch:
    """Gives each row the time its launch stands for."""

    def __init__(self, launch: Any, prepare: Any) -> None:
        self.launch, self.host_bound = launch, False
        self.pattern = itertools.cycle([0.999, 1.001])

    def __call__(self) -> float:
        self.launch()
        return 10.0 * next(self.pattern)


def fake_timer(captured: list[Any], throttled: int = 0, **changes: Any) -> Timer:
    """A timer of no device. captured: collects what was captured; throttled: so many first rounds are."""
    rounds = itertools.count()

    def capture(call: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        captured.append(call)
        out = call()
        return lambda: out.copy_(call()), out

    telemetry: Any = SimpleNamespace(
        read=lambda: None, throttle=lambda: ["power cap"] if next(rounds) < throttled else [], reason=""
    )
    fields: dict[str, Any] = {
        "settings": Settings({"cold": "read", "warm": None}, Stop(min_rounds=8, max_rounds=8)),
        "telemetry": telemetry,
        "prepares": {"cold": lambda: None, "warm": None},
        "ceilings": SimpleNamespace(
            read_us=lambda size, mode: 5.0,
            reasons={},
            large=lambda: [Ceiling("empty", 0, 3.0, "made up", "cold")],
        ),
        "card": Card("fake", 1000.0, 1 << 20, 1),
        "capture": capture,
        "stopwatch": FakeStopwatch,
        "extra_memory": lambda call: 64,
        "host_cost": lambda call, us: [3.0],
    }
    return Timer(**(fields | changes))
