"""What must hold for every call of an operator, whatever it computes, as checks of one example that raise Miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from harness.cases import operators
from harness.cases.inputs import make_inputs
from harness.numerics.asked import must
from harness.numerics.budget import compare
from harness.numerics.examine import examine, same_bits
from harness.numerics.example import FINITE_VALUES, Example, Property
from harness.numerics.guards import surrounded
from harness.numerics.truth import Truth


def right(example: Example) -> None:
    """Every question of harness/numerics/examine.py."""
    operator, inputs, expected = _asked(example)
    verdict = examine(
        lambda given: ask(example, given), inputs, expected, example.case.dtype, _plan(example, inputs, expected),
        batch_invariant=operator.batch_invariant(example.backend),
    )  # fmt: skip
    must(verdict.passed, verdict.reason)


def samples_permuted(example: Example) -> None:
    """Samples in another order: the same answers in that order."""
    operator, inputs, expected = _asked(example)
    order = Random(example.seed).sample(range(len(inputs.x)), len(inputs.x))
    permuted = replace(inputs, x=surrounded(inputs.x[order], inputs.x))
    answer = ask(example, permuted)
    if operator.batch_invariant(example.backend):
        must(same_bits(ask(example, inputs)[order], answer), f"samples in the order {order} get other bits")
    back = torch.empty_like(answer)
    back[order] = answer
    plan = _plan(example, permuted, expected)
    found = compare(back, expected.expected, expected.magnitude, example.case.dtype, **plan)
    must(found.passed, found.message)


def ask(example: Example, inputs: Any) -> Tensor:
    """The answer of the example's entry to these inputs."""
    built = _entry(example).build(example.case, inputs)
    with built.context():
        return built.call()


def _asked(example: Example) -> tuple[Any, Any, Truth]:
    operator, inputs = operators.of(example.case.problem), make_inputs(example.case, example.device)
    return operator, inputs, operator.truth(example.case.problem, inputs)


def _plan(example: Example, inputs: Any, expected: Truth) -> dict[str, Any]:
    built = _entry(example).build(example.case, inputs)
    return expected.plan(built.depth, stores=built.stores, operand_error=built.operand_error)


def _entry(example: Example) -> Any:
    return operators.of(example.case.problem).entries()[example.backend]


PROPERTIES: Mapping[str, Property] = {
    "right": Property(right, FINITE_VALUES, 3),
    "samples permuted": Property(samples_permuted, FINITE_VALUES),
}
