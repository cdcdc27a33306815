"""The float64 truth of a case's inputs, with what the error budget needs to know about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.cases.inputs import Inputs
from harness.numerics.budget import smallest_normal
from reference import eager, oracle
from reference.problem import Problem, Tail


@dataclass(frozen=True)
class Truth:
    """expected, magnitude: the operator on the inputs and on their absolute values.

    floor: what flushing subnormals to zero may cost; depth: the longest chain
    of additions in the oracle itself, which counts where the answers are float64 too.
    """

    expected: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    floor: NDArray[np.float64]
    depth: int

    def plan(self, depth: int, *, stores: int = 1, operand_error: float = 0.0) -> dict[str, Any]:
        """What harness.numerics.budget needs to know, beside expected and magnitude, of an answer.

        depth, stores: of the answer's own arithmetic. operand_error: relative error that each operand of
        a product may suffer before it is multiplied.
        """
        # Both operands of a product may be off: (1 + e)^2 - 1.
        operands = (1 + operand_error) ** 2 - 1
        floor = self.floor + operands * self.magnitude if operands else self.floor
        return {"depth": depth, "stores": stores, "floor": floor, "reference_depth": self.depth}


def truth(problem: Problem, inputs: Inputs) -> Truth:
    """Evaluate the oracle on tensors of any device, dtype and layout. Takes seconds at GPU sizes."""
    arrays = _arrays(inputs)
    tail = isinstance(problem, Tail)
    plane = (problem.h, problem.w) if tail else problem.conv_shape[2:]
    terms = 0 if tail else problem.c_in // problem.groups * eager.taps(problem) + 1
    return Truth(
        arrays.call(oracle),
        arrays.call(oracle, absolute=True),
        _floor(problem, arrays, _dtype(inputs.x)),
        oracle.depth(terms, plane[0] * plane[1]),
    )


def truth_gradients(problem: Problem, inputs: Inputs, grad: Tensor) -> dict[str, Truth]:
    """Gradients of sum(grad * out), grad [N, Cout, 1, 1], by the names of the fields of Inputs.

    weight and bias are there where the call has them. Takes about twice the time of `truth`.
    """
    arrays, grad_ = _arrays(inputs), _numpy(grad)
    if isinstance(problem, Tail):
        names = ("x", "multiplier")
        values, magnitudes = (
            oracle.multiply_gap_grad(arrays.x, arrays.multiplier, grad_, absolute=absolute)
            for absolute in (False, True)
        )
        terms = problem.n * problem.c
    else:
        names = ("x", "weight", "bias", "multiplier")
        values, magnitudes = (
            oracle.conv_transpose2d_multiply_gap_grad(
                arrays.x,
                arrays.weight,
                arrays.bias,
                arrays.multiplier,
                grad_,
                absolute=absolute,
                **inputs.sizes,
            )
            for absolute in (False, True)
        )
        terms = problem.c_out * problem.kernel[0] * problem.kernel[1] + problem.n * problem.c_in
    terms += problem.h * problem.w
    # An upper bound of what flushing costs: every term of the longest sum is lost, times the largest factors.
    factors = [arrays.x, arrays.weight, arrays.bias, arrays.multiplier, grad_]
    largest = [_largest(f) for f in factors if f is not None]
    floor = np.asarray(2 * smallest_normal(_dtype(inputs.x)) * terms * prod(largest), dtype=np.float64)
    return {
        name: Truth(value, magnitude, floor, oracle.depth(terms, terms))
        for name, value, magnitude in zip(names, values, magnitudes, strict=True)
        if value is not None and magnitude is not None
    }


def _floor(problem: Problem, arrays: Any, dtype: str) -> NDArray[np.float64]:
    """The absolute error of an output if every number below the smallest normal one becomes zero.

    Each input and each partial sum may lose up to that number, hence the factor 2. The loss is then multiplied by the
    weight and the multiplier, and added up over the taps; a factor below 1 counts as 1.
    """
    gain = np.full((1, problem.out_shape[1], 1, 1), _largest(arrays.x))
    if not isinstance(problem, Tail):
        # A tap meets an output element at most once, and an input element at most once.
        pooled = problem.out_size(0) * problem.out_size(1)
        share = min(problem.h * problem.w, pooled) / pooled
        weight = (np.abs(arrays.weight.astype(np.float64)) + 1).sum(axis=(2, 3))
        gain *= share * weight.reshape(problem.groups, -1, weight.shape[1]).sum(axis=1).reshape(gain.shape)
    return 2 * smallest_normal(dtype) * (_largest(arrays.multiplier) + 1) * (gain + 1)


def _largest(values: Any) -> float:
    """Largest finite magnitude, at least 1."""
    values = np.asarray(values)
    return float(np.abs(values).max(initial=1, where=np.isfinite(values)))


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _arrays(inputs: Inputs) -> Any:
    return replace(inputs, **{name: _numpy(value) for name, value in inputs.tensors().items()})


def _numpy(value: Tensor | float | None) -> Any:
    """NumPy view or copy; bfloat16, which NumPy lacks, as float32 (exact)."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
