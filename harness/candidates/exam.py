"""What every examination has: a candidate handed over, its process asked, what came back, the largest error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from harness.candidates.forms import Candidate
from harness.candidates.verdict import Check, Found
from harness.candidates.worker import Worker
from harness.numerics.budget import Comparison

SLACK = 1 << 16  # bytes that an answer may be larger than what was expected, before it is not even read


@dataclass(frozen=True)
class Rules:
    """gpu: whether there is one.

    tf32: whether the framework's convolution rounds to TF32 here. chain: the longest chain of additions, if known.

    frozen: whether weights may be taken once, at construction. patience: seconds that a call on a published shape may
    take; an interpreter may need minutes, and then gets fewer samples of it. tell: is called with how far it came.
    """

    tf32: bool = False
    chain: int | None = None
    frozen: bool = False
    patience: float | None = None
    gpu: bool = False
    tell: Callable[[str], None] | None = None


@dataclass
class Reply:
    """One call: the answer, and what was seen meanwhile. error: what the candidate raised."""

    out: Tensor | None = None
    error: str = ""
    launches: dict[str, int] = field(default_factory=dict)
    operations: dict[str, int] | None = None


class Exam:
    """One candidate in its process; `checks` grows, and Found is raised at the first fault."""

    def __init__(self, candidate: Candidate, worker: Worker, rules: Rules) -> None:
        self.candidate, self.worker, self.rules = candidate, worker, rules
        self.checks: list[Check] = []
        self.notes: list[str] = []
        self.largest = (0.0, 0.0)  # absolute and relative error so far
        self.interpreted = False

    def hand_over(self, form: str) -> None:
        """Put the candidate's files into its folder and have them read."""
        for name, text in self.candidate.sources.items():
            path = self.worker.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        c = self.candidate
        self.ask("load", seconds=None, form=form, details=c.details, wants_gpu=c.wants_gpu)

    def ask(self, command: str, blobs: Any = (), **header: Any) -> tuple[dict[str, Any], list[bytearray]]:
        """One request and its answer. Found if the process saw a trick meanwhile."""
        if self.rules.tell:
            self.rules.tell(f"{len(self.checks)} checks passed")
        answer, found = self.worker.ask(command, blobs, **header)
        if findings := answer.get("findings"):
            raise Found("refused", str(findings[0]))
        return answer, found

    def failed(self, answer: dict[str, Any], what: str, *, planted: bool) -> Reply | None:
        """What a call gave that gave no answer, if its failure was planted; Found if it was not; None for an answer."""
        if error := answer.get("error"):
            if planted:
                return Reply(error=error, launches=answer["launches"])
            verdict = "refused" if error.startswith("SystemExit") else "crashed"
            raise Found(verdict, f"{'exit' if verdict == 'refused' else 'raised'}: {what}: {error}")
        if complaint := answer.get("complaint"):
            if planted:
                return Reply(error=complaint)
            raise Found("refused" if complaint.startswith("lazy") else "wrong", f"{complaint} ({what})")
        return None

    def keep(self, verdict: Comparison) -> None:
        """Enter the error of a right answer."""
        if verdict.actual is None or verdict.expected is None:
            return
        difference = abs(verdict.actual - verdict.expected)
        if difference < float("inf"):
            relative = difference / abs(verdict.expected) if verdict.expected else 0.0
            self.largest = max(self.largest[0], difference), max(self.largest[1], relative)


def frozen(name: str, shape: tuple[int, ...]) -> Found:
    """The refusal of a model that keeps a weight to itself."""
    return Found(
        "refused",
        f"frozen: the model has no {name} of shape {shape} that could be set after construction "
        "(--frozen-weights allows that)",
    )


def received(data: bytearray, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor over the bytes of an answer. Found if they are too many or too few."""
    if len(data) != prod(shape) * dtype.itemsize:
        raise Found("refused", f"forged: {len(data)} bytes for an answer of shape {tuple(shape)}")
    return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)
