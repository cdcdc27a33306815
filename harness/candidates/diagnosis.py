"""Whose answer is it? A wrong answer beside those of known mistakes: stale, frozen, too coarse, or like a mutant's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.candidates import answers
from harness.cases import operators
from harness.cases.inputs import Inputs
from harness.mutants import catalogue
from harness.mutants.mutant import NotApplicable
from harness.numerics.budget import Comparison, compare
from harness.numerics.truth import Truth
from reference.problem import Chain, Problem

CROP = "as if the border crop were forgotten"
LIKE = 4.0  # budgets within which an answer resembles another
LARGE = 3_000_000  # elements of x from which on mutants are not tried: they take the literal way
COARSE = {"tf32": "TF32", "inputs-float16": "float16", "inputs-bfloat16": "bfloat16"}
ROUNDED = {"accumulator-float16": "float16", "accumulator-bfloat16": "bfloat16"}
ROUNDED |= {"answer-float16": "float16", "answer-bfloat16": "bfloat16"}
UNIT_FLOAT16 = 2.0**-11


@dataclass(frozen=True)
class Past:
    """What the model had before: answers, as (what was asked, slot, answer), and weights."""

    answers: list[tuple[str, str, Tensor]]
    weights: list[dict[str, Tensor]]
    problem: Problem


def diagnose(
    out: Tensor,
    problem: Problem,
    inputs: Inputs,
    expected: Truth,
    verdict: Comparison,
    past: Past,
    what: str,
    tf32: bool,
) -> tuple[str, str]:
    """("wrong" or "refused", reason) of a wrong answer, as specific as its numbers allow."""
    for asked, _, earlier in reversed(past.answers):
        if earlier.shape == out.shape and torch.equal(earlier, out) and earlier.unique().numel() > 1:
            return "refused", f"cached: {what}: the answer is that of an earlier call ({asked})"
    if out.shape != problem.out_shape or not isinstance(verdict.worst_index, tuple):
        return "wrong", f"wrong: {what}: {verdict.message}"
    for weights in past.weights:
        if weights and _like(out, answers.right(problem, replace(inputs, **weights)), expected, inputs, problem):
            return "refused", (
                f"frozen: {what}: the answer is that of weights it had before: it does not follow their change"
            )
    if bool(torch.isnan(out).all()) and not np.isnan(expected.expected).all():
        return "wrong", f"wrong: {what}: every element is NaN, as memory that nothing was written to"
    name, likeness = _resembles(out, problem, inputs, expected)
    if coarse := COARSE.get(name) or ROUNDED.get(name):
        return "refused", f"precision: {what}: computed in {coarse}, for {inputs.x.dtype} ({verdict.message})"
    if likeness:
        return "wrong", f"wrong: {what}: {likeness}: {verdict.message}"
    if _coarse(out, expected, inputs):
        return (
            "refused",
            f"precision: {what}: errs as arithmetic in a half precision does ({verdict.message})",
        )
    return "wrong", f"wrong: {what}: {verdict.message}"


def _like(out: Tensor, other: Truth | np.ndarray, expected: Truth, inputs: Inputs, problem: Problem) -> float:
    """Budgets between an answer and another, if less than LIKE and the other is no right one; or 0."""
    values = other.expected if isinstance(other, Truth) else other
    dtype = str(inputs.x.dtype).removeprefix("torch.")
    operator = operators.of(problem)
    plan = expected.plan(operator.depth(problem), stores=operator.stores(problem))
    if values.shape != expected.expected.shape:
        return 0.0
    magnitude = np.maximum(expected.magnitude, np.nan_to_num(np.abs(values)))
    found = compare(out, values, magnitude, dtype, **plan)
    right = compare(torch.from_numpy(values).to(inputs.x.dtype), expected.expected, expected.magnitude, dtype, **plan)
    return max(found.worst, 1e-9) if found.worst < LIKE and not right.passed else 0.0


def _resembles(out: Tensor, problem: Problem, inputs: Inputs, expected: Truth) -> tuple[str, str]:
    """Name of the closest known mistake and a sentence; two empty texts if none comes close."""
    best: tuple[float, str, str] = (LIKE, "", "")
    for name, text, make in _mistakes(problem, inputs):
        try:
            values = make()
        except (NotApplicable, RuntimeError, ValueError, IndexError, TypeError):
            continue
        distance = _like(out, values, expected, inputs, problem)
        if distance and distance < best[0]:
            best = distance, name, text
    return best[1], best[2]


def _mistakes(problem: Problem, inputs: Inputs) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    """Known mistakes: (name, what it looks like, the answer in float64)."""
    wide = replace(inputs, **{name: value.double() for name, value in inputs.tensors().items()})
    multiplier = inputs.multiplier
    mean = wide.x.mean((2, 3), keepdim=True)
    shape = problem.out_shape

    def full(value: Any) -> Callable[[], np.ndarray]:
        return lambda: torch.as_tensor(value, dtype=torch.float64).expand(shape).contiguous().numpy()

    yield "zero", "as if nothing were added: every element is 0", full(0.0)
    if isinstance(problem, Chain):

        def cropped(sides: tuple[str, ...]) -> Callable[[], np.ndarray]:
            return lambda: answers.banded(problem, inputs, forgotten=sides)

        bias = wide.bias
        if bias is not None:
            only = multiplier * bias.view(1, -1, 1, 1)
            yield "bias-only", "as if x were zero: the answer is multiplier * bias", full(only)
        for times, words in ((multiplier, "multiplier * mean of x"), (1.0, "the mean of x")):
            text = f"as if there were no convolution, no weight and no bias (nor its border crop): {words}"
            if problem.c_in >= problem.c_out:
                yield "no-convolution", text, full(times * mean[:, : problem.c_out])
            yield "no-convolution", text, full(times * mean.mean(1, keepdim=True))
            if problem.c_out % problem.c_in == 0:
                tiled = (times * mean).repeat(1, problem.c_out // problem.c_in, 1, 1)
                yield "no-convolution", text, full(tiled)
        yield "crop", f"{CROP} (the whole sum of x times the sum of the weight)", cropped(answers.SIDES)
        for side in answers.SIDES:
            yield "crop", f"{CROP} at the {side}", cropped((side,))
    for number in (0.5, 1.0):
        text = f"as if the multiplier were always {number}"
        yield "multiplier-fixed", text, _right(problem, replace(inputs, multiplier=number))
    for name, x in (
        ("abs", inputs.x.abs()),
        ("clamp", inputs.x.clamp(0, 1)),
        ("clamp", inputs.x.clamp(min=0)),
    ):
        yield name, f"as if x were never negative ({name})", _right(problem, replace(inputs, x=x))
    if inputs.x.numel() > LARGE:
        return
    for mutant in catalogue.of("torch"):
        if mutant.problem:
            continue  # the crops, which have words of their own above
        call = mutant.call("torch")
        text = f"like the known mistake {mutant.name!r} ({mutant.wrong})"
        yield mutant.name, text, lambda call=call: call(wide).numpy()


def _right(problem: Problem, inputs: Inputs) -> Callable[[], np.ndarray]:
    return lambda: answers.right(problem, inputs).expected


def _coarse(out: Tensor, expected: Truth, inputs: Inputs) -> bool:
    """Whether a wider dtype's answer errs no more than rounding everything to a half precision would."""
    if inputs.x.dtype not in (torch.float32, torch.float64):
        return False
    with np.errstate(all="ignore"):
        error = np.abs(out.double().numpy() - expected.expected)
        return bool((error <= 4 * UNIT_FLOAT16 * expected.magnitude).all())
