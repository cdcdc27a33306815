"""What chain and tail have in common: one table of entries, one of calls, one of properties, one set of cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.cases.case import Case
from harness.cases.catalogue import SETS, TIMED
from harness.cases.inputs import Inputs
from harness.entries import entry
from harness.entries.entry import Entry
from harness.numerics.budget import smallest_normal
from harness.numerics.examine import BATCH_INVARIANT
from harness.numerics.example import Property
from harness.numerics.properties import PROPERTIES
from harness.numerics.truth import Truth, arrays, dtype_of, largest, numpy_of
from harness.operators.contract import Operator
from harness.timing import calls
from reference import eager, oracle


class Pooled(Operator):
    """An operator that ends in multiply and global average pool."""

    timed = TIMED
    references = ("eager-tf32", "eager-ieee")  # TF32 is what torch does unless told otherwise
    multiplied = True
    tf32 = True

    def oracle_depth(self, problem: Any) -> int:
        """Longest chain of additions in the float64 oracle."""
        raise NotImplementedError

    def floor(self, problem: Any, inputs: Any) -> Any:
        """What flushing subnormals may cost an output, times the multiplier, in units of two smallest normal numbers.

        Each input and each partial sum may lose up to that number, hence the factor 2. A factor below 1 counts as 1.
        """
        raise NotImplementedError

    def truth(self, problem: Any, inputs: Any) -> Truth:
        """By the NumPy oracle."""
        given = arrays(inputs)
        floor = 2 * smallest_normal(dtype_of(inputs.x)) * (largest(given.multiplier) + 1)
        return Truth(
            given.call(oracle),
            given.call(oracle, absolute=True),
            floor * (self.floor(problem, given) + 1),
            self.oracle_depth(problem),
        )

    def stores(self, problem: Any) -> int:
        """Of the operator step by step."""
        return eager.stores(problem)

    def batch_invariant(self, backend: str) -> bool:
        """Of the kernels alone."""
        return backend in BATCH_INVARIANT

    def resized(self, problem: Any, number: int) -> Any:
        """An image of another height and another width."""
        return replace(problem, h=problem.h + number, w=problem.w + 2 * number)

    def entries(self) -> Mapping[str, Entry]:
        """The project's backends, PyTorch, torch.compile, the schedule that came first."""
        return entry.ENTRIES

    def callers(self) -> Mapping[str, Callable[[], calls.Caller]]:
        """The project's backends, PyTorch, torch.compile, torch.mean."""
        return calls.ENTRIES

    def unfit(self, name: str, device: torch.device) -> str:
        """By what convgap says of its backends."""
        return calls.unfit(name, device)

    def properties(self) -> Mapping[str, Property]:
        """Those that linear operators have."""
        return PROPERTIES


def cases_of(sizes: type) -> dict[str, tuple[Case, ...]]:
    """The catalogue's cases with such sizes, by set."""
    return {name: tuple(case for case in group if type(case.problem) is sizes) for name, group in SETS.items()}


def gradient_truths(
    names: tuple[str, ...], values: Any, magnitudes: Any, terms: int, inputs: Inputs, grad: Tensor
) -> dict[str, Truth]:
    """The truth of each gradient that there is. terms: of the longest sum; the plane's are added here."""
    terms += inputs.x.shape[2] * inputs.x.shape[3]
    # An upper bound of what flushing costs: every term of the longest sum is lost, times the largest factors.
    given = (inputs.x, inputs.weight, inputs.bias, inputs.multiplier, grad)
    factors = prod(largest(numpy_of(value)) for value in given if value is not None)
    floor = np.asarray(2 * smallest_normal(dtype_of(inputs.x)) * terms * factors, dtype=np.float64)
    return {
        name: Truth(value, magnitude, floor, oracle.depth(terms, terms))
        for name, value, magnitude in zip(names, values, magnitudes, strict=True)
        if value is not None and magnitude is not None
    }
