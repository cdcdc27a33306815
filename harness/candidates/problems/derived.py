"""An operator of one's own as a problem to judge: its calls, hidden sizes, and the budget that its truth derives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from torch import Tensor, nn

from harness.candidates.problems import calls, questions
from harness.cases.case import Case
from harness.cases.inputs import make_inputs
from harness.cases.spelling import own_case, spell
from harness.numerics.budget import Comparison, compare
from harness.numerics.estimate import Estimate, Output
from harness.numerics.truth import Truth

HIDDEN = ("normal", "huge", "cancelling", "uniform")
"""Values of x for sizes that a candidate cannot know; those that the operator takes."""


@dataclass(frozen=True)
class OperatorProblem:
    """A call of an operator, where the judge asks for a file of KernelBench's form.

    ModelNew is built without arguments and called with the operator's tensors in their order.
    """

    operator: Any
    case: Case
    init: list[Any] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Its name where a file has its path."""
        return Path(spell(self.case.problem))

    @property
    def dtype(self) -> str:
        """The working precision."""
        return self.case.dtype

    def inputs(self, seed: int) -> list[Any]:
        """The operator's arguments that are tensors, on the CPU, drawn from a seed."""
        return list(make_inputs(replace(self.case, seed=seed), "cpu").tensors().values())

    @cached_property
    def given(self) -> Any:
        """Some arguments, of which those that are no tensors stay the same."""
        return make_inputs(self.case, "cpu")

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The operator's arguments with these tensors."""
        return replace(self.given, **dict(zip(self.given.tensors(), tensors, strict=True)))

    def model(self, seed: int) -> nn.Module:
        """The operator's reference, which has no state."""
        return _Reference(self)


class _Reference(nn.Module):
    def __init__(self, problem: OperatorProblem) -> None:
        super().__init__()
        ways = problem.operator.implementations
        names = [
            *problem.operator.references,
            *(name for name, way in ways.items() if not way.product),
            *ways,
        ]
        self.call, self.filled = ways[names[0]].call, problem.filled

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call(self.filled(tensors))


@dataclass(frozen=True)
class Derived(Estimate):
    """The budget of one call, in the place of an estimated one. plan: depth and the like."""

    truth: Truth | None = None
    dtype: str = "float32"
    plan: dict[str, Any] = field(default_factory=dict)

    def compare(self, found: Sequence[Tensor]) -> Comparison:
        """The only output beside the truth."""
        assert self.truth is not None
        (answer,) = found
        return compare(answer, self.truth.expected, self.truth.magnitude, self.dtype, **self.plan)


class Examination(calls.Examination):
    """Puts a candidate to calls of an operator."""

    problem: Any

    def estimate(self, x: list[Any]) -> Estimate:
        """Truth and budget for these arguments: of the operator as written, for the file may be anyone's."""
        operator, case = self.problem.operator, self.problem.case
        truth = operator.truth(case.problem, self.problem.filled(x))
        depth = self.rules.chain or operator.depth(case.problem)
        plan = truth.plan(depth, stores=operator.stores(case.problem))
        nowhere = np.zeros(truth.expected.shape, dtype=bool)
        output = Output(truth.expected, truth.magnitude, nowhere, case.dtype)
        return Derived((output,), truth=truth, dtype=case.dtype, plan=plan)


def main_problem(operator: Any, *, gpu: bool) -> OperatorProblem:
    """The operator's first case that is about speed, at the size that fits the machine."""
    cases = [case for name in operator.timed for case in operator.cases.get(name, ())]
    case = (cases or [case for group in operator.cases.values() for case in group])[0]
    return OperatorProblem(operator, case if gpu else case.small())


def hidden(operator: Any, seed: int) -> Iterator[OperatorProblem]:
    """Sizes drawn from a seed that a candidate never sees, of so many samples that Inf and NaN have one each."""
    rng = Random(seed)
    for values in HIDDEN:
        if values in operator.values:
            problem = operator.batched(operator.draw(rng), rng.randint(4, 6))
            yield OperatorProblem(operator, replace(own_case(problem, "drawn"), values=values))


def run(exam: Examination) -> None:
    """All questions about hidden sizes, then about the operator's own case, which may be timed; Found at a fault."""
    own = exam.problem
    for problem in (*hidden(own.operator, exam.seed), own):
        exam.problem = problem
        questions.run(exam)
