"""Compiled code does not depend on sizes: how many kinds of call there are, and that threads may interpret them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from reference.problem import Chain, Tail
from runtime.prepared import Prepared
from triton_impl import prepare
from triton_impl.launch import INTERPRETED, divisor

X2: dict[str, Any] = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1)}
DTYPE = torch.float32


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    _, c, h, w = shape
    return c * h * w, h * w, w, 1


def forward(problem: Chain, alignment: int = 0) -> Iterator[Prepared]:
    """What a call of the chain launches, in one launch and in two."""
    stride = contiguous(problem.in_shape)
    one = prepare.prepare_band_sums_contract(problem, stride, DTYPE, alignment, False)
    if one:
        yield one
    yield prepare.prepare_band_sums(problem, stride, DTYPE, alignment)
    yield prepare.prepare_contract(problem, DTYPE, False)


def backward(problem: Chain) -> Iterator[Prepared]:
    yield prepare.prepare_expand(problem, DTYPE)
    yield prepare.prepare_band_fill(problem, contiguous(problem.in_shape), DTYPE)
    yield prepare.prepare_weight_grad(problem, DTYPE)


def kinds(calls: Iterator[Prepared]) -> set[Any]:
    return {call.launch.kind for call in calls}


def test_a_thousand_sizes_of_one_kind() -> None:
    """Planes above a line of the tile, rows that accesses of 16 bytes fill: one kind of each kernel whatever the size,
    the batch and the plane's stride. `contract` has no tile."""
    rng, found = random.Random(0), set[Any]()
    for _ in range(1000):
        h, w = rng.randint(128, 512), 4 * rng.randint(224 // 4, 256 // 4)
        problem = Chain(rng.randint(1, 4), 64, 128, h, w, **X2)
        found |= kinds(forward(problem)) | kinds(backward(problem))
    names = sorted(kind.kernel.__name__ for kind in found)
    assert names == ["band_fill", "band_sums", "band_sums_contract", "contract", "expand", "weight_grad"]


@pytest.mark.parametrize("most, large", [(40, (100, 512)), (80, (1, 512))])
def test_any_sizes_are_few_kinds(most: int, large: tuple[int, int]) -> None:
    """Whatever the sizes: classes of plane and line (tiles.py) times widths of an access, and no more."""
    rng, found = random.Random(1), set[Any]()
    for _ in range(1000):
        problem = Chain(rng.choice((1, 2, 16, 200)), 64, 128, rng.randint(*large), rng.randint(*large), **X2)
        found |= kinds(forward(problem))
    assert len(found) <= most


def test_tails_of_any_size_are_few_kinds() -> None:
    rng, found = random.Random(2), set[Any]()
    for _ in range(1000):
        tail = Tail(rng.randint(1, 64), 128, rng.randint(1, 512), rng.randint(1, 512))
        found.add(prepare.prepare_multiply_gap(tail, contiguous(tail.in_shape), DTYPE, 0, False).launch.kind)
    assert len(found) <= 40


def test_no_bit_depends_on_the_batch() -> None:
    """The slices of an output's products, which fix the order of additions, are those of every batch size."""
    for problem in (Chain(1, 512, 64, 16, 16, **X2), Chain(1, 1024, 512, 4, 4, (4, 4), (2, 2), (1, 1))):
        sizes = []
        for n in (1, 16, 17, 300):
            launch: Any = prepare.prepare_contract(replace(problem, n=n), DTYPE, False).launch
            named = dict(zip([name for name, _ in launch.special.types][-len(launch.sizes) :], launch.sizes))
            sizes.append((named["share"], named["slices"]))
        assert len(set(sizes)) == 1


def test_divisors_divide() -> None:
    for d in (1, 2, 3, 7, 9, 49, 127, 129, 1000, 2**20 + 1, 2**30, 2**31 - 1):
        by = divisor(d)
        multiplier, shift = by & 0xFFFFFFFF, by >> 32
        for i in {0, 1, d - 1, d, d + 1, 5 * d - 1, 2**31 - 1}:
            if 0 <= i < 2**31:
                assert i * multiplier < 2**63
                assert i * multiplier >> shift == i // d


@pytest.mark.skipif(not INTERPRETED, reason="Triton compiles here")
def test_threads_interpret_one_at_a_time() -> None:
    """Triton's interpreter exchanges parts of triton.language while it runs."""
    from runtime import call

    x = torch.randn(2, 3, 4, 5)
    want = x.double().mean((2, 3), keepdim=True).float()
    failed: list[object] = []

    def work() -> None:
        for _ in range(25):
            try:
                assert torch.allclose(call.tail(prepare, x, 1.0, None, 0), want)
            except Exception as error:
                failed.append(error)

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
