"""What a person waits for who calls the operator in eager mode: on the host, at a new size, in training.

Every call is timed beside eager torch, torch.compile and torch.mean in the same rounds, so that ratios mean something
whatever else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import convgap
import convgap.selection
from harness.cases import operators
from harness.cases.case import Case
from harness.cases.inputs import Inputs, make_inputs
from harness.cases.spelling import spell
from harness.entries.entry import TF32_OPERAND
from harness.errors import one_line
from harness.numerics.budget import compare
from harness.numerics.truth import truth
from harness.timing import first_call
from harness.timing.session import Stop, host_cost, interleave
from reference import eager

CALLS = {
    "host": "host time of an eager call",
    "wall": "wall time of eager calls, one after the other",
    "new size": "a call with a height and width that this process has not seen",
    "warmed size": "the same after convgap.warmup_sizes, for what is convgap's",
    "step host": "host time of a training step, forward and backward",
    "step wall": "wall time of training steps, one after the other",
    "step at a new size": "a training step with a height and width that this process has not seen",
    "step at a warmed size": "the same after convgap.warmup_sizes, for what is convgap's",
    "first call": "the first call of a process, imports excluded, nothing on disk",
    "warm first call": "the same with what an earlier process left on disk",
}
"""The kinds of call, each with what it is."""

FIRST = ("first call", "warm first call")
NEW = tuple(call for call in CALLS if call.endswith("size"))
MOST_NEW = 25
"""Sizes that one of these kinds of call meets at most."""
BASES = ("eager", "mean")
"""What the others are shown as ratios to."""

CHUNK_US = 20_000.0
"""Wall time that the calls of one sample take together, about: 1,000 times what the clock resolves."""


@dataclass
class CallTimes:
    """One kind of call on one problem, of every entry in the same run.

    call: a key of CALLS. samples: us, by entry; element i of every list comes from round i. missing: why an entry has
    none.
    """

    call: str
    shape: str
    dtype: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


Caller = Callable[[Inputs], Tensor]


def _product(backend: str) -> Caller:
    return lambda inputs: inputs.call(convgap, backend=backend)


def _compiled(dynamic: bool | None) -> Caller:
    functions = SimpleNamespace(
        multiply_gap=torch.compile(eager.multiply_gap, dynamic=dynamic),
        conv_transpose2d_multiply_gap=torch.compile(eager.conv_transpose2d_multiply_gap, dynamic=dynamic),
    )
    return lambda inputs: inputs.call(functions)


ENTRIES: Mapping[str, Callable[[], Caller]] = {
    **{name: partial(_product, name) for name in convgap.BACKENDS},
    "eager": lambda: lambda inputs: inputs.call(eager),
    "compile": partial(_compiled, None),
    "compile-dynamic": partial(_compiled, True),
    "mean": lambda: lambda inputs: inputs.x.mean((2, 3), keepdim=True),
}
"""What is called. `mean` is torch.mean on the input: one launch of one operator, the least that torch can do."""


def measure(case: Case, calls: list[str], names: list[str], device: torch.device, stop: Stop) -> Iterator[CallTimes]:
    """Times of each kind of call on the case, of the entries of those names."""
    torch.compiler.reset()
    ready: dict[str, Caller] = {}
    missing: dict[str, str] = {}
    for name in names:
        if reason := operators.of(case.problem).unfit(name, device):
            missing[name] = reason
            continue
        try:
            ready[name] = _checked(name, case, device)
        except Exception as error:  # whatever an entry dies of, the others are timed
            missing[name] = one_line(error)
    for call in calls:
        found = CallTimes(call, spell(case.problem), case.dtype, missing=dict(missing))
        if call in FIRST:
            for name in ready:
                _first(found, name, case)
        else:
            _rounds(found, ready, case, device, stop)
        yield found


def unfit(name: str, device: torch.device) -> str:
    """Why the entry's times would mean nothing on the device; empty if they mean something."""
    if name not in convgap.BACKENDS:
        return ""
    status = convgap.selection.status_of(name, device)
    if status.usable and device.type == "cpu" and name != "torch":
        return "interpreted without a GPU: its times mean nothing"
    return "" if status.usable else status.reason


def _checked(name: str, case: Case, device: torch.device) -> Caller:
    """The entry, called once; RuntimeError if its answer is outside the budget of any order of additions."""
    operator = operators.of(case.problem)
    caller, inputs = operator.callers()[name](), make_inputs(case, device)
    answer = caller(inputs)
    if name == "mean":
        return caller
    expected = truth(case.problem, inputs)
    torch_runs_it = operator.tf32 and name not in convgap.BACKENDS
    operand = TF32_OPERAND if torch_runs_it and inputs.x.is_cuda and case.dtype == "float32" else 0.0
    plan = expected.plan(operator.depth(case.problem), stores=operator.stores(case.problem), operand_error=operand)
    verdict = compare(answer, expected.expected, expected.magnitude, case.dtype, **plan)
    if not verdict.passed:
        raise RuntimeError(f"wrong: {verdict.message}")
    return caller


def _rounds(found: CallTimes, ready: Mapping[str, Caller], case: Case, device: torch.device, stop: Stop) -> None:
    """Interleaved samples of one kind of call; an entry that fails leaves the others to go on."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    meters: dict[str, Callable[[], float]] = {}
    for name, caller in ready.items():
        step = found.call.startswith("step")
        act: Act = _training(caller) if step else partial(partial, caller)
        try:
            if found.call in NEW:
                first = 1 + MOST_NEW * NEW.index(found.call)
                if "warmed" in found.call and name in convgap.BACKENDS:
                    _warm(caller, step, case, device)
                meters[name] = _new_sizes(act, case, device, wait, first)
            else:
                meters[name] = _known_size(act, case, device, wait, found.call.endswith("host"))
        except Exception as error:
            found.missing[name] = one_line(error)
    if found.call in NEW:
        # A size is new once: a compiler's seconds come with every sample.
        stop = replace(stop, min_rounds=min(stop.min_rounds, 8), max_rounds=min(stop.max_rounds, MOST_NEW))
    try:
        found.samples = interleave(meters, stop).samples
    except Exception as error:
        found.missing |= dict.fromkeys(meters, f"a round failed: {one_line(error)}")


Act = Callable[[Inputs], Callable[[], object]]
"""From inputs to what is timed."""


def _training(caller: Caller) -> Act:
    """Forward and backward, to gradients of every tensor argument."""

    def act(inputs: Inputs) -> Callable[[], object]:
        tracked, leaves = inputs.tracked()
        wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
        return lambda: torch.autograd.grad(caller(tracked).sum(), wanted, allow_unused=True)

    return act


def _known_size(
    act: Act, case: Case, device: torch.device, wait: Callable[[], object], host: bool
) -> Callable[[], float]:
    """Meter of calls of one size: host time, or wall time of calls one after the other."""
    call = act(make_inputs(case, device))

    def wall(calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return 1e6 * (time.perf_counter() - start) / calls

    for _ in range(3):
        call()
    once = wall(3)
    if host:
        return lambda: host_cost(call, once, synchronize=wait, chunks=1)[0]
    calls = max(1, min(1000, int(CHUNK_US / once)))
    return lambda: wall(calls)


def _resized(case: Case, number: int) -> Case:
    """The case with another height and width for each number."""
    return replace(case, problem=operators.of(case.problem).resized(case.problem, number))


def _warm(caller: Caller, step: bool, case: Case, device: torch.device) -> None:
    """Have all compiled that calls, or training steps, of the sizes to come need."""
    inputs = make_inputs(case, device)
    if step:
        inputs, _ = inputs.tracked()
    here, last = case.problem, _resized(case, MOST_NEW * len(NEW)).problem
    convgap.warmup_sizes(range(here.h, last.h + 1), range(here.w, last.w + 1), caller, inputs)


def _new_sizes(
    act: Act, case: Case, device: torch.device, wait: Callable[[], object], first: int
) -> Callable[[], float]:
    """Meter of calls of which each has another height and width, after one call of the case's own size."""
    act(make_inputs(case, device))()
    numbers = count(first)

    def meter() -> float:
        call = act(make_inputs(_resized(case, next(numbers)), device))
        wait()
        start = time.perf_counter()
        call()
        wait()
        return 1e6 * (time.perf_counter() - start)

    return meter


def _first(found: CallTimes, name: str, case: Case) -> None:
    """One sample: the first call in a process of its own. Both kinds are measured together, and kept for the other."""
    try:
        seconds = _first_calls(name, case)
    except first_call.FirstCallError as error:
        found.missing[name] = str(error)
        return
    state = "empty cache" if found.call == FIRST[0] else "warm cache"
    found.samples[name] = [1e6 * seconds[state]]


_known_first_calls: dict[Any, dict[str, float]] = {}


def _first_calls(name: str, case: Case) -> dict[str, float]:
    key = name, case
    if key not in _known_first_calls:
        _known_first_calls[key] = first_call.measure(case, name)
    return _known_first_calls[key]
