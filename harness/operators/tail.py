"""The tail: the mean over height and width of multiplier * y."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import convgap
from harness.cases.inputs import Draw, Inputs
from harness.numerics.truth import Truth, arrays, largest, numpy_of
from harness.operators.pooled import Pooled, cases_of, gradient_truths
from reference import oracle
from reference.problem import Tail


class TailOperator(Pooled):
    """multiply_gap."""

    name = "tail"
    sizes = Tail
    function = "multiply_gap"
    cases = cases_of(Tail)
    usage = "tail:N,C,H,W as in tail:16,128,256,256"

    def check(self, problem: Tail) -> None:
        """The operator itself is asked, with a tensor that has sizes and no memory."""
        convgap.multiply_gap(torch.empty(problem.in_shape, device="meta"), 1.0, backend="torch")

    def inputs(self, problem: Tail, draw: Draw) -> Inputs:
        """A multiplier within [-2, 2) where it is a tensor."""
        multiplier = draw.case.multiplier
        if multiplier is None:
            multiplier = draw.uniform(problem.c, 1, 1, bound=2)
        return Inputs(draw.x(problem.in_shape), None, None, multiplier, {})

    def oracle_depth(self, problem: Tail) -> int:
        """Of a mean."""
        return oracle.depth(0, problem.h * problem.w)

    def floor(self, problem: Tail, inputs: Any) -> Any:
        """A mean keeps what each of its terms loses."""
        return np.full((1, problem.c, 1, 1), largest(inputs.x))

    def gradients(self, problem: Tail, inputs: Inputs, grad: Tensor) -> dict[str, Truth]:
        """Of x and of the multiplier."""
        given, grad_ = arrays(inputs), numpy_of(grad)
        values, magnitudes = (
            oracle.multiply_gap_grad(given.x, given.multiplier, grad_, absolute=absolute) for absolute in (False, True)
        )
        return gradient_truths(("x", "multiplier"), values, magnitudes, problem.n * problem.c, inputs, grad)

    def depth(self, problem: Tail) -> int:
        """Of a plane's elements, one after the other."""
        return problem.h * problem.w

    def draw(self, rng: Random) -> Tail:
        """A small plane."""
        return Tail(rng.randint(1, 3), rng.randint(1, 9), rng.randint(1, 24), rng.randint(1, 24))


OPERATOR = TailOperator()
