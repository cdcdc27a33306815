"""Everything an implementation must show on one case; harness/numerics/budget.py asks the first question only.

1. The answer is inside its budget, though the call before had other data and every output starts as NaN.
2. Nothing outside the buffers was read into it (it would be NaN) or written.
3. The inputs are as they were.
4. A second call gives the same bits.
5. The last sample alone gives the bits it has in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.cases.inputs import Arguments
from harness.numerics.budget import compare
from harness.numerics.guards import Guards, surrounded, zeros_like
from harness.numerics.truth import Truth

Call = Callable[[Any], Tensor]
Given = TypeVar("Given", bound=Arguments)

BATCH_INVARIANT = ("triton", "cupy")
"""Backends that promise 5. Plain torch does not: it splits its sums by how many there are."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Verdict:
    """`units` is the largest error in budgets, inf where what is not finite is wrong. No `reason`: all is well."""

    passed: bool
    units: float
    reason: str
    answer: Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of shape, dtype and every bit, so that NaN equals itself and -0 is not 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    integer = _BITS[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def guarded(inputs: Given) -> Given:
    """The same arguments, each tensor surrounded by poison."""
    return replace(inputs, **{name: surrounded(value) for name, value in inputs.tensors().items()})


def samples(inputs: Given, first: int, count: int) -> Given:
    """The call on some samples of the batch, strides and alignment unchanged."""
    changes = {}
    multiplier = inputs.tensors().get("multiplier")
    if multiplier is not None and multiplier.dim() == 4 and multiplier.shape[0] > 1:
        changes["multiplier"] = multiplier[first : first + count]
    x = inputs.x[first : first + count]
    if x.data_ptr() % 16 != inputs.x.data_ptr() % 16:
        # Copied to where the batch starts: how wide a load may be depends on the address.
        x = surrounded(x, inputs.x)
    return replace(inputs, x=x, **changes)


def examine(
    call: Call,
    inputs: Arguments,
    expected: Truth,
    dtype: str,
    plan: Mapping[str, Any],
    *,
    batch_invariant: bool,
) -> Verdict:
    """Put `call` to every question until it fails one. plan: depth and other details of the budget.

    batch_invariant: whether the last question is asked.
    """
    given = guarded(inputs)
    with Guards() as guards:
        call(replace(given, x=zeros_like(inputs.x)))
        answer = call(given)
    found = compare(answer, expected.expected, expected.magnitude, dtype, **plan)

    def verdict(reason: str) -> Verdict:
        return Verdict(not reason, found.worst, reason, answer)

    if not found.passed:
        return verdict(found.message)
    if broken := guards.broken():
        return verdict(f"wrote outside its buffers: {broken[0]}")
    for name, before in inputs.tensors().items():
        if not same_bits(before, getattr(given, name)):
            return verdict(f"changed its argument {name}")
    with Guards():
        again = call(given)
    if not same_bits(answer, again):
        return verdict("a second call gives other bits")
    n = inputs.x.shape[0]
    if batch_invariant and n > 1:
        with Guards():
            alone = call(samples(given, n - 1, 1))
        if not same_bits(answer[n - 1 :], alone):
            return verdict("the last sample alone has other bits than in the batch")
    return verdict("")
