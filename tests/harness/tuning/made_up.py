"""A bench of no device: kernels are interpreted, and a launch takes as long as the constants that it was built with
say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from harness.cases.case import Case
from harness.tuning import sweep
from harness.tuning.trial import Bench, Subject
from reference.problem import Tail

CPU = torch.device("cpu")
CASE = Case("tail/a", Tail(1, 2, 40, 40), "larger than a small plane, and small enough to interpret")
OTHER = Case("tail/b", Tail(1, 3, 36, 44), "another")
FEW = {"GAP_REGISTERS": (32, 64, 128), "PART_WARPS": (4, 8)}
"""Constants of Triton that change the launches of both."""

Times = Callable[[Mapping[str, int], Tensor, float], float]
"""(constants, output, seconds on the clock) -> us of a launch."""


@dataclass
class Made:
    """What a capture leaves: a replay that knows its time."""

    answer: Tensor
    out: Tensor
    us: Callable[[], float]

    def __call__(self) -> None:
        self.out.copy_(self.answer)


@dataclass
class MadeUp:
    """times: of a launch. building: seconds that a capture takes. wrong: constants whose answers are off. broken:
    constants whose capture fails."""

    times: Times
    building: float = 1.0
    wrong: Mapping[str, int] = field(default_factory=dict)
    broken: Mapping[str, int] = field(default_factory=dict)
    now: float = 0.0
    timed: list[float] = field(default_factory=list)

    def capture(self, call: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        self.now += self.building
        constants = sweep.shipped("triton")
        if any(constants[name] == value for name, value in self.broken.items()):
            raise RuntimeError("no room for\nits registers")
        answer = call()
        if any(constants[name] == value for name, value in self.wrong.items()):
            answer = answer * 1.01
        made = Made(answer, answer.clone(), lambda: self.times(constants, answer, self.now))
        return made, made.out

    def stopwatch(self, replay: Any) -> Callable[[], float]:
        noise = cycle([0.999, 1.0, 1.001])

        def sample() -> float:
            us = replay.us() * next(noise)
            self.now += 1e-3
            self.timed.append(us)
            return us

        return sample

    def bench(self) -> Bench:
        return Bench(CPU, self.capture, self.stopwatch, lambda launch: (40, 0), lambda: self.now, list)


def subjects(*cases: Case) -> list[Subject]:
    return [Subject.of(case, CPU) for case in cases]
