"""Kinds of code are few, and sizes are no part of them; what no grid holds is launched in another shape or refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from cupy_impl import depth, prepare
from cupy_impl.launch import Code, Launch
from reference.problem import Chain, Tail
from runtime.prepared import Prepared, Unlaunchable

Stride = tuple[int, ...]


def contiguous(shape: tuple[int, ...], order: tuple[int, ...], gap: int = 0) -> Stride:
    """Strides of a tensor whose dimensions lie in memory in `order`, the last one innermost; its rows `gap` apart."""
    stride, step = [0] * 4, 1
    for axis in reversed(order):
        stride[axis] = step
        step *= shape[axis] + (gap if axis == order[-1] else 0)
    return tuple(stride)


LAYOUTS = {"contiguous": (0, 1, 2, 3), "channels_last": (0, 2, 3, 1), "transposed": (0, 1, 3, 2)}


def launches(problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int) -> Iterator[Prepared | None]:
    yield prepare.prepare_band_sums(problem, stride, dtype, alignment)
    yield prepare.prepare_contract(problem, dtype, True)
    yield prepare.prepare_band_sums_contract(problem, stride, dtype, alignment, True)
    yield prepare.prepare_expand(problem, dtype)
    yield prepare.prepare_band_fill(problem, stride, dtype)
    yield prepare.prepare_weight_grad(problem, dtype)


def random_sizes(rng: Random) -> tuple[int, int, int]:
    return rng.randint(1, 300), int(2 ** rng.uniform(0, 11)), int(2 ** rng.uniform(0, 11))


def random_strides(rng: Random, shape: tuple[int, ...]) -> tuple[Stride, int]:
    order = LAYOUTS[rng.choice([*LAYOUTS])]
    return contiguous(shape, order, rng.choice((0, 0, 1, 4))), rng.choice((0, 0, 4, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kinds_of_a_chain_are_few(dtype: torch.dtype) -> None:
    rng = Random(7)
    problem = Chain(1, 48, 80, 1, 1, (3, 3), (2, 2), (1, 1), (1, 1))
    kinds: dict[str, set[Code]] = defaultdict(set)
    for _ in range(1000):
        n, h, w = random_sizes(rng)
        now = replace(problem, n=n, h=h, w=w)
        for made in launches(now, *reversed_pair(random_strides(rng, now.in_shape), dtype)):
            if made:
                assert isinstance(made.launch, Launch)
                kinds[made.launch.kernel].add(made.launch.kind)
    # By layout, width of accesses, accesses in a round, threads; of products by the rows of a block.
    counts = {kernel: len(found) for kernel, found in kinds.items()}
    assert counts["contract"] <= 2 and counts["expand"] <= 2 and counts["weight_grad"] == 1, counts
    assert counts["planes_contract"] <= 30 and counts["band_fill"] <= 60, counts
    assert counts["band_sums"] <= 60 and counts["band_sums_contract"] <= 60, counts


def reversed_pair(pair: tuple[Stride, int], dtype: torch.dtype) -> tuple[Stride, torch.dtype, int]:
    return pair[0], dtype, pair[1]


def test_one_kind_serves_all_sizes_of_its_class() -> None:
    """1,000 random sizes and batches of one kind of call, images larger than a block: nothing new to compile."""
    rng = Random(11)

    def kinds() -> set[Code]:
        h, w = 4 * rng.randint(40, 120), 4 * rng.randint(40, 120)
        chain = Chain(rng.randint(17, 400), 48, 80, h, w, (3, 3), (2, 2), (1, 1), (1, 1))
        made = launches(chain, contiguous(chain.in_shape, LAYOUTS["contiguous"]), torch.float32, 0)
        return {one.launch.kind for one in made if one}  # pyright: ignore[reportReturnType]

    first = set[Code]().union(*(kinds() for _ in range(200)))
    later = set[Code]().union(*(kinds() for _ in range(800)))
    assert later <= first
    assert len(first) <= 30, len(first)


ROWS_OF_A_BLOCK = {"BM", "PN", "BLOCKS"}
"""What the batch may change: how many samples, or outputs, a block has, and how many blocks lie side by side."""


def test_no_bit_depends_on_the_batch() -> None:
    """500 random problems, small planes among them: every batch has the same kernels, steps, slices and tiles, by which
    additions are ordered."""
    rng, planes = Random(4), 0
    for _ in range(500):
        side = rng.choice((1, 2, 16, 60))
        h, w, k = rng.randint(1, side), rng.randint(1, side), rng.randint(1, 5)
        one = Chain(
            1,
            rng.choice((16, 100, 512)),
            rng.choice((3, 32, 64, 512)),
            h,
            w,
            (k, k),
            (2, 2),
            (k // 3, k // 3),
        )
        if min(one.out_size(0), one.out_size(1)) < 1:
            continue
        stride, found = contiguous(one.in_shape, LAYOUTS["contiguous"]), set[object]()
        for n in (1, 2, 17, 64, 300, 2000):
            chain, steps = replace(one, n=n), []
            for made in filter(None, launches(chain, stride, torch.float32, 0)):
                launch: Any = made.launch
                if launch.kernel != "weight_grad":  # whose additions go over the samples
                    kept = {name: value for name, value in launch.kind.constants if name not in ROWS_OF_A_BLOCK}
                    slice_ = launch.sizes[-9:-7] if launch.kernel in ("contract", "planes_contract") else ()
                    steps.append((launch.kernel, *kept.items(), *slice_))
                    planes += launch.kernel == "planes_contract"
            found.add(tuple(steps))
        assert len(found) == 1, one
    assert planes > 300


def test_contiguous_images_of_any_size_take_a_counted_number_of_kinds() -> None:
    """1,000 sizes from 8 to 300 of one head: all that a model of such images can ever wait for, kernel by kernel."""
    rng, kinds = Random(5), defaultdict[str, set[Code]](set)
    for _ in range(1000):
        n, h, w = rng.randint(1, 65), rng.randint(8, 300), rng.randint(8, 300)
        chain = Chain(n, 4, 6, h, w, (3, 3), (2, 2), (1, 1), (1, 1))
        for made in filter(None, launches(chain, (4 * h * w, h * w, w, 1), torch.float32, 0)):
            assert isinstance(made.launch, Launch)
            kinds[made.launch.kernel].add(made.launch.kind)
    counts = {kernel: len(found) for kernel, found in kinds.items()}
    # Of what streams: by its threads (128, 256, 512), whether planes begin aligned, accesses ahead (4, 8). band_fill:
    # by threads and the width of its stores. Planes of up to 256 elements: by loads and threads of a plane.
    most = {"band_sums": 10, "band_sums_contract": 9, "band_fill": 6, "planes_contract": 3}
    assert counts == most | {"contract": 1, "expand": 1, "weight_grad": 1}


def test_kinds_of_a_tail_are_few() -> None:
    rng, kinds = Random(3), set[object]()
    for _ in range(1000):
        n, h, w = random_sizes(rng)
        shape = n, rng.randint(1, 600), h, w
        stride, alignment = random_strides(rng, shape)
        kinds.add(prepare.prepare_multiply_gap(Tail(*shape), stride, torch.float32, alignment, False).launch.kind)
    assert len(kinds) <= 60, len(kinds)


def test_65536_groups_are_launched() -> None:
    chain = Chain(1, 65536, 65536, 3, 3, (2, 2), groups=65536)
    stride = contiguous(chain.in_shape, LAYOUTS["contiguous"])
    for made in launches(chain, stride, torch.float32, 0):
        assert made is None or (made.launch.grid[0] < 2**31 and made.launch.grid[1] == 1)


def test_more_blocks_than_a_grid_has_are_refused() -> None:
    with pytest.raises(Unlaunchable, match="blocks of multiply_gap"):
        prepare.prepare_multiply_gap(Tail(2**22, 2**10, 64, 64), (0, 0, 64, 1), torch.float32, 0, False)


def test_divisors() -> None:
    rng = Random(5)
    for _ in range(20_000):
        d = rng.choice((1, 2, 3, rng.randint(1, 2**31 - 1), rng.randint(1, 3000)))
        i = rng.choice((2**31 - 1, rng.randrange(2**31), min(2**31 - 1, d * rng.randint(1, 2**31 // d) - 1)))
        by = prepare.divisor(d)
        factor, shift = by & 0xFFFFFFFF, by >> 32
        assert 0 < factor < 2**32 and shift < 32
        assert (2 * i * factor >> 32) >> shift == i // d, (i, d)


def test_depth_grows_with_the_plane() -> None:
    """The longest chain of additions is never longer than all additions, and never shorter than a tree of them."""
    for h, w in ((1, 1), (7, 7), (64, 64), (127, 129), (512, 512)):
        tail, chain = Tail(2, 3, h, w), Chain(2, 3, 4, h, w, (3, 3), (2, 2), (1, 1), (1, 1))
        stride = contiguous(tail.in_shape, LAYOUTS["contiguous"])
        least = (h * w - 1).bit_length()
        assert least <= depth.tail_depth(tail, stride, torch.float32, 0) <= h * w + 32
        assert least + 4 <= depth.chain_depth(chain, stride, torch.float32, 0) <= h * w + 100
