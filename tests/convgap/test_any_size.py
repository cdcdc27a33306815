"""convgap.warmup_sizes: no size of the ranges that it was told needs code that is not there."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import convgap
from convgap import any_size
from convgap.explanation import prepared, warmed
from convgap.probe import kernel_set
from runtime import ahead
from tests.usable import require

GPU = torch.cuda.is_available()
SIDES = range(5, 200)
OPTIONS: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1}


def tensors(device: torch.device, h: int = 9, w: int = 12, layout: Any = torch.contiguous_format) -> list[Tensor]:
    x = torch.rand(2, 8, h, w, device=device).contiguous(memory_format=layout)
    return [t.requires_grad_() for t in (x, torch.rand(8, 6, 3, 3, device=device), torch.rand(6, device=device))]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "planes"])
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_representatives_have_every_kind(backend: str, layout: Any, device: torch.device) -> None:
    """1,000 random sizes and batches of every operator of a training step, and of a call: nothing is launched."""
    require(backend, device)
    calls: list[tuple[Any, ...]] = []
    kinds: set[Any] = set()
    sides = any_size.representatives(SIDES)

    def note(name: str, operator: str, args: tuple[Any, ...], out: Tensor) -> None:
        calls.append((operator, args, out))
        kinds.update(launch.kind for launch in any_size.kinds(sides, sides, name, operator, args, out))

    given = tensors(device, layout=layout)
    warmed(convgap.conv_transpose2d_multiply_gap, tuple(given), {"backend": backend, **OPTIONS}, note)
    for function, args in (
        (convgap.conv_transpose2d_multiply_gap, [t.detach() for t in given]),
        (convgap.multiply_gap, [given[0].detach(), 0.5]),
    ):
        warmed(function, tuple(args), {"backend": backend, **(OPTIONS if len(args) == 3 else {})}, note)
    assert {operator for operator, *_ in calls} == {
        "band_sums", "contract", "expand", "band_fill", "weight_grad", "chain", "multiply_gap",
    }  # fmt: skip
    rng = Random(7)
    kernels: Any = kernel_set(backend)
    for _ in range(1000):
        size = rng.randint(1, 300), rng.choice(SIDES), rng.choice(SIDES)
        for operator, args, out in calls:
            other = any_size.resized(operator, args, out, 8, size)
            for each in prepared(kernels, operator, *other):
                assert each.launch.kind in kinds, (operator, each.launch.kernel, size)
    # Of seven kernels: few enough to be compiled while a program starts.
    assert len(kinds) <= 150


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_an_empty_batch_stands_for_the_others(backend: str, device: torch.device) -> None:
    """What is prepared for it has no samples to be divided among programs."""
    require(backend, device)
    x, *rest = tensors(device)
    given = x[:0], *rest
    assert convgap.warmup_sizes(
        range(5, 9), range(5, 9), convgap.conv_transpose2d_multiply_gap, *given, backend=backend, **OPTIONS
    ).steps


def test_representatives_are_among_the_sizes() -> None:
    assert any_size.representatives(range(7, 8)) == [7]
    assert set(any_size.representatives(range(16, 65, 16))) == {16, 32, 48, 64}
    assert {64, 511, 512} <= set(any_size.representatives(range(64, 513)))


@pytest.mark.parametrize(
    ("heights", "widths", "error", "said"),
    [
        (range(9), range(1, 9), ValueError, "heights: expected a range of positive numbers"),
        (range(1, 9), range(9, 9), ValueError, "widths: expected a range of positive numbers"),
        ([1, 2], range(1, 9), TypeError, "heights: expected a range, got list"),
    ],
)
def test_bad_ranges(heights: Any, widths: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        convgap.warmup_sizes(heights, widths, torch.add, 1, 2)


@pytest.mark.skipif(not GPU, reason="compiles and loads code for a GPU")
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_nothing_is_compiled_afterwards(backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    require(backend, device)
    sides = range(20, 90)
    function = convgap.conv_transpose2d_multiply_gap
    convgap.warmup_sizes(sides, sides, function, *tensors(device, 32, 32), backend=backend, **OPTIONS)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("compiled after warmup_sizes")

    import cupy

    from cupy_impl import launch as cuda
    from triton_impl import launch as triton

    monkeypatch.setattr(triton, "_loaded", refuse)
    monkeypatch.setattr(cupy, "RawKernel", refuse)
    monkeypatch.setattr(ahead, "Thread", refuse)
    loaded = cuda._compiled.cache_info().misses
    rng = Random(3)
    for n, (h, w) in product((1, 3, 40), [(rng.choice(sides), rng.choice(sides)) for _ in range(70)]):
        given = tensors(device, h, w)
        given[0] = torch.rand(n, 8, h, w, device=device, requires_grad=True)
        torch.autograd.grad(function(*given, backend=backend, **OPTIONS).sum(), given)
    assert cuda._compiled.cache_info().misses == loaded
