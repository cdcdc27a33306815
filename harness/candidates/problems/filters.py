"""Is the problem itself one that a verdict says something about? What is amiss, and what that means for verdicts.

After robust-kbench, which looks at a problem before it looks at kernels (docs/judging.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from harness.candidates.problems.file import ProblemFile, Wide, outputs
from harness.numerics.estimate import Estimate, estimate

LOOSE = 1e-2
"""Absolute tolerance of KernelBench's evaluation: at or below it an output of zeros passes there."""
MUCH = 0.01  # share of the elements from which on it is worth a word


def remarks(problem: ProblemFile, seed: int) -> Iterator[str]:
    """What is amiss with the problem; nothing if it is sound. UsageError if it cannot be run at all."""
    model, inputs = problem.model(seed), problem.inputs(seed)
    found = estimate(Wide(problem, model, inputs), problem.dtype, seed)
    yield from _outputs(found)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    yield from _ignored(problem, model, state, inputs, found, seed)
    other = estimate(Wide(problem, problem.model(seed), problem.inputs(seed + 1)), problem.dtype, seed)
    pairs = zip(found.outputs, other.outputs, strict=True)
    if all(a.expected.shape == b.expected.shape and _close(a.bound, a.expected, b.expected) for a, b in pairs):
        yield "constant: other inputs give the same outputs: a kernel that computes nothing passes"
    yield from _eager(problem, seed, found)


def _outputs(found: Estimate) -> Iterator[str]:
    for reason in found.why:
        share = f"{100 * found.apart:.2g} % of the elements"
        yield f"{reason}: {share} have no bound, and are not held against one"
    if found.unseen:
        yield (
            f"unseen: the estimate does not see into {', '.join(found.unseen)}: what they may be off by is a guess of "
            "a few roundings of their largest values"
        )
    for number, output in enumerate(found.outputs, 1):
        name = f"output {number}" if len(found.outputs) > 1 else "the output"
        values = output.expected
        if values.size == 0:
            yield f"empty: {name} has no elements: every answer of its shape passes"
            continue
        small = np.abs(values) <= output.bound
        if (share := float((small & (values != 0)).mean())) > MUCH:
            yield f"small: {100 * share:.2g} % of {name} is smaller than its own bound: zeros pass there"
        if values.size > 1 and np.ptp(values) <= 2 * output.bound.max():
            yield f"constant: all elements of {name} are the same: a kernel that writes one number passes"
        elif values.ndim > 1 and values.shape[0] > 1 and (np.ptp(values, axis=0) <= 2 * output.bound[0]).all():
            yield f"alike: all samples of {name} are the same: swapped samples pass"
        if np.abs(values).max() <= LOOSE:
            yield (
                f"tiny: {name} is at most {np.abs(values).max():.2g}: a comparison with an absolute tolerance of "
                f"{LOOSE:g} accepts zeros; the bound here is {output.bound.max():.2g} at most and does not"
            )
        if not np.isfinite(values).all():
            yield f"not finite: {100 * float((~np.isfinite(values)).mean()):.2g} % of {name} is Inf or NaN"


def _ignored(
    problem: ProblemFile, model: Any, state: dict[str, Tensor], inputs: Sequence[Any], found: Estimate, seed: int
) -> Iterator[str]:  # fmt: skip
    """Inputs and parameters that no output depends on: each is replaced alone."""
    leaves, shape = tree_flatten(list(inputs))
    for place, value in enumerate(leaves):
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            changed = [*leaves[:place], _other(value, seed), *leaves[place + 1 :]]
            if _same(problem, model, state, tree_unflatten(changed, shape), found):
                yield f"ignored: no output depends on input {place + 1}: a kernel that never reads it passes"
    for name, _ in model.named_parameters():
        if state[name].is_floating_point() and state[name].numel():
            changed = state | {name: _other(state[name], seed)}
            if _same(problem, model, changed, inputs, found):
                yield f"ignored: no output depends on the parameter {name}: a kernel that never reads it passes"


def _same(problem: ProblemFile, model: Any, state: dict[str, Tensor], inputs: Sequence[Any], found: Estimate) -> bool:
    model.load_state_dict(state)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        out = Wide(problem, model, inputs)(lambda value: value.clone())
    return all(
        tuple(a.shape) == b.expected.shape and _close(b.bound, b.expected, a.double().numpy(), b.apart)
        for a, b in zip(out, found.outputs, strict=True)
    )


def _other(value: Tensor, seed: int) -> Tensor:
    """Other numbers of the same spread and range: the same ones reversed and a little larger."""
    return (value.flatten().flip(0).view(value.shape) * 1.25 + 0.125 * (value.double().std(correction=0) or 1)).to(
        value.dtype
    )


def _close(bound: Any, a: Any, b: Any, apart: Any = False) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(((np.abs(a - b) <= bound) | (a == b) | (np.isnan(a) & np.isnan(b)) | apart).all())


def _eager(problem: ProblemFile, seed: int, found: Estimate) -> Iterator[str]:
    """The problem's own Model in the working precision has to pass."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        verdict = found.compare(outputs(problem, problem.model(seed), problem.inputs(seed)))
    if not verdict.passed:
        yield f"bound: Model itself, in {problem.dtype}, is {verdict.message}: the estimate is too small here"
