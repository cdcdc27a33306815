"""Which mutants the examination kills, and which of them the field's usual tolerances would let pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.cases.spelling import variant
from harness.mutants import catalogue as mutants
from harness.mutants.mutant import Mutant, NotApplicable
from harness.numerics.depth import depth as depth_of
from harness.numerics.examine import BATCH_INVARIANT, Call, Verdict, examine
from harness.numerics.truth import Truth, truth
from reference import eager

RIGHT = Mutant("(none)", "the right implementation", outside=lambda call, inputs: call(inputs))


def _error(answer: Tensor, expected: Truth) -> float:
    """Largest error where the truth is finite; inf where the answer is not."""
    finite = np.isfinite(expected.expected)
    difference = np.abs(answer.double().cpu().numpy()[finite] - expected.expected[finite])
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0))


@dataclass(frozen=True)
class Trial:
    """One case: its arguments, the truth, and what eager PyTorch makes of it in the same dtype."""

    case: Case
    inputs: Inputs
    expected: Truth
    eager: Tensor

    def plan(self, backend: str) -> dict[str, Any]:
        """What the budget of a backend's answer needs to know."""
        x = self.inputs.x
        depth = depth_of(backend, self.case.problem, x.dtype, x.stride(), x.data_ptr())
        return self.expected.plan(depth)


@cache
def trial(case: Case, device: str) -> Trial:
    """Inputs, truth and eager's answer of a case, made once."""
    inputs = make_inputs(case, device)
    with eager.ieee_float32():
        answer = inputs.call(eager)
    return Trial(case, inputs, truth(case.problem, inputs), answer)


def _close(tolerance: float) -> Callable[[Tensor, Trial], bool]:
    return lambda got, t: torch.allclose(got, t.eager, rtol=tolerance, atol=tolerance, equal_nan=True)


def _testing_defaults(got: Tensor, t: Trial) -> bool:
    try:
        torch.testing.assert_close(got, t.eager, equal_nan=True)
    except AssertionError:
        return False
    return True


def _twice_eager(got: Tensor, t: Trial) -> bool:
    expected = torch.from_numpy(t.expected.expected).to(got.device)
    wild = ~torch.isfinite(expected)
    if not torch.equal(got.double()[wild].nan_to_num(), expected[wild].nan_to_num()):
        return False
    return _error(got, t.expected) <= 2 * _error(t.eager, t.expected)


USUAL: Mapping[str, Callable[[Tensor, Trial], bool]] = {
    "allclose 1e-2": _close(1e-2),
    "allclose 1e-3": _close(1e-3),
    "allclose 1e-4": _close(1e-4),
    "assert_close": _testing_defaults,
    "2 x eager": _twice_eager,
}
"""What others ask of an answer `got` beside eager's: allclose with rtol = atol, torch.testing.assert_close
with its defaults for the dtype, or an error of at most twice eager's."""


@dataclass
class Score:
    """One mutant of one backend.

    killed_by: the case, empty if it survived. cases: how many it was run on. passes: whether a usual
    tolerance lets it pass on all of these; passes_there: on the case that killed it.
    """

    mutant: Mutant
    backend: str
    killed_by: str = ""
    reason: str = ""
    units: float = 0.0
    cases: int = 0
    passes: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(USUAL, True))
    passes_there: dict[str, bool] = field(default_factory=dict)

    @property
    def killed(self) -> bool:
        return bool(self.killed_by)


def cases(*, gpu: bool) -> list[Case]:
    """The headline, then the edge cases, small ones first, and some also in every dtype and layout.

    With a GPU the headline has its real size. The rest of the grid is about speed, and left out.
    """
    headline = [case if gpu else case.small() for case in select(("headline",))]
    edge = sorted(select(("edge",), gpu=False), key=lambda case: prod(case.problem.in_shape[1:]))
    dtypes = ("float16", "bfloat16", "float64")
    layouts = ("channels_last", "sliced", "cropped", "offset", "transposed")
    variants = [
        variant(case, dtype, layout)
        for case in select(("chain/edge/prime", "tail/edge/prime", "chain/edge/signed", "tail/edge/signed"))
        for dtype, layout in (*product(dtypes, [None]), *product([None], layouts))
    ]
    return [*headline, *edge, *variants]


def judge(call: Call, backend: str, t: Trial) -> tuple[Verdict, dict[str, bool]] | None:
    """The verdict, and what the usual tolerances say; None where the mutant changes nothing."""
    try:
        verdict = examine(
            call,
            t.inputs,
            t.expected,
            t.case.dtype,
            t.plan(backend),
            batch_invariant=backend in BATCH_INVARIANT,
        )
    except NotApplicable:
        return None
    answer = verdict.answer
    if answer.shape != t.eager.shape or answer.dtype != t.eager.dtype:
        return verdict, dict.fromkeys(USUAL, False)
    return verdict, {name: passes(answer, t) for name, passes in USUAL.items()}


def score(mutant: Mutant, backend: str, chosen: Iterable[Case], device: str, *, to_the_end: bool) -> Score:
    """Run a mutant case by case until it is killed, or `to_the_end`, for the sake of the usual tolerances."""
    result = Score(mutant, backend)
    call = mutant.call(backend)
    for case in chosen:
        t = trial(case, device)
        # No mutant changes an empty answer.
        found = None if t.eager.numel() == 0 and mutant is not RIGHT else judge(call, backend, t)
        if found is None:
            continue
        verdict, passes = found
        result.cases += 1
        result.passes = {name: result.passes[name] and passes[name] for name in passes}
        if not verdict.passed and not result.killed:
            result.killed_by, result.reason, result.units = case.name, verdict.reason, verdict.units
            result.passes_there = passes
            if not to_the_end:
                break
    return result


def scores(backends: Sequence[str], device: str) -> Iterator[Score]:
    """Every mutant of every backend; plain torch, which is quick, to the end of the cases."""
    chosen = cases(gpu=device != "cpu")
    for backend in backends:
        for mutant in (RIGHT, *mutants.of(backend)):
            whole = backend == "torch" or mutant is RIGHT
            yield score(mutant, backend, chosen, device, to_the_end=whole)


def table(found: Sequence[Score]) -> str:
    """Markdown table, one line a mutant.

    Under a usual tolerance: "all" if it lets the mutant pass on every case that was run, "there" if it
    lets pass at least the very answer that killed the mutant.
    """
    head = ["mutant", "backend", "what it does instead", "killed by", "how", "cases", *USUAL]
    lines = [head, ["---"] * len(head)]
    for s in found:
        how = f"{s.units:.3g} budgets" if s.units > 1 else s.reason
        verdict = [s.killed_by, how] if s.killed else ["survives", ""]
        marks = ["all" if s.passes[name] else "there" if s.passes_there.get(name) else "" for name in USUAL]
        lines.append([s.mutant.name, s.backend, s.mutant.wrong, *verdict, str(s.cases), *marks])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(found: Sequence[Score]) -> list[str]:
    """The score in words, backend by backend."""
    lines = []
    for backend in dict.fromkeys(s.backend for s in found):
        wrong = [s for s in found if s.backend == backend and s.mutant is not RIGHT]
        killed = sum(s.killed for s in wrong)
        passed = ", ".join(
            f"{name} {sum(s.passes_there.get(name, False) for s in wrong)} ({sum(s.passes[name] for s in wrong)})"
            for name in USUAL
        )
        lines.append(
            f"{backend}: {killed} of {len(wrong)} mutants killed. The usual tolerances let pass the answer "
            f"that kills (all answers): {passed}"
        )
        lines += [f"{backend}: SURVIVED: {s.mutant.name}" for s in wrong if not s.killed]
        refused = [s for s in found if s.backend == backend and s.mutant is RIGHT and s.killed]
        lines += [f"{backend}: the right implementation fails {s.killed_by}: {s.reason}" for s in refused]
    return lines
