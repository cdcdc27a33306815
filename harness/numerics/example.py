"""A drawn call, the property asked of it, and the command line that shows the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from random import Random
from typing import Any

from harness.cases import operators, spelling
from harness.cases.case import LAYOUTS, Case, random_chain
from harness.cases.spelling import own_case, variant
from reference.problem import Tail

FINITE_VALUES = ("uniform", "normal", "huge_border", "huge", "subnormal", "cancelling")
TAME_VALUES = ("uniform", "normal", "cancelling")
MULTIPLIERS = (0.5, 1.0, -1.7, 0.1, 0.0, 3e-3)


class Miss(AssertionError):
    """A property does not hold."""


class Skip(Exception):
    """The property says nothing about this example."""


@dataclass(frozen=True)
class Property:
    """A check of an example, which raises Miss or Skip; the values of x it is about; how often it is drawn beside the
    others."""

    check: Callable[[Example], None]
    values: tuple[str, ...]
    weight: int = 1


@dataclass(frozen=True)
class Template:
    """All that fixes the code of the kernels: an example may vary the rest without a compilation.

    `problem` is of any batch size; `tensor`: whether the multiplier is a tensor.
    """

    problem: Any
    dtype: str
    layout: str
    tensor: bool


def templates(seed: int, count: int) -> list[Template]:
    """`count` templates of chains and tails, small ones first, drawn from every parameter there is."""
    rng = Random(seed)
    drawn = []
    for _ in range(count):
        size = rng.choice((4, 9, 9, 24))
        if rng.random() < 0.7:
            problem = random_chain(rng, size=size)
        else:
            problem = Tail(3, rng.randint(1, 9), rng.randint(1, 4 * size), rng.randint(1, 4 * size))
        dtype = rng.choice(("float32", "float32", "float32", "float16", "bfloat16", "float64"))
        drawn.append(Template(problem, dtype, rng.choice(LAYOUTS), rng.random() < 0.3))
    return sorted(drawn, key=lambda t: t.problem.h * t.problem.w)


def templates_of(operator: Any, seed: int, count: int) -> list[Template]:
    """`count` templates of another operator, small ones first."""
    rng = Random(seed)
    drawn = [
        Template(operator.draw(rng), rng.choice(operator.dtypes), rng.choice(operator.layouts), rng.random() < 0.3)
        for _ in range(count)
    ]
    return sorted(drawn, key=lambda t: prod(t.problem.in_shape))


@dataclass(frozen=True)
class Example:
    """A case for a backend, the property asked of it, and a seed for what the property itself draws."""

    backend: str
    device: str
    prop: str
    case: Case
    seed: int

    def __str__(self) -> str:
        return f"{self.prop}: {self.command()}"

    def command(self) -> str:
        """The command line that checks the same numbers on the same backend."""
        return spelling.command(self.case, self.backend)


def make_case(template: Template, rng: Random, values: tuple[str, ...]) -> Case:
    """A case of the template: batch, values, multiplier and seed."""
    operator = operators.of(template.problem)
    problem = operator.batched(template.problem, rng.choice((0, 1, 2, 2, 3)))
    # Named as bench.py names it, for the name is part of the seed.
    case = variant(own_case(problem, "drawn"), template.dtype, template.layout)
    return replace(
        case,
        multiplier=None if template.tensor else rng.choice(MULTIPLIERS),
        values=rng.choice([kind for kind in values if kind in operator.values]),
        seed=rng.randrange(1 << 16),
    )
