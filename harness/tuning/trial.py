"""One setting of launch constants on one case: built, held against the truth, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from convgap.probe import kernel_set
from harness.cases.case import Case
from harness.cases.inputs import Inputs, make_inputs
from harness.errors import one_line
from harness.numerics.budget import compare
from harness.numerics.depth import depth
from harness.numerics.truth import Truth, truth
from harness.tuning.sweep import Call, Values, constants_set, prepared
from reference.problem import Chain
from runtime import call as calls
from runtime import private
from runtime.prepared import Prepared, Unlaunchable, accumulator

CORRECT = "correct"
"""The setting gives right answers. Any other word says what is in the way, in the terms of the T4 format."""


@dataclass(frozen=True)
class Subject:
    """A case with its tensors and their truth, both made once for all settings."""

    case: Case
    inputs: Inputs
    expected: Truth
    call: Call

    @classmethod
    def of(cls, case: Case, device: torch.device) -> Subject:
        """The case on a device."""
        inputs = make_inputs(case, device)
        x = inputs.x
        given = isinstance(inputs.multiplier, Tensor)
        call = Call(case.problem, x.stride(), x.dtype, x.data_ptr() % 16, given)
        return cls(case, inputs, truth(case.problem, inputs), call)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a setting. registers, local: of a thread; local in bytes, which is where spilled registers are."""

    name: str
    registers: int
    local: int


@dataclass
class Trial:
    """What a setting gave on a case. samples: us per call, in the order of rounds. compile_ms, validate_ms: what it
    took to load its kernels, and to call them once and compare. error: worst error in units of the budget."""

    backend: str
    case: str
    values: dict[str, int]
    invalidity: str = CORRECT
    reason: str = ""
    error: float | None = None
    compile_ms: float = 0.0
    validate_ms: float = 0.0
    kernels: list[Kernel] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    when: str = ""

    @property
    def name(self) -> str:
        """The setting in words."""
        return ", ".join(f"{name} {value}" for name, value in self.values.items()) or "as shipped"


Replay = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """All that touches a device or a clock, so that a test can stand in.

    capture: of a call, as harness.timing.session.capture. stopwatch: takes samples of a launch, in us. resources: of a
    launch, (registers, bytes of local memory) of a thread. clock: seconds. mark: what disturbs the card now.
    """

    device: torch.device
    capture: Callable[[Callable[[], Tensor]], tuple[Replay, Any]]
    stopwatch: Callable[[Replay], Callable[[], float]]
    resources: Callable[[Any], tuple[int, int]]
    clock: Callable[[], float]
    mark: Callable[[], list[str]]


def attempt(bench: Bench, subject: Subject, backend: str, values: Values) -> tuple[Trial, Replay | None]:
    """Build the setting, call it once and compare; what to time is None where it is not right."""
    trial = Trial(backend, subject.case.name, dict(values), when=datetime.now(UTC).isoformat(timespec="seconds"))
    failed = "constraints"
    try:
        with constants_set(backend, values):
            made = prepared(backend, subject.call)
            failed = "compile"
            _load(bench, trial, made)
            failed = "runtime"
            start = bench.clock()
            replay, out = bench.capture(lambda: direct(backend, subject))
            # What is timed is what is judged: the graph's own answer, where it was NaN before.
            out.fill_(torch.nan)
            replay()
            _judge(trial, subject, out)
            trial.validate_ms = 1e3 * (bench.clock() - start)
    except Unlaunchable as error:
        trial.invalidity, trial.reason = "constraints", one_line(error)
    except Exception as error:  # whatever a setting dies of, the others are tried
        trial.invalidity, trial.reason = failed, one_line(error)
    else:
        if trial.invalidity == CORRECT:
            return trial, replay
    return trial, None


def _load(bench: Bench, trial: Trial, made: tuple[Prepared, ...]) -> None:
    start = bench.clock()
    for launch in (p.launch for p in made):
        launch.load(bench.device)
    trial.compile_ms = 1e3 * (bench.clock() - start)
    trial.kernels = [Kernel(p.launch.kernel, *bench.resources(p.launch)) for p in made]


def direct(backend: str, subject: Subject) -> Tensor:
    """The call by the kernel set's own launches: the native launcher remembers those of a call that it knows."""
    inputs, kernels = subject.inputs, kernel_set(backend)
    scale, given = 1.0, None
    if isinstance(inputs.multiplier, Tensor):
        n, c = subject.case.problem.out_shape[:2]
        given = inputs.multiplier.to(accumulator(inputs.x.dtype)).expand(n, c, 1, 1)
    else:
        scale = float(inputs.multiplier)
    stream = private.current_stream(inputs.x.device)
    set_: Any = kernels
    if not isinstance(subject.case.problem, Chain) or inputs.weight is None:
        return calls.tail(set_, inputs.x, scale, given, stream)
    operands = inputs.x, inputs.weight, inputs.bias
    return calls.chain(set_, subject.case.problem, *operands, scale, given, stream)


def _judge(trial: Trial, subject: Subject, out: Tensor) -> None:
    """Hold the answer to the budget of the setting's own order of additions; its constants have to be set."""
    call, expected = subject.call, subject.expected
    longest = depth(trial.backend, call.problem, call.dtype, call.stride, call.alignment)
    plan: Mapping[str, Any] = expected.plan(longest)
    verdict = compare(out, expected.expected, expected.magnitude, subject.case.dtype, **plan)
    trial.error = verdict.worst
    if not verdict.passed:
        trial.invalidity, trial.reason = "correctness", verdict.message
