"""The poison and its zones, and the examination that uses them, must notice what they are there for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import convgap
from harness.cases.case import LAYOUTS, Case
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.examine import Verdict, examine, same_bits, samples
from harness.numerics.guards import ZONE, Guards, surrounded, zeros_like
from harness.numerics.truth import truth
from reference.problem import Tail
from tests.usable import require

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CASE = Case("tail/guards", Tail(3, 4, 5, 6), "a small one", multiplier=2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_is_nan_between_zones(dtype: torch.dtype) -> None:
    with Guards() as guards:
        out = torch.empty((2, 3), dtype=dtype)
        assert out.isnan().all()
        assert len(guards._zones) == 2
        out.fill_(1)
        assert guards.broken() == []
        out.as_strided((1,), (1,), ZONE + 6).fill_(1)
        assert guards.broken() == [f"after (2, 3) of {dtype}"]
        out.as_strided((1,), (1,), ZONE - 1).fill_(1)
        assert guards.broken() == [f"before (2, 3) of {dtype}", f"after (2, 3) of {dtype}"]
    assert torch.empty is not guards._empty


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_outputs_and_workspaces_of_the_operator_are_guarded(backend: str, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(select(["chain/edge/prime"])[0], device)
    with Guards() as guards:
        inputs.call(convgap, backend=backend)
    assert len(guards._zones) >= 4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_surrounded_keeps_values_strides_and_alignment(layout: str, dtype: str) -> None:
    x = make_inputs(CASE, "cpu", dtype, layout).x
    for copy in (surrounded(x), surrounded(x.flip(0).flip(0).contiguous(), x)):
        assert torch.equal(copy, x)
        assert copy.stride() == x.stride()
        assert copy.data_ptr() % 16 == x.data_ptr() % 16
        assert copy.as_strided((ZONE,), (1,), copy.storage_offset() - ZONE).isnan().all()
    zeros = zeros_like(x)
    assert not zeros.any()
    assert (zeros.shape, zeros.stride()) == (x.shape, x.stride())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_sample_of_a_batch_keeps_strides_and_alignment(layout: str) -> None:
    inputs = make_inputs(CASE, "cpu", layout=layout)
    alone = samples(inputs, 2, 1)
    assert torch.equal(alone.x, inputs.x[2:])
    assert alone.x.stride() == inputs.x.stride()
    assert alone.x.data_ptr() % 16 == inputs.x.data_ptr() % 16


def test_bits_are_compared_and_not_values() -> None:
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.double())
    assert not same_bits(zero, zero[None])


def verdict(call: Callable[[Inputs], Tensor]) -> Verdict:
    inputs = make_inputs(CASE, "cpu")
    true = truth(CASE.problem, inputs)
    return examine(call, inputs, true, "float32", {"depth": 40, "floor": true.floor}, batch_invariant=True)


def right(inputs: Inputs) -> Tensor:
    return inputs.call(convgap, backend="torch")


def test_examination_passes_what_is_right() -> None:
    found = verdict(right)
    assert found.passed
    assert found.reason == ""
    assert 0 < found.units < 1


def reads_past_the_end(inputs: Inputs) -> Tensor:
    n, c, h, w = inputs.x.shape
    shifted = inputs.x.as_strided((n, c, h, w), (c * h * w, h * w, w, 1), inputs.x.storage_offset() + 1)
    return right(replace(inputs, x=shifted))


def writes_past_the_end(inputs: Inputs) -> Tensor:
    out = torch.empty(CASE.problem.out_shape)[: len(inputs.x)]
    out.copy_(right(inputs))
    out.as_strided((1,), (1,), ZONE + 12).fill_(0)
    return out


def writes_its_input(inputs: Inputs) -> Tensor:
    out = right(inputs)
    inputs.x[0, 0, 0, 0] = 0
    return out


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (reads_past_the_end, "nan"),
        (writes_past_the_end, "wrote outside its buffers"),
        (writes_its_input, "changed its argument x"),
    ],
)
def test_examination_says_what_is_wrong(call: Callable[[Inputs], Tensor], reason: str) -> None:
    found = verdict(call)
    assert not found.passed
    assert reason in found.reason
