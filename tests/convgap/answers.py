"""Answers of a backend against the oracle, and the calls that are made again and again."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

import convgap
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import compare
from harness.numerics.depth import depth
from harness.numerics.examine import guarded
from harness.numerics.truth import Truth, truth
from reference.problem import Chain, Tail
from tests.usable import TRITON, require


# One of each way through the kernels: planes shared by a block, a plane in several parts (more than
# 64 KiB), channels_last, one launch and two.
def x2(n: int, c_in: int, c_out: int, h: int, w: int) -> Chain:
    return Chain(n, c_in, c_out, h, w, (3, 3), (2, 2), (1, 1), (1, 1))


REPEATED = [
    Case("repeat/tail", Tail(5, 6, 7, 7), "planes share a block", values="normal"),
    Case("repeat/tail-parts", Tail(2, 1, 140, 130), "a plane in parts", values="normal"),
    Case("repeat/tail-channels_last", Tail(3, 8, 6, 5), "columns", layout="channels_last", values="normal"),
    Case("repeat/chain", x2(5, 4, 3, 12, 12), "small weight", values="normal"),
    Case("repeat/chain-parts", x2(2, 1, 2, 140, 130), "a plane in parts", values="normal"),
    Case("repeat/chain-wide", x2(3, 8, 40, 4, 4), "large weight", values="normal"),
    Case("repeat/chain-many", x2(33, 8, 70, 3, 3), "other blocks than for few samples", values="normal"),
    pytest.param(
        Case(
            "repeat/chain-many-k4",
            Chain(33, 8, 70, 3, 3, (4, 4), (2, 2), (1, 1)),
            "wide loads",
            values="normal",
        ),
        marks=TRITON.marks,
    ),
    Case("repeat/chain-channels_last", x2(3, 8, 3, 8, 8), "columns", layout="channels_last", values="normal"),
]


@lru_cache(maxsize=4)
def known(case: Case, device: torch.device, dtype: str, layout: str) -> tuple[Inputs, Truth]:
    """Inputs and their truth, which the backends share; nobody writes to them."""
    inputs = make_inputs(case, device, dtype, layout)
    return inputs, truth(case.problem, inputs)


def check(backend: str, case: Case, device: torch.device, dtype: str, layout: str) -> None:
    require(backend, device)
    inputs, true = known(case, device, dtype, layout)
    inputs = guarded(inputs)
    out = inputs.call(convgap, backend=backend)
    result = compare(
        out, true.expected, true.magnitude, dtype, additions(backend, case, inputs),
        floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message
    assert out.is_contiguous()


def additions(backend: str, case: Case, inputs: Inputs) -> int:
    """The backend's longest chain of additions for these very inputs."""
    x = inputs.x
    return depth(backend, case.problem, x.dtype, x.stride(), x.data_ptr())


def named(name: str, **changes: object) -> Case:
    (case,) = select([name])
    return replace(case, **changes)  # pyright: ignore[reportArgumentType]
