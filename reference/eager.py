"""The specification: the operator as one writes it in torch, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import Chain, Problem, Tail

Size = int | tuple[int, int]


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Float32 convolutions and matrix products in IEEE float32 (no TF32, no bfloat16 splits).

    The flags belong to the process, so hold this in one thread at a time. Only the `fp32_precision`
    attributes are used: reading the older `allow_tf32` ones after them raises.
    """
    backends: Any = torch.backends  # its members are made at run time: type checkers do not see them
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def multiply_gap(y: Tensor, multiplier: float | Tensor) -> Tensor:
    """Mean over H and W of multiplier * y: [N, C, H, W] -> [N, C, 1, 1]."""
    return (y * multiplier).mean(dim=(-2, -1), keepdim=True)


def conv_transpose2d_multiply_gap(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    multiplier: float | Tensor = 1.0,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """multiply_gap of the transposed convolution, whose whole output is stored in between.

    x [N, Cin, H, W], weight [Cin, Cout / groups, KH, KW], bias [Cout] -> [N, Cout, 1, 1]; the
    arguments mean what they mean in torch.nn.functional.conv_transpose2d.
    """
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return multiply_gap(y, multiplier)


def mean_depth(n: int) -> int:
    """Longest chain of additions when torch sums n numbers along one or two dimensions.

    Torch spreads a sum over at least 4 accumulators. On CUDA a thread adds at most 256 values before torch splits the
    sum further, and trees and last blocks join the parts in at most 36 more steps. If there are enough sums to fill
    the device, torch does not split one, and a thread adds n / 512 values. On a CPU there are four levels of at least
    16 terms each.
    """
    return max(0, min(n - 1, n // 4 + 8, n // 2048 + 100))


def taps(problem: Chain) -> int:
    """The largest number of kernel taps that meet in one element of the convolution output."""
    per_axis = [
        min(size, -(-k // (s // gcd(s, d))))
        for size, k, s, d in zip((problem.h, problem.w), problem.kernel, problem.stride, problem.dilation, strict=True)
    ]
    return per_axis[0] * per_axis[1]


def depth(problem: Problem) -> int:
    """Longest chain of additions: the convolution in any order, then the mean."""
    if isinstance(problem, Tail):
        return mean_depth(problem.h * problem.w)
    convolution = problem.c_in // problem.groups * taps(problem)
    return convolution + mean_depth(problem.out_size(0) * problem.out_size(1))


def stores(problem: Problem) -> int:
    """Roundings to the tensors' dtype on the way to one output: y, its multiple, the mean.

    torch's float16 convolution on CPU joins the taps of y in float16, so each tap counts.
    """
    return 2 if isinstance(problem, Tail) else 3 + taps(problem)
