"""One call to check and to time, as data. No tensors here: harness/cases/inputs.py makes those."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from random import Random
from typing import Any

from harness.cases import operators
from reference.problem import Chain, Problem, Tail

LAYOUTS = (
    "contiguous",
    "channels_last",
    "expanded",
    "expanded_rows",
    "sliced",
    "cropped",
    "offset",
    "transposed",
)
VALUES = (
    "uniform",
    "normal",
    "huge_border",
    "huge",
    "subnormal",
    "cancelling",
    "nonfinite",
    "nonfinite_cropped",
)

# The interpreters handle some 10,000 elements a second.
SMALL_ELEMENTS = 20_000


@dataclass(frozen=True)
class Case:
    """One call to check and to time.

    `problem` is the sizes, of its operator's own class. `layout` and `values` are described in
    harness/cases/inputs.py; `multiplier` None is a tensor with one value per output channel. `backward` asks for the
    gradients in place of the output. `twin` is the same structure small enough for the interpreters; without a twin
    the case is small itself, or `gpu_only`.
    """

    name: str
    problem: Any
    reason: str
    dtype: str = "float32"
    layout: str = "contiguous"
    multiplier: float | None = 0.5
    values: str = "uniform"
    seed: int = 0
    twin: Any = None
    gpu_only: bool = False
    backward: bool = False

    @property
    def op(self) -> str:
        """The name of its operator."""
        return operators.of(self.problem).name

    def small(self) -> Case:
        """The case to run where there is no GPU."""
        return self if self.twin is None else replace(self, problem=self.twin, twin=None)


def shrink(problem: Problem, elements: int = SMALL_ELEMENTS) -> Problem:
    """Same kernel, stride, padding and dilation; fewer samples, channels and groups, smaller planes.

    x has about `elements` elements. Planes keep their size if they are small, for then the size is what the case is
    about.
    """
    n = min(problem.n, 2)
    if isinstance(problem, Tail):
        c = min(problem.c, max(3, elements // (n * problem.h * problem.w)))
        return Tail(n, c, *_plane(problem, n * c, elements))
    groups = min(problem.groups, 16)
    per_group = problem.c_in // problem.groups
    c_in = groups * min(per_group, max(3, elements // (n * problem.h * problem.w * groups)))
    c_out = groups * min(problem.c_out // problem.groups, 5)
    h, w = _plane(problem, n * c_in, elements)
    return replace(problem, n=n, c_in=c_in, c_out=c_out, h=h, w=w, groups=groups)


def random_chain(rng: Random, *, size: int = 9) -> Chain:
    """A valid chain with every parameter drawn and planes up to `size`: cropped, gapped, without a band."""
    while True:
        groups = rng.choice((1, 1, 2, 3))
        kernel, stride, dilation, padding = (
            (rng.randint(low, high), rng.randint(low, high)) for low, high in ((1, 5), (1, 4), (1, 3), (0, 6))
        )
        chain = Chain(
            rng.randint(1, 3),
            groups * rng.randint(1, 3),
            groups * rng.randint(1, 3),
            rng.randint(1, size),
            rng.randint(1, size),
            kernel,
            stride,
            padding,
            (rng.randrange(max(stride[0], dilation[0])), rng.randrange(max(stride[1], dilation[1]))),
            dilation,
            groups,
            rng.random() < 0.7,
        )
        if chain.out_size(0) > 0 and chain.out_size(1) > 0:
            return chain


def _plane(problem: Problem, planes: int, elements: int) -> tuple[int, int]:
    # A multiple of 4, as the large planes are, so that loads are as wide.
    side = isqrt(elements // planes) // 4 * 4
    if problem.h * problem.w <= elements // planes:
        return problem.h, problem.w
    return min(problem.h, side), min(problem.w, side)
