"""What a candidate is asked: problems, and for each the values that the judge draws for it.

Which shapes and values come is decided by a seed that the candidate never sees; it is printed afterwards, and gives the
same trials again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import cycle
from random import Random
from typing import Any

import torch

from harness.candidates.forms import Candidate
from harness.cases.case import Case, random_chain
from harness.cases.inputs import Inputs, make_inputs
from reference.problem import Chain, Problem, Tail

TWICE = (3, 3), (2, 2), (1, 1), (1, 1)  # kernel, stride, padding and output padding of the published problem
TODAY = Chain(16, 64, 128, 128, 128, *TWICE)
OLD = Chain(128, 3, 16, 32, 32, *TWICE)
SMALL = Chain(3, 5, 6, 9, 10, *TWICE)
MULTIPLIERS = (0.5, -1.75, 3.0, 0.1, 1.0)
HIDDEN = 4
LARGEST_KERNEL = 7
ENOUGH_FOR_NONFINITE = 4, 5
"""Samples of which one stays finite while Inf, -Inf and NaN each have one of their own."""


@dataclass(frozen=True)
class Trial:
    """One model, or one set of arguments. public: whether the shape is one that everybody knows."""

    name: str
    problem: Problem
    multiplier: float
    seed: int
    dtype: str = "float32"
    layout: str = "contiguous"
    public: bool = False
    thorough: bool = False

    def inputs(self, number: int, values: str = "normal", problem: Problem | None = None) -> Inputs:
        """Arguments on the CPU; another number is another draw."""
        case = Case(
            f"judged/{self.seed}/{self.name}",
            problem or self.problem,
            "drawn by the judge",
            self.dtype,
            self.layout,
            self.multiplier,
            values,
            seed=number,
        )
        return make_inputs(case, "cpu")


def structured(inputs: Inputs) -> Inputs:
    """The same arguments with an x whose planes and borders all differ widely, so that no exchange of them is small.

    The border of each plane outweighs its inside: an answer that forgets what is cropped is wrong by as much as it is
    right, whatever the size of the plane.
    """
    x = inputs.x.double()
    n, c = x.shape[:2]
    x = x / 64 + torch.arange(1, n * c + 1, dtype=torch.float64).view(n, c, 1, 1) / (n * c)
    for edge, weight in ((x[..., 0, :], 9), (x[..., -1, :], -17), (x[..., 0], 31), (x[..., -1], -5)):
        edge *= weight * max(x.shape[-2:])
    fresh = inputs.x.clone()
    fresh.copy_(x)
    return replace(inputs, x=fresh)


def trials(candidate: Candidate, seed: int, *, gpu: bool, full: bool) -> list[Trial]:
    """The trials of a candidate, the thorough one first."""
    rng = Random(seed)
    found: list[Trial] = []
    for operator in candidate.operators:
        found += _of(candidate, operator, rng, full=full or gpu)
    return found


def shaped_for(operator: str, problem: Problem) -> Problem:
    """A chain's sizes, or those of the tail that follows its convolution."""
    return Tail(*problem.conv_shape) if operator == "tail" and isinstance(problem, Chain) else problem


def _of(candidate: Candidate, operator: str, rng: Random, *, full: bool) -> list[Trial]:
    # In turn, so that each seed asks for every multiplier, and a negative one is among them.
    multipliers = cycle(rng.sample(MULTIPLIERS, len(MULTIPLIERS)))

    def trial(name: str, problem: Problem, **more: Any) -> Trial:
        problem = shaped_for(operator, problem)
        return Trial(f"{operator} {name}", problem, next(multipliers), rng.getrandbits(31), **more)

    found = [trial("small", replace(SMALL, n=rng.choice(ENOUGH_FOR_NONFINITE)), thorough=True)]
    for number, problem in enumerate(hidden(candidate.form, rng), 1):
        found.append(trial(f"hidden {number}", problem))
    for dtype in candidate.dtypes:
        for layout in candidate.layouts:
            if (dtype, layout) != ("float32", "contiguous"):
                found.append(trial(f"{dtype} {layout}", SMALL, dtype=dtype, layout=layout))
    found.append(replace(trial("published before", OLD, public=True), multiplier=0.5))
    if full:
        found.append(replace(trial("published today", TODAY, public=True), multiplier=0.5))
    return found


def hidden(form: str, rng: Random) -> list[Chain]:
    """Small problems that nobody published.

    Between them they differ from the published one in every argument that the form passes.
    """
    draw = {"functions": _any_call, "solution": _same_convolution}.get(form, _square)
    while True:
        found = [draw(rng) for _ in range(HIDDEN)]
        if form == "solution" or _nothing_left_as_published(found, form):
            return found


def _nothing_left_as_published(found: list[Chain], form: str) -> bool:
    """Whether a file fails somewhere that has one of the published numbers in the place of an argument."""
    passed = ["stride", "padding", "output_padding"] + ["dilation", "groups"] * (form == "functions")
    for name in passed:
        published = getattr(SMALL, name)
        if not any(_differs(getattr(problem, name), published) for problem in found):
            return False
    kernels = [problem.kernel for problem in found]
    return any(min(kernel) == 1 for kernel in kernels) and any(max(kernel) > 5 for kernel in kernels)


def _differs(value: Any, published: Any) -> bool:
    """Whether a parameter is another one, along both axes where it has two."""
    if isinstance(value, tuple):
        return all(one != other for one, other in zip(value, published, strict=True))
    return value != published


def _any_call(rng: Random) -> Chain:
    """Arguments as a function may get them: of each axis its own, grouped, dilated."""
    while True:
        kernel = rng.randint(1, LARGEST_KERNEL), rng.randint(1, LARGEST_KERNEL)
        problem = replace(random_chain(rng), bias=True, kernel=kernel)
        if _has_output(problem):
            return problem


def _same_convolution(rng: Random) -> Chain:
    """Other sizes with the published kernel, stride and padding, which a solution's definition fixes."""
    return Chain(*_sizes(rng), *TWICE)


def _square(rng: Random) -> Chain:
    """KernelBench's constructor takes one number for both axes."""
    while True:
        kernel, stride, padding = rng.randint(1, LARGEST_KERNEL), rng.randint(1, 3), rng.randint(0, 2)
        output_padding = rng.randrange(stride)
        problem = Chain(
            *_sizes(rng),
            *((kernel, kernel), (stride, stride), (padding, padding), (output_padding, output_padding)),
        )
        if _has_output(problem):
            return problem


def _sizes(rng: Random) -> tuple[int, int, int, int, int]:
    n, c_in, c_out = rng.randint(4, 9), rng.randint(2, 20), rng.randint(2, 20)
    return n, c_in, c_out, rng.randint(3, 24), rng.randint(3, 24)


def _has_output(problem: Chain) -> bool:
    return min(problem.out_size(0), problem.out_size(1)) > 0
