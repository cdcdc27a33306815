"""Is one answer right? The truth of any call in float64, and how far an unknown order of additions may be off."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.cases import operators
from harness.cases.inputs import Inputs
from harness.entries.entry import TF32_OPERAND
from harness.numerics.budget import Comparison, compare
from harness.numerics.truth import Truth, truth
from reference.problem import Chain

SIDES = ("top", "bottom", "left", "right")
LARGE = 20_000_000  # products of the literal convolution from which on the truth is taken from sums of bands


def right(problem: Any, inputs: Inputs) -> Truth:
    """The float64 truth; for large finite problems by sums of bands, which take no convolution output."""
    large = isinstance(problem, Chain) and problem.n * problem.c_in * problem.c_out * problem.out_area > LARGE
    if not isinstance(problem, Chain) or not large or not bool(torch.isfinite(inputs.x).all()):
        return truth(problem, inputs)
    small = truth(_one(problem), _first(inputs))  # for what flushing may cost, and the depth
    return Truth(banded(problem, inputs), banded(problem, inputs, absolute=True), small.floor, small.depth)


def judge(
    out: Tensor, problem: Any, inputs: Inputs, expected: Truth, *, tf32: bool, chain: int | None = None
) -> Comparison:
    """An answer beside the truth, in the budget of the operator as written: the file may be anyone's.

    tf32: whether the convolution is the framework's on a GPU, which rounds its factors. chain: the longest chain of
    additions, if it is known.
    """
    dtype = str(inputs.x.dtype).removeprefix("torch.")
    error = TF32_OPERAND if tf32 and dtype == "float32" and isinstance(problem, Chain) else 0.0
    operator = operators.of(problem)
    plan = expected.plan(chain or operator.depth(problem), stores=operator.stores(problem), operand_error=error)
    return compare(out, expected.expected, expected.magnitude, dtype, **plan)


def _one(problem: Chain) -> Chain:
    return Chain(1, *(getattr(problem, name) for name in tuple(Chain.__dataclass_fields__)[1:]))


def _first(inputs: Inputs) -> Inputs:
    return Inputs(inputs.x[:1], inputs.weight, inputs.bias, inputs.multiplier, inputs.sizes)


@cache
def _lands(k: int, size: int, out: int, stride: int, padding: int, dilation: int, start: bool, end: bool) -> Tensor:
    """[k, size]: 1 where kernel index and input index meet inside the output, past its start or end too if that is
    forgotten."""
    landing = torch.arange(size) * stride - padding + torch.arange(k)[:, None] * dilation
    return (((landing >= 0) | start) & ((landing < out) | end)).double()


def banded(
    problem: Chain, inputs: Inputs, *, absolute: bool = False, forgotten: tuple[str, ...] = ()
) -> NDArray[np.float64]:
    """The chain in float64 by sums of bands. forgotten: sides of SIDES at which nothing is cropped, as by mistake."""
    assert inputs.weight is not None
    make: Any = torch.abs if absolute else (lambda value: value)
    # On the CPU: the truth does not rest on the card that is judged.
    x, weight = make(inputs.x.cpu().double()), make(inputs.weight.cpu().double())
    rows, columns = (
        _lands(
            problem.kernel[axis],
            (problem.h, problem.w)[axis],
            problem.out_size(axis),
            problem.stride[axis],
            problem.padding[axis],
            problem.dilation[axis],
            *(side in forgotten for side in SIDES[2 * axis : 2 * axis + 2]),
        )
        for axis in (0, 1)
    )
    groups = problem.groups
    sums = torch.einsum("kh,nchw,lw->nckl", rows, x, columns)
    sums = sums.reshape(problem.n, groups, -1, *problem.kernel)
    weight = weight.reshape(groups, -1, problem.c_out // groups, *problem.kernel)
    out = torch.einsum("ngckl,gcokl->ngo", sums, weight).reshape(problem.n, problem.c_out) / problem.out_area
    if inputs.bias is not None:
        out = out + make(inputs.bias.cpu().double())
    multiplier = torch.as_tensor(inputs.multiplier, dtype=torch.float64, device="cpu")
    return (make(multiplier) * out[:, :, None, None]).numpy()
