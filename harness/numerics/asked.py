"""The call of an example: its inputs and truth, the backend's answer, and a verdict on it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import convgap
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import compare
from harness.numerics.depth import depth as depth_of
from harness.numerics.example import Example, Miss
from harness.numerics.truth import Truth, truth


def ask(example: Example, inputs: Inputs, **options: Any) -> Tensor:
    """The backend's answer to the example's call with these inputs."""
    return inputs.call(convgap, backend=example.backend, **options)


def depth_of_call(example: Example, x: Tensor) -> int:
    """Longest chain of additions for this very x."""
    return depth_of(example.backend, example.case.problem, x.dtype, x.stride(), x.data_ptr())


def must(condition: bool, message: str) -> None:
    """Miss with this message unless the condition holds."""
    if not condition:
        raise Miss(message)


def judge(example: Example, answer: Tensor, x: Tensor, expected: Truth, **details: Any) -> None:
    """Miss unless the answer is within its budget; `details` take the place of the plan's."""
    plan = expected.plan(depth_of_call(example, x)) | details
    found = compare(answer, expected.expected, expected.magnitude, example.case.dtype, **plan)
    must(found.passed, found.message)


def inputs_of(example: Example) -> tuple[Inputs, Truth]:
    """The example's inputs and their truth."""
    inputs = make_inputs(example.case, example.device)
    return inputs, truth(example.case.problem, inputs)
