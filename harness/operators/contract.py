"""All that the lab needs to know of an operator, as one object. docs/design.md shows how one of your own is written.

What the lab does with it (checking, random calls, timing, judging, records, pages) knows nothing else of an operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from convgap.selection import status_of
from harness.cases.case import LAYOUTS, VALUES, Case
from harness.cases.inputs import Arguments, Draw
from harness.entries.entry import Built, Entry, Unavailable
from harness.numerics import any_operator
from harness.numerics.example import Property
from harness.numerics.truth import Truth


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    call: the answer to the operator's arguments. about: what it is, in a few words. depth: the longest chain of
    additions behind one output, by sizes; stores: roundings to the tensors' dtype on the way to it. product: whether
    it is yours, so that its failure is a defect. cpu: whether it belongs to a run without a GPU. unusable: why it
    cannot run on a device, "" if it can.
    """

    call: Callable[[Any], Tensor]
    about: str
    depth: Callable[[Any], int]
    stores: int = 1
    product: bool = True
    cpu: bool = True
    unusable: Callable[[torch.device], str] = lambda device: ""


def as_backend(name: str) -> Callable[[torch.device], str]:
    """Implementation.unusable of a kernel that runs where convgap's backend of that name does, interpreted or not."""

    def unusable(device: torch.device) -> str:
        status = status_of(name, device)
        return "" if status.usable else status.reason

    return unusable


class Operator:
    """One operator. What has no default below must be said; the rest may be.

    name: the first word of its cases and shapes. sizes: a frozen dataclass of whole numbers, the batch first, with
    in_shape (of x), out_shape and compulsory_bytes(itemsize). function: the name under which convgap offers it. cases:
    by set ("headline", "grid", "edge", ...).
    timed: the sets that are about speed. implementations: by the name they have in tables. references: what speed-ups
    are over, the first of these that was timed.
    """

    name: str
    sizes: type
    usage: str
    """How its shapes are spelled; unless said, its sizes in their order: "name:N,C,H,W"."""
    function: str = ""
    cases: Mapping[str, tuple[Case, ...]]
    timed: tuple[str, ...] = ("headline", "grid")
    implementations: Mapping[str, Implementation] = {}
    references: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16", "float64")
    layouts: tuple[str, ...] = LAYOUTS
    values: tuple[str, ...] = VALUES
    multiplied: bool = False
    """Whether a call has a multiplier, which `Case.multiplier` then says."""
    tf32: bool = False
    """Whether the framework rounds float32 operands to TF32 on a GPU."""
    file: Path | None = None
    """Where it was loaded from; None for the project's own."""

    def __init_subclass__(cls) -> None:
        if "sizes" in cls.__dict__ and "usage" not in cls.__dict__:
            cls.usage = f"{cls.name}:{','.join(field.name.upper() for field in fields(cls.sizes))}"

    # --- what must be said ---

    def inputs(self, problem: Any, draw: Draw) -> Any:
        """The arguments of a call, a dataclass that extends Arguments, with numbers from `draw`."""
        raise NotImplementedError(f"{self.name}: inputs")

    def truth(self, problem: Any, inputs: Any) -> Truth:
        """The float64 answer, and what the budget needs to know of it."""
        raise NotImplementedError(f"{self.name}: truth")

    def depth(self, problem: Any) -> int:
        """Longest chain of additions of the operator as written, in any sane order: a stranger's budget."""
        raise NotImplementedError(f"{self.name}: depth")

    def draw(self, rng: Random) -> Any:
        """Random small sizes, for random calls and for what a judged file must not know."""
        raise NotImplementedError(f"{self.name}: draw")

    # --- sizes and their spelling ---

    def parse(self, text: str, words: list[str]) -> Any:
        """Sizes of the words behind the colon of `text`. ValueError with one line that says what is wrong."""
        numbers, rest = self.leading_sizes(text, words, len(fields(self.sizes)))
        if rest:
            raise ValueError(f"shape {text!r}: {rest[0]!r} is no part of {self.usage}")
        return self.sizes(*numbers)

    def leading_sizes(self, text: str, words: list[str], count: int) -> tuple[list[int], list[str]]:
        """The first `count` words as numbers, and the others."""
        sizes = words[:count]
        if len(sizes) < count or not all(re.fullmatch(r"\d+", word) for word in sizes):
            raise ValueError(f"shape {text!r}: expected {count} sizes first: {self.usage}")
        return [int(word) for word in sizes], words[count:]

    def check(self, problem: Any) -> None:
        """ValueError, TypeError, RuntimeError or OverflowError for sizes that the operator refuses.

        Unless said otherwise only the batch may be empty.
        """
        for field in fields(self.sizes)[1:]:
            if getattr(problem, field.name) < 1:
                raise ValueError(f"{field.name}: expected at least 1, got {getattr(problem, field.name)}")

    def spell(self, problem: Any) -> str:
        """The words that parse() turns into these sizes."""
        return ",".join(str(getattr(problem, field.name)) for field in fields(self.sizes))

    def batched(self, problem: Any, n: int) -> Any:
        """The same sizes with another batch, which is their first field."""
        return replace(problem, **{fields(self.sizes)[0].name: n})

    def resized(self, problem: Any, number: int) -> Any:
        """The same call with other sizes: those of its last axis, `number` larger."""
        last = fields(self.sizes)[-1].name
        return replace(problem, **{last: getattr(problem, last) + number})

    # --- bytes, roundings, gradients ---

    def shapes(self, problem: Any) -> list[tuple[int, ...]]:
        """Of the tensors of a call that are large."""
        return [problem.in_shape, problem.out_shape]

    def compulsory_bytes(self, case: Case, inputs: Any) -> int:
        """The bytes that a call must move; for an expanded input those that exist."""
        size = case.problem.compulsory_bytes(inputs.x.element_size())
        return min(size, inputs.x.untyped_storage().nbytes()) if "expanded" in case.layout else size

    def stores(self, problem: Any) -> int:
        """Roundings to the tensors' dtype on the way to an output of the operator as written."""
        return 1

    def batch_invariant(self, backend: str) -> bool:
        """Whether a sample's bits must not depend on the rest of the batch."""
        return True

    def gradients(self, problem: Any, inputs: Any, grad: Tensor) -> dict[str, Truth]:
        """The truth of the gradients of sum(grad * out), by the names of the arguments."""
        raise NotImplementedError(f"{self.name}: gradients")

    gradient_entries: Mapping[str, Callable[[Case, Any, Tensor], Built]] = {}
    """What `compare --backward` times, by entry; without any, the operator has nothing to offer there."""

    # --- what follows from the above ---

    def entries(self) -> Mapping[str, Entry]:
        """What the bench compares, by name."""
        return {
            name: Entry(name, way.about, partial(_built, way), product=way.product, cpu=way.cpu)
            for name, way in self.implementations.items()
        }

    def callers(self) -> Mapping[str, Callable[[], Callable[[Any], Tensor]]]:
        """What `bench.py calls` times: by name, what makes a function of the arguments."""
        return {name: lambda way=way: way.call for name, way in self.implementations.items()}

    def unfit(self, name: str, device: torch.device) -> str:
        """Why the times of an implementation's calls would mean nothing on the device; "" if they mean something."""
        way = self.implementations[name]
        if device.type == "cpu" and way.product:
            return "interpreted without a GPU: its times mean nothing"
        return way.unusable(device)

    def properties(self) -> Mapping[str, Property]:
        """What must hold for every random call."""
        return any_operator.PROPERTIES


def _built(way: Implementation, case: Case, inputs: Arguments) -> Built:
    if reason := way.unusable(inputs.x.device):
        raise Unavailable(reason)
    return Built(lambda: way.call(inputs), way.about, way.depth(case.problem), way.stores)
