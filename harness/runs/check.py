"""One case checked: every entry is built and called once, and its answer judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.cases import operators
from harness.cases.case import Case
from harness.cases.inputs import Arguments, make_inputs
from harness.cases.spelling import spell
from harness.entries import gradients
from harness.entries.entry import Built, Entry, Unavailable
from harness.errors import one_line
from harness.numerics.budget import Comparison, compare, matrix
from harness.numerics.truth import Truth, truth
from harness.records.record import CaseRecord, Result


@dataclass
class Ready:
    """An entry whose answer was right, and the means to time it."""

    entry: Entry
    built: Built
    result: Result


class Lost(Exception):
    """The GPU answers this process no more: a kernel made its context unusable.

    entry: whose call it was, "" where several had been launched.
    """

    def __init__(self, case: str, entry: str, reason: str) -> None:
        super().__init__(f"{case}: {entry}: {reason}")
        self.case, self.entry, self.reason = case, entry, reason


def device_lost(device: torch.device) -> bool:
    """Whether a CUDA device answers this process no more, as after a kernel's illegal access."""
    if device.type != "cuda":
        return False
    try:
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
    except Exception:  # torch.AcceleratorError, and what it was called before
        return True
    return False


def described(case: Case) -> CaseRecord:
    """The record of a case, with nothing found yet."""
    return CaseRecord(
        name=case.name,
        op="backward" if case.backward else case.op,
        shape=spell(case.problem),
        dtype=case.dtype,
        layout=case.layout,
        why=case.reason,
        compulsory_bytes=0,
        values=case.values,
        multiplier=_multiplier(case),
        seed=case.seed,
    )


def check_case(
    case: Case, entries: Sequence[Entry], device: torch.device, lost: Mapping[str, str]
) -> tuple[CaseRecord, list[Ready], Truth]:
    """Run every entry once and hold its answer against the float64 truth, and every two against each other.

    lost: entries that are not run, for they made the GPU unusable before, each with its error. Raises Lost if one does
    so now, and RuntimeError or MemoryError if there is no room for the inputs or their truth.
    """
    inputs = make_inputs(case, device)
    expected = (gradients.truth if case.backward else truth)(case.problem, inputs)
    record = described(case)
    record.compulsory_bytes = operators.of(case.problem).compulsory_bytes(case, inputs)
    ready: list[Ready] = []
    answers: dict[str, Tensor] = {}
    for entry in entries:
        result = Result(entry.name, "unavailable")
        record.results.append(result)
        failed = "wrong" if entry.product else "unavailable"
        if entry.name in lost:
            result.status = failed
            result.reason = f"{lost[entry.name]}; the GPU was lost, and measuring went on in a new process"
            continue
        try:
            built = gradients.build(entry.name, case, inputs) if case.backward else entry.build(case, inputs)
            result.what = built.what
            _poison(case, inputs)
            with built.context():
                answer = gradients.joined(built.call())
            if answer.is_cuda:
                torch.cuda.synchronize()  # so that a kernel's crash is this entry's and not a later one's
        except Unavailable as reason:
            result.reason = str(reason)
            continue
        except Exception as error:  # whatever an entry dies of, the others go on
            if device_lost(device):
                raise Lost(case.name, entry.name, one_line(error)) from None
            result.status, result.reason = failed, one_line(error)
            continue
        verdict = judged(answer, case, built, expected)
        result.error = verdict.worst
        result.status = "right" if verdict.passed else "wrong"
        answers[entry.name] = answer
        if verdict.passed:
            ready.append(Ready(entry, built, result))
        else:
            result.reason = verdict.message
    if case.backward:
        # Every two right entries are within the sum of their budgets; for as many numbers as x has, that
        # is enough to know.
        return record, ready, expected
    plans = {r.entry.name: _plan(r.built, expected) for r in ready}
    right = {name: answers[name] for name in plans}
    for (a, b), worst in matrix(right, expected.expected, expected.magnitude, case.dtype, plans).items():
        record.pairwise.setdefault(a, {})[b] = worst
        record.pairwise.setdefault(b, {})[a] = worst
    return record, ready, expected


def _poison(case: Case, inputs: Arguments) -> None:
    """Leave NaN in the memory that the next output is likely to get.

    Otherwise an entry that writes nothing could return what a right one has just left there.
    """
    x = inputs.x
    shapes = [case.problem.out_shape] * 4
    if case.backward:
        shapes += [value.shape for value in inputs.tensors().values()]
    blocks = [torch.full(shape, torch.nan, dtype=x.dtype, device=x.device) for shape in shapes]
    del blocks


def _plan(built: Built, expected: Truth) -> dict[str, Any]:
    """What harness.numerics.budget.budget needs to know of an entry."""
    return expected.plan(built.depth, stores=built.stores, operand_error=built.operand_error)


def judged(answer: Tensor, case: Case, built: Built, expected: Truth) -> Comparison:
    """The verdict on an entry's answer."""
    return compare(answer, expected.expected, expected.magnitude, case.dtype, **_plan(built, expected))


def _multiplier(case: Case) -> str | None:
    if not operators.of(case.problem).multiplied:
        return None
    return "tensor" if case.multiplier is None else str(case.multiplier)
