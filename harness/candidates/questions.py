"""What a candidate is asked about one problem: values, weights, batches, what it has seen, each of its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from harness.candidates.checks import Examination
from harness.candidates.trials import Trial, structured
from harness.candidates.verdict import Check, Found
from harness.cases.spelling import spell
from harness.numerics.budget import Comparison

Asked = Iterator[tuple[str, Comparison | None]]
LARGE = 100_000  # elements of x from which on one call must do


def run(exam: Examination, trials: list[Trial]) -> None:
    """All trials; Found at the first fault."""
    for trial in map(exam.affordable, trials):
        try:
            for what, comparison in thorough(exam, trial) if trial.thorough else short(exam, trial):
                exam.passed(trial, what, comparison)
        except Found as fault:
            exam.checks.append(Check(trial.name, False, fault.reason))
            others = [check for check in exam.checks[:-1] if check.passed]
            if fault.verdict == "wrong" and trial.public and others:
                reason = f"shortcut: right on every shape but a published one, {spell(trial.problem)}: {fault.reason}"
                raise Found("refused", reason) from None
            raise


def short(exam: Examination, trial: Trial) -> Asked:
    """New weights; one call whose planes and borders differ widely, and a plain one where it is small."""
    exam.build(trial)
    exam.set_weights(1)
    large = prod(trial.problem.in_shape) > LARGE
    yield (
        "planes and borders apart",
        exam.call(structured(trial.inputs(1)).x, "planes and borders apart")[1],
    )
    if not large:
        yield "normal", exam.call(trial.inputs(2).x, "normal")[1]


def thorough(exam: Examination, trial: Trial) -> Asked:
    """Every question there is."""
    exam.build(trial)
    exam.set_weights(1)
    x = trial.inputs(1, "uniform").x

    def ask(what: str, x: Tensor, **more: Any) -> tuple[str, Comparison | None]:
        return what, exam.call(x, what, **more)[1]

    yield ask("uniform", x, late=True)
    normal = trial.inputs(2).x
    yield ask("other values at the same address", normal)
    exam.set_weights(3)
    yield ask("other weights, set in place", normal)
    exam.set_weights(4, "load")
    yield ask("other weights, loaded", normal)
    yield ask("scaled by 3", 3 * trial.inputs(3).x, slot="b", late=True)
    yield ask("scaled by 0.01", 0.01 * trial.inputs(4).x, slot="b")
    yield ask("negated", -x, slot="b")
    for values in ("cancelling", "huge_border", "nonfinite"):
        yield ask(values.replace("_", " "), trial.inputs(5, values).x)
    for n in (1, 7):
        other = replace(trial.problem, n=n)
        yield ask(f"batch of {n}", trial.inputs(6, problem=other).x)
    again = trial.inputs(7).x
    yield ask("before one element changes", again)
    changed = again.clone()
    flat = changed.view(-1)
    flat[trial.seed % flat.numel()] = 1000.0
    yield ask("one element changed", changed)
    order = torch.randperm(x.shape[0], generator=torch.Generator().manual_seed(trial.seed))
    yield ask("samples permuted", again[order])
    yield "called twice", twice(exam, again)
    cached(exam, trial)
    kernels(exam, trial)


def twice(exam: Any, x: Any) -> Comparison | None:
    """Two calls with the same arguments; other bits are worth a note."""
    first, _ = exam.call(x, "called twice")
    second, verdict = exam.call(x, "called twice")
    assert first.out is not None and second.out is not None
    if _bytes(first.out) != _bytes(second.out):
        exam.notes.append("a second call with the same arguments gives other bits, as unordered sums do")
    return verdict


def _bytes(out: Any) -> list[bytes]:
    return [tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tree_leaves(out)]


def cached(exam: Any, trial: Any) -> None:
    """A call on what it has seen before must do as much as a call on what is new."""
    exam.call(trial.inputs(11).x, "counted", count=True)
    fresh, _ = exam.call(trial.inputs(12).x, "counted, new", count=True)
    for slot, same in (("a", True), ("a", False), ("c", False)):
        x = trial.inputs(12).x
        repeat, _ = exam.call(x, "counted, seen before", slot=slot, count=True, same=same)
        for what, new, old in (
            ("launches", fresh.launches, repeat.launches),
            ("calls of torch", fresh.operations or {}, repeat.operations or {}),
        ):
            if less := [name for name, number in new.items() if old.get(name, 0) < number]:
                raise Found(
                    "refused",
                    f"cached: on values that it has seen before it does less: {old.get(less[0], 0)} in place of "
                    f"{new[less[0]]} {what}: {less[0]}",
                )
    exam.checks.append(Check(f"{trial.name}: as much work on known values", True))


def kernels(exam: Any, trial: Any) -> None:
    """A kernel that does nothing must change the answer; one that fails must not go unnoticed."""
    seen, _ = exam.call(trial.inputs(20).x, "kernels counted")
    exam.interpreted = bool(seen.launches)
    if not seen.launches and (unused := exam.candidate.kernels):
        if exam.rules.gpu or not exam.candidate.branches_on_device:
            raise Found("refused", f"idle: no kernel was launched, though the file has {unused}")
        exam.notes.append(f"no kernel was launched on a CPU, though the file has {unused}: only torch was judged")
    for number, name in enumerate(seen.launches):
        x = trial.inputs(21 + number).x
        reply, verdict = exam.call(x, "one kernel left out", skip=name)
        if not reply.error and verdict and verdict.passed:
            raise Found(
                "refused",
                f"idle: the answer is right without the kernel {name}: something else computes it",
            )
        exam.current.before = None
    for number, name in enumerate(seen.launches):
        reply, verdict = exam.call(trial.inputs(51 + number).x, "one kernel failing", fail=name)
        if not reply.error and verdict and verdict.passed:
            raise Found(
                "refused",
                f"fallback: where the kernel {name} fails, something else answers without a word",
            )
        exam.current.before = None
    count = len(seen.launches)
    exam.checks.append(Check(f"{trial.name}: {count} kernel{'s' * (count != 1)}, each needed", True))
