"""Judges from outside: PyTorch's own test shapes, and exact sums on data that is hard to add up."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import convgap
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.mutants.score import trial
from harness.numerics.budget import compare
from harness.numerics.depth import depth
from reference.problem import Chain, Tail
from tests.usable import require

# The shapes that torch/testing/_internal/common_methods_invocations.py draws its conv_transpose2d samples
# with (torch 2.11): x, weight, whether there is a bias, and the sizes that are not torch's defaults.
TORCH_SAMPLES: tuple[tuple[tuple[int, ...], tuple[int, ...], bool, dict], ...] = (
    ((1, 3, 4, 4), (3, 3, 3, 3), True, {"stride": (2, 2), "padding": (2, 2), "output_padding": (1, 1)}),
    (
        (2, 2, 4, 4),
        (2, 2, 4, 5),
        True,
        {"stride": (3, 2), "padding": (1, 2), "output_padding": (2, 3), "groups": 2, "dilation": (4, 4)},
    ),
    (
        (1, 1, 4, 5),
        (1, 1, 4, 3),
        True,
        {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1), "dilation": (2, 3)},
    ),
    ((1, 1, 4, 3), (1, 2, 3, 4), False, {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1)}),
    ((2, 4, 4, 4), (4, 1, 3, 3), False, {"groups": 4}),
    ((1, 2, 5, 5), (2, 4, 3, 3), False, {}),
)


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", convgap.BACKENDS)
@pytest.mark.parametrize("sample", range(len(TORCH_SAMPLES)))
def test_shapes_of_pytorchs_own_tests(
    sample: int, backend: str, dtype: str, batched: bool, device: torch.device
) -> None:
    require(backend, device)
    x, weight, bias, sizes = TORCH_SAMPLES[sample]
    n = x[0] if batched else 1
    kernel, c_out = (weight[2], weight[3]), weight[1] * sizes.get("groups", 1)
    chain = Chain(n, x[1], c_out, x[2], x[3], kernel, **sizes, bias=bias)
    t = trial(Case(f"torch/{sample}", chain, "PyTorch's own", dtype=dtype, values="normal"), device.type)
    given = t.inputs if batched else replace(t.inputs, x=t.inputs.x[0])
    answer = given.call(convgap, backend=backend)
    found = compare(
        answer if batched else answer[None],
        t.expected.expected,
        t.expected.magnitude,
        dtype,
        **t.plan(backend),
    )  # pyright: ignore[reportArgumentType]
    assert found.passed, found.message


def hard(kind: str, seed: int) -> np.ndarray:
    """[2, 3, 33, 29] float32 whose planes' sums are far below their terms."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((2, 3, 33, 29))
    if kind == "scales":
        y *= 10.0 ** rng.integers(-12, 13, y.shape)
    elif kind == "pairs":
        flat = y.reshape(6, -1)
        flat[:, 1::2] = -flat[:, :-1:2] * (1 + 2.0**-20)
        flat *= 1e6
    return y.astype(np.float32)


@pytest.mark.parametrize("backend", convgap.BACKENDS)
@pytest.mark.parametrize("kind", ["scales", "pairs"])
@pytest.mark.parametrize("seed", range(3))
def test_tail_against_exactly_rounded_sums(kind: str, seed: int, backend: str, device: torch.device) -> None:
    # math.fsum rounds once, whatever the condition of the sum: no oracle of the project has a part in this.
    require(backend, device)
    y = hard(kind, seed)
    planes = y.reshape(6, -1).astype(np.float64)
    area = planes.shape[1]
    exact = np.array([math.fsum(plane) / area for plane in planes]).reshape(2, 3, 1, 1)
    magnitude = np.array([math.fsum(abs(plane)) / area for plane in planes]).reshape(2, 3, 1, 1)
    assert (magnitude > 10 * abs(exact)).any()
    given = torch.from_numpy(y).to(device)
    answer = convgap.multiply_gap(given, 1.0, backend=backend)
    shape = Tail(*y.shape)  # pyright: ignore
    longest = depth(backend, shape, given.dtype, given.stride(), given.data_ptr())
    found = compare(answer, exact, magnitude, "float32", longest)
    assert found.passed, found.message


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_depth_counts_the_longest_chain(backend: str, device: torch.device) -> None:
    """2^24 swallows every 1 that is added to it alone, so that the error is the length of a thread's own chain."""
    require(backend, device)
    # Planes that stay whole, of as many elements as one program reads.
    y = torch.zeros((1, 128, 256, 256), device=device)
    y[:, 0] = 1
    y[:, 0, 0, 0] = 2.0**24
    exact = y.double().mean((2, 3), keepdim=True).cpu().numpy()
    answer = convgap.multiply_gap(y, 1.0, backend=backend)
    longest = depth(backend, Tail(1, 128, 256, 256), y.dtype, y.stride(), y.data_ptr())
    found = compare(answer, exact, exact, "float32", longest)
    assert found.passed, found.message
    assert found.worst > 0.5, "the chain is what makes the error"


def test_a_witness_can_condemn() -> None:
    inputs: Inputs = make_inputs(Case("tail/witness", Tail(2, 3, 33, 29), "a wrong sum"), "cpu")
    y = inputs.x.numpy().reshape(6, -1).astype(np.float64)
    exact = np.array([math.fsum(plane) / y.shape[1] for plane in y]).reshape(2, 3, 1, 1)
    right = convgap.multiply_gap(inputs.x, 1.0, backend="torch")
    assert compare(right, exact, exact, "float32", 30).passed
    assert not compare(right * (1 + 1e-5), exact, exact, "float32", 30).passed


@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_the_page_says_the_depth_at_the_headline(backend: str) -> None:
    rows = (Path(__file__).parents[3] / "docs" / "numerics.md").read_text().splitlines()
    name = "torch, on a GPU" if backend == "torch" else backend
    (row,) = (row for row in rows if row.startswith(f"| {name} |"))
    (case,) = select(["chain/headline"])
    assert re.findall(r"\d+", row.split("|")[3])[0] == str(depth(backend, case.problem, torch.float32))
