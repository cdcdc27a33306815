"""The same bits: from run to run, whatever else is in the batch, wherever the weights lie."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import convgap
from convgap.selection import BACKENDS
from harness.cases.case import Case
from harness.cases.inputs import make_inputs
from reference.problem import Chain
from runtime import call as calls
from runtime.prepared import Prepared
from tests.convgap.answers import REPEATED
from tests.usable import require

GPU = torch.cuda.is_available()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_same_bits_from_run_to_run(backend: str, case: Case, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(case, device)
    first = inputs.call(convgap, backend=backend)
    for _ in range(3 if GPU else 1):
        assert torch.equal(inputs.call(convgap, backend=backend), first)


@pytest.mark.parametrize("backend", ["triton", "cupy"])
@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_same_bits_whatever_else_is_in_the_batch(backend: str, case: Case, device: torch.device) -> None:
    # Plain torch promises no such thing: how its sums are split depends on how many there are.
    require(backend, device)
    inputs = make_inputs(case, device)
    together = inputs.call(convgap, backend=backend)
    for n in range(case.problem.n):
        # Interpreted Triton is slow: of many samples the first and the last of each block of 16.
        if not GPU and backend == "triton" and case.problem.n > 16 and n % 16 not in (0, 15):
            continue
        alone = replace(inputs, x=inputs.x[n : n + 1]).call(convgap, backend=backend)
        assert torch.equal(alone[0], together[n])


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_columns_in_a_run_are_read_as_rows(backend: str, device: torch.device) -> None:
    """x stored [N, C, W, H] is the problem with rows and columns swapped, and its answer has the same bits."""
    require(backend, device)
    problem = Chain(2, 3, 4, 24, 40, (3, 2), (2, 1), (1, 0), (1, 0))
    case = Case("chain/swapped", problem, "axes differ in all", values="normal")
    given = make_inputs(case, device, layout="transposed")
    assert given.weight is not None
    swapped = replace(
        make_inputs(replace(case, problem=problem.swapped()), device),
        x=given.x.transpose(2, 3),
        weight=given.weight.transpose(2, 3).contiguous(),
        bias=given.bias,
    )
    assert swapped.x.is_contiguous()
    out = given.call(convgap, backend=backend)
    assert torch.equal(out, swapped.call(convgap, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weight_at_an_odd_address(backend: str, dtype: str, device: torch.device) -> None:
    """A view into other parameters. 4 x 4 taps would be read in accesses of 16 bytes."""
    require(backend, device)
    problem = Chain(3, 8, 40, 4, 4, (4, 4), (2, 2), (1, 1))
    inputs = make_inputs(Case("odd-weight", problem, "large weight", values="normal"), device, dtype)
    assert inputs.weight is not None
    flat = torch.empty(inputs.weight.numel() + 1, dtype=inputs.weight.dtype, device=device)
    odd = flat[1:].view(inputs.weight.shape).copy_(inputs.weight)
    assert odd.is_contiguous() and odd.data_ptr() % 16
    expected = inputs.call(convgap, backend=backend)
    assert torch.equal(replace(inputs, weight=odd).call(convgap, backend=backend), expected)


def test_products_read_from_aligned_addresses() -> None:
    problem = Chain(3, 8, 40, 4, 4, (4, 4), (2, 2), (1, 1), bias=False)
    seen: list[Tensor] = []
    launch: Any = SimpleNamespace(kind=0)
    kernels: Any = SimpleNamespace(prepare_contract=lambda *_: Prepared(launch, 0, 0, ""))
    for first in (0, 1):
        sums, weight = (torch.arange(first + n, dtype=torch.float32)[first:] for n in (3 * 72, 8 * 40 * 16))
        given = sums.view(problem.sums_shape), weight.view(problem.weight_shape)
        with mock.patch.object(calls, "_start", lambda made, device, stream, *a: seen.extend(a[:2])):
            calls.contract(kernels, problem, *given, None, 1.0, None, 0)
        assert [t.data_ptr() % 16 for t in seen] == [0, 0]
        for have, want in zip(seen, given, strict=True):
            assert torch.equal(have, want) and (have is want) == (first == 0)
        seen.clear()
