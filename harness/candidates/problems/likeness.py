"""Whose answer is it? A wrong answer beside those of mistakes that any problem can meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.numerics.budget import Comparison
from harness.numerics.estimate import Estimate, Output

COARSE = 2.0**13
"""Budgets that TF32 or float16 in place of float32 cost at most: 13 bits."""


Answers = Sequence[tuple[str, Sequence[Tensor]]]
"""What was asked, and what the answer was."""


def likeness(
    out: Sequence[Tensor], expected: Estimate, verdict: Comparison, past: Answers, what: str
) -> tuple[str, str]:
    """("wrong" or "refused", reason) of a wrong answer, as specific as its numbers allow."""
    for asked, earlier in reversed(past):
        same = all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(out, earlier, strict=True))
        if same and any(a.numel() == 1 or a.unique().numel() > 1 for a in out):
            return "refused", f"cached: {what}: the answer is that of an earlier call ({asked})"
    like = ""
    for actual, output in zip(out, expected.outputs, strict=True):
        if tuple(actual.shape) == output.expected.shape and actual.numel():
            like = like or _like(actual.double().numpy(), output)
    if not like and 1 < verdict.worst < COARSE:
        like = "errs as a coarser format does (TF32, float16), or a small term is amiss: "
    return "wrong", f"wrong: {what}: {like}{verdict.message}"


def _like(got: np.ndarray, output: Output) -> str:
    right, judged = output.expected, ~output.apart
    if np.isnan(got).all() and not np.isnan(right).all():
        return "every element is NaN, as memory that nothing was written to: "
    if got.size > 1 and (got == got.flat[0]).all():
        return "every element is the same: "
    with np.errstate(all="ignore"):
        wrong = (np.abs(got - right) > output.bound) & judged
        ratio = (got / right)[wrong & (np.abs(right) > 2 * output.bound)]
        if ratio.size > 1 and np.ptp(ratio) < 0.1 * abs(np.median(ratio) - 1):
            return f"about {np.median(ratio):.7g} times what it should be, as by a wrong divisor: "
        difference = (got - right)[wrong]
    if wrong.ndim and wrong.shape[0] > 1 and got.size > wrong.shape[0]:
        rows = wrong.reshape(wrong.shape[0], -1).any(1)
        for row in np.flatnonzero(rows)[:8]:
            near = (np.allclose(got[row], other, rtol=1e-4, atol=1e-6) for other in right)
            others = [place for place, close in enumerate(near) if close and place != row]
            if others:
                return f"as if samples were swapped: sample {row} has the answer of sample {others[0]}: "
    if (got[wrong] == 0).all() and 0 < wrong.sum() < wrong.size:
        return f"{int(wrong.sum())} elements are 0, as if a tile were left out: "
    if difference.size > 1 and np.ptp(difference) < 1e-3 * np.abs(difference).max():
        return f"off by {np.median(difference):.4g} everywhere: "
    if (right[judged] >= 0).all() and (got[wrong] < 0).all():
        return "negative where it must not be, as if an activation were forgotten: "
    return ""
