"""Longest chain of additions behind one output of a backend: what its error budget is made of (docs/numerics.md)."""

from __future__ import annotations

from importlib import import_module

import torch

from harness.cases import operators
from reference.problem import Problem
from runtime.names import importable
from torch_impl import forward


def depth(
    backend: str,
    problem: Problem,
    dtype: torch.dtype,
    stride: tuple[int, ...] | None = None,
    address: int = 0,
) -> int:
    """Of "triton", "cupy" or "torch" for one call.

    stride   of the input, in elements; contiguous if not given
    address  of the input, in bytes; only its alignment matters
    """
    if backend == "torch":
        return forward.depth(problem)
    _, c, h, w = problem.in_shape
    where = stride or (c * h * w, h * w, w, 1), dtype, address % 16
    depths = import_module(importable(f"{backend}_impl.depth"))
    return getattr(depths, f"{operators.of(problem).name}_depth")(problem, *where)
