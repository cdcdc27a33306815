"""Every backend against the oracle: cases, dtypes, layouts, multipliers, and random problems."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

import convgap
from convgap.selection import BACKENDS
from harness.cases.case import LAYOUTS, Case, random_chain
from harness.cases.catalogue import select
from harness.cases.inputs import make_inputs
from harness.numerics.budget import compare
from harness.numerics.truth import truth
from reference.problem import Tail
from tests.convgap.answers import additions, check, known, named
from tests.usable import require

GPU = torch.cuda.is_available()
DTYPES = ("float32", "float16", "bfloat16", "float64")
# Planes past 2**31 elements have tests of their own.
CASES = [case if GPU else case.small() for case in select(["*"], gpu=GPU) if "past-2" not in case.name]
EDGE = [case.name for case in select(["edge"], gpu=False)]
# A kernel is compiled for each dtype, in about a second where it is not interpreted.
SWEPT = EDGE if not GPU else [
    "chain/edge/1x1", "chain/edge/prime", "chain/edge/no-band", "chain/edge/rectangular", "chain/edge/groups3",
    "chain/edge/many-channels", "chain/edge/multiplier-tensor", "chain/edge/subnormal", "chain/edge/nonfinite",
    "tail/edge/1x1", "tail/edge/prime", "tail/edge/many-planes", "tail/edge/multiplier-tensor",
    "tail/edge/subnormal", "tail/edge/nonfinite",
]  # fmt: skip
# Ordinary, cropped with strides that differ by axis, grouped, and the tail; no size divides a tile.
LAID_OUT = ("chain/edge/prime", "chain/edge/rectangular", "chain/edge/groups3", "tail/edge/prime")


# The uppermost parameter runs fastest: the backends share one truth.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("poisoned")
def test_case(backend: str, case: Case, device: torch.device) -> None:
    check(backend, case, device, case.dtype, case.layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", SWEPT)
@pytest.mark.usefixtures("poisoned")
def test_dtype(backend: str, name: str, dtype: str, device: torch.device) -> None:
    check(backend, named(name), device, dtype, "contiguous")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", LAID_OUT)
@pytest.mark.usefixtures("poisoned")
def test_layout(backend: str, name: str, layout: str, dtype: str, device: torch.device) -> None:
    # float16 has wider vectors.
    check(backend, named(name), device, dtype, layout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.usefixtures("poisoned")
def test_random_problem(backend: str, seed: int, device: torch.device) -> None:
    case = Case(
        f"ops-{seed}",
        random_chain(Random(7000 + seed), size=7),
        "drawn",
        values="normal",
        multiplier=(None, -1.7)[seed % 2],
    )
    check(backend, case, device, DTYPES[seed % 4], LAYOUTS[seed % len(LAYOUTS)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["chain/edge/7x7", "tail/edge/7x7", "chain/edge/multiplier-tensor"])
def test_unbatched(backend: str, name: str, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(named(name), device)
    one = replace(inputs, x=inputs.x[0])
    out = one.call(convgap, backend=backend)
    expected = replace(inputs, x=inputs.x[:1]).call(convgap, backend=backend)
    assert out.shape == expected.shape[1:]
    assert torch.equal(out, expected[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (2, 1, 1, 1), (2, 4, 1, 1)])
@pytest.mark.parametrize("name", ["chain/edge/batch1", "tail/edge/7x7"])
def test_multiplier_broadcasts(backend: str, name: str, shape: tuple[int, ...], device: torch.device) -> None:
    case = named(name)
    problem = replace(case.problem, n=2) if case.op == "chain" else Tail(2, 4, 7, 7)
    multiplier = torch.rand(shape, generator=torch.Generator().manual_seed(3)).to(device) - 0.5
    require(backend, device)
    case = replace(case, problem=problem)
    inputs = replace(make_inputs(case, device), multiplier=multiplier)
    true = truth(problem, inputs)
    out = inputs.call(convgap, backend=backend)
    result = compare(
        out, true.expected, true.magnitude, "float32", additions(backend, case, inputs),
        floor=true.floor, reference_depth=true.depth,
    )  # fmt: skip
    assert result.passed, result.message


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_multiplier_of_another_dtype_is_not_rounded(backend: str, dtype: str, device: torch.device) -> None:
    # Rounded to y's dtype first, the multiplier would be 1; as it is, it takes y to the next number, 2.
    require(backend, device)
    eps = torch.finfo(getattr(torch, dtype)).eps
    y = torch.full((1, 1, 2, 2), 2 - eps, dtype=getattr(torch, dtype), device=device)
    multiplier = torch.tensor(1 + 0.49 * eps, device=device)
    assert convgap.multiply_gap(y, multiplier, backend=backend).item() == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_strategy_tail_is_the_same_operator(backend: str, device: torch.device) -> None:
    # float64, where the framework's convolution has no TF32 to hide behind.
    require(backend, device)
    inputs, true = known(named("chain/edge/rectangular"), device, "float64", "contiguous")
    out = inputs.call(convgap, backend=backend, strategy="tail")
    assert out.flatten().tolist() == pytest.approx(true.expected.ravel().tolist(), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["chain/edge/prime", "tail/edge/prime"])
def test_inputs_are_not_written(backend: str, name: str, device: torch.device) -> None:
    require(backend, device)
    inputs, again = (make_inputs(named(name), device) for _ in range(2))
    inputs.call(convgap, backend=backend)
    assert torch.equal(inputs.x, again.x)
    if inputs.weight is not None and again.weight is not None:
        assert torch.equal(inputs.weight, again.weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_weight_and_bias(backend: str, device: torch.device) -> None:
    require(backend, device)
    inputs = make_inputs(named("chain/edge/rectangular"), device)
    expected = inputs.call(convgap, backend=backend)
    weight, bias = inputs.weight, inputs.bias
    assert weight is not None
    assert bias is not None
    strided = replace(inputs, weight=weight.mT.contiguous().mT, bias=torch.stack([bias, bias], 1)[:, 0])
    assert torch.equal(strided.call(convgap, backend=backend), expected)
