"""The float64 truth of a case's inputs, with what the error budget needs to know about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.cases import operators


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


def truth(problem: Any, inputs: Any) -> Truth:
    """Evaluate the operator's oracle on tensors of any device, dtype and layout. Takes seconds at GPU sizes."""
    return operators.of(problem).truth(problem, inputs)


def truth_gradients(problem: Any, inputs: Any, grad: Tensor) -> dict[str, Truth]:
    """Gradients of sum(grad * out), by the names of the arguments that the call has.

    Takes about twice the time of `truth`.
    """
    return operators.of(problem).gradients(problem, inputs, grad)


def largest(values: Any) -> float:
    """Largest finite magnitude, at least 1."""
    values = np.asarray(values)
    return float(np.abs(values).max(initial=1, where=np.isfinite(values)))


def dtype_of(x: Tensor) -> str:
    """The dtype's name without "torch."."""
    return str(x.dtype).removeprefix("torch.")


def arrays(inputs: Any) -> Any:
    """The arguments with an array in place of each tensor."""
    return replace(inputs, **{name: numpy_of(value) for name, value in inputs.tensors().items()})


def numpy_of(value: Any) -> Any:
    """NumPy view or copy; bfloat16, which NumPy lacks, as float32 (exact). What is no tensor stays as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
