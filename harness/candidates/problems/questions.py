"""What a candidate is asked about a problem of fixed shapes: values, state, order, memory, each of its kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from harness.candidates import questions
from harness.candidates.problems.calls import Examination
from harness.candidates.problems.file import ProblemFile, outputs
from harness.candidates.verdict import Check, Found

PATIENCE_S = 20.0
"""An estimate that takes longer is made for the questions that nothing replaces only."""


@dataclass(frozen=True)
class Drawn:
    """Stands where a trial stands for this project's own operators. x: the arguments."""

    problem: ProblemFile
    seed: int
    name: str

    @dataclass(frozen=True)
    class Inputs:
        """x: the arguments of one call."""

        x: list[Any]

    def inputs(self, number: int, *_: Any) -> Inputs:
        """Another draw for another number."""
        return self.Inputs(self.problem.inputs(self.seed + number))


def run(exam: Examination) -> None:
    """All questions; Found at the first fault."""
    name = exam.problem.path.stem
    trial = Drawn(exam.problem, exam.seed, name)
    try:
        for what, verdict in _asked(exam, trial):
            exam.checks.append(Check(f"{name}: {what}", True, verdict.message, verdict.worst))
        questions.cached(exam, trial)  # pyright: ignore[reportArgumentType]
        questions.kernels(exam, trial)  # pyright: ignore[reportArgumentType]
    except Found as fault:
        exam.checks.append(Check(name, False, fault.reason))
        raise


def _asked(exam: Examination, trial: Drawn) -> Iterator[tuple[str, Any]]:
    exam.build(0)
    start = time.perf_counter()
    first = trial.inputs(1).x
    yield "as drawn", exam.call(first, "as drawn", late=True)[1]
    slow = time.perf_counter() - start > PATIENCE_S
    second = trial.inputs(2).x
    yield "other values at the same address", exam.call(second, "other values at the same address")[1]
    if exam.set_weights(3):
        yield "other weights, set in place", exam.call(second, "other weights, set in place")[1]
        exam.set_weights(4, "load")
        yield "other weights, loaded", exam.call(second, "other weights, loaded")[1]
    if slow:
        exam.notes.append(f"one estimate takes more than {PATIENCE_S:g} s: asked of drawn values only")
        return
    for what, values in (
        ("scaled by 3", _each(first, lambda t: 3 * t)),
        ("negated", _each(first, torch.neg)),
        ("samples in another order", _permuted(first, trial.seed)),
        ("one element changed", _each(first, lambda t: _spiked(t, trial.seed))),
    ):
        if _sound(exam, values):
            yield what, exam.call(values, what, slot="b", late=True)[1]
    yield "called twice", questions.twice(exam, second)


def _each(values: list[Any], change: Any) -> list[Any]:
    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(changed, values)


def _permuted(values: list[Any], seed: int) -> list[Any]:
    """The first tensor's samples in another order, and those of all that have as many."""
    sizes = [v.shape[0] for v in values if isinstance(v, Tensor) and v.dim()]
    if not sizes:
        return values
    order = torch.randperm(sizes[0], generator=torch.Generator().manual_seed(seed))
    return [v[order] if isinstance(v, Tensor) and v.dim() and v.shape[0] == sizes[0] else v for v in values]


def _spiked(value: Tensor, seed: int) -> Tensor:
    changed = value.clone().contiguous()
    if changed.numel():
        flat = changed.view(-1)
        flat[seed % flat.numel()] = 4 * value.abs().max() + 1
    return changed


def _sound(exam: Examination, values: list[Any]) -> bool:
    """Whether the problem itself has an answer to such values: finite, and its own Model within the bound."""
    try:
        found = exam.estimate(values)
        if not all(np.isfinite(output.expected).all() for output in found.outputs):
            return False
        own = exam.current.own
        own.load_state_dict(exam.current.state)
        with torch.random.fork_rng(devices=[]):
            return found.compare(outputs(exam.problem, own, values)).passed
    except Exception:  # the file's own code, on values that it was not written for
        return False
