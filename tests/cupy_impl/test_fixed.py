"""A launch fixed to its sizes gives the bits of the general one, by code made for just these sizes."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from cupy_impl import prepare
from cupy_impl.launch import Launch
from cupy_impl.signatures import signatures, with_constants
from harness.mutants.interpose import changed
from reference.problem import Chain, Tail
from runtime.prepared import Prepared
from tests.usable import require

# Bands and none, one launch and two, groups, one part and two, and a kernel of more taps than a thread holds.
CHAINS = (
    Chain(2, 3, 4, 9, 8, (3, 3), (2, 2), (1, 1), (1, 1)),
    Chain(3, 40, 70, 4, 5, (4, 4), (2, 2), (1, 1)),
    Chain(2, 4, 6, 40, 60, (3, 2), (1, 2), groups=2),
    Chain(2, 3, 4, 8, 8, (7, 7), (2, 2), (3, 3)),
)
TAILS = (Tail(2, 3, 40, 60), Tail(3, 5, 7, 7), Tail(1, 2, 130, 140))
CHANNELS_LAST = (0, 2, 3, 1)


def laid_out(shape: tuple[int, ...], last: bool) -> tuple[int, ...]:
    _, c, h, w = shape
    return (c * h * w, 1, w * c, c) if last else (c * h * w, h * w, w, 1)


def prepared(problem: Chain | Tail, last: bool) -> Iterator[Prepared | None]:
    """All launches of a problem, by a number as multiplier."""
    where = laid_out(problem.in_shape, last), torch.float32
    if isinstance(problem, Tail):
        yield prepare.prepare_multiply_gap(problem, *where, 0, False)
        return
    yield prepare.prepare_band_sums(problem, *where, 0)
    yield prepare.prepare_contract(problem, torch.float32, False)
    yield prepare.prepare_band_sums_contract(problem, *where, 0, False)
    yield prepare.prepare_expand(problem, torch.float32)
    yield prepare.prepare_band_fill(problem, *where)
    yield prepare.prepare_weight_grad(problem, torch.float32)


def operands(problem: Chain | Tail, made: Prepared, device: torch.device) -> tuple[list[Any], int]:
    """Pointers and numbers of a launch, in order, and which of them it writes to."""
    generator = torch.Generator().manual_seed(1)

    def numbers(count: int) -> Tensor:
        return (torch.rand(count, generator=generator) - 0.5).to(device)

    def empty(count: int) -> Tensor:
        return torch.full((count,), torch.nan, device=device)

    n, c, h, w = problem.in_shape
    x, counters = numbers(n * c * h * w), torch.zeros(max(1, made.counters), dtype=torch.int32, device=device)
    partials = empty(max(1, made.partials))
    if isinstance(problem, Tail):
        return [x, empty(n * c), partials, counters, x, 0, 0, 0.25], 1
    sums = problem.distinct(0), problem.distinct(1)
    count = n * c * len(sums[0]) * len(sums[1])
    c_out, taps = problem.out_shape[1], problem.kernel[0] * problem.kernel[1]
    weight, bias = numbers(c * c_out // problem.groups * taps), numbers(c_out)
    out = empty(n * c_out)
    scales = [0, 0, 0.25, 0.5]
    gradients = empty(weight.numel()), empty(c_out)
    return {
        "band_sums": ([x, empty(count), partials, counters], 1),
        "contract": ([numbers(count), weight, bias, out, partials, counters, x, *scales], 3),
        "band_sums_contract": ([x, weight, bias, out, partials, counters, x, *scales], 3),
        "planes_contract": ([x, weight, bias, out, partials, counters, x, *scales], 3),
        "expand": ([numbers(n * c_out), weight, empty(count), partials, counters, c_out, 1, 0.25], 2),
        "band_fill": ([numbers(count), empty(n * c * h * w)], 1),
        "weight_grad": (
            [numbers(n * c_out), numbers(count), *gradients, partials, counters, c_out, 1, 0.25, 0.5, 1],
            2,
        ),
    }[made.launch.kernel]


def run(problem: Chain | Tail, made: Prepared, launch: Launch, device: torch.device) -> Tensor:
    arguments, written = operands(problem, made, device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    launch(device, stream, *arguments)
    return arguments[written]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("problem", [*TAILS, *CHAINS], ids=str)
def test_the_same_bits(problem: Chain | Tail, last: bool, device: torch.device) -> None:
    require("cupy", device)
    for made in filter(None, prepared(problem, last)):
        assert isinstance(made.launch, Launch)
        general, fixed = made.launch, copy(made.launch)
        fixed.fix(device)
        assert fixed.fixed and not general.fixed and fixed.kind != general.kind
        one, other = run(problem, made, general, device), run(problem, made, fixed, device)
        assert not one.isnan().any(), general.kernel
        assert torch.equal(one, other), general.kernel


def test_no_argument_reaches_fixed_code(device: torch.device) -> None:
    """What is a constant is not read from the arguments, and whoever would change it there is told."""
    require("cupy", device)
    made = prepare.prepare_multiply_gap(TAILS[0], laid_out(TAILS[0].in_shape, False), torch.float32, 0, False)
    assert isinstance(made.launch, Launch)
    fixed = copy(made.launch)
    fixed.fix(device)
    right = run(TAILS[0], made, fixed, device)
    with pytest.raises(ValueError, match="fixed to its own"):
        changed(fixed, sizes=(1,) * len(fixed.sizes))
    fixed.sizes = (1,) * len(fixed.sizes)
    assert torch.equal(right, run(TAILS[0], made, fixed, device))


def test_constants_move_no_line_and_keep_the_types() -> None:
    source = "typedef int t;\n__global__ void add(\n    float* x, t n,\n    long long s) {\n    x[n] = s;\n}\n"
    text = with_constants(source, "add", (7, -5))
    assert text.count("\n") == source.count("\n")
    assert "constexpr long long s = -5;" in text and "constexpr t n = 7;" in text
    assert next(signatures(text)).names == ("x", "given_n", "given_s")
    with pytest.raises(ValueError, match="function add of 4 parameters"):
        with_constants(source, "add", (1, 2, 3, 4))
    with pytest.raises(ValueError, match="function sub"):
        with_constants(source, "sub", (1,))
