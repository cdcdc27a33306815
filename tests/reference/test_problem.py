"""Sizes, bands and bytes against brute force over every element and tap, and against torch."""

from itertools import product
from random import Random

import pytest
import torch
import torch.nn.functional as F

from harness.cases.case import random_chain
from harness.cases.catalogue import EDGE, GRID, HEADLINE, MODELS
from reference.problem import Chain, Tail, band, distinct_bands

RANDOM = [random_chain(Random(seed)) for seed in range(200)]
SMALL = [
    case.small().problem for case in (*HEADLINE, *GRID, *MODELS, *EDGE) if not case.gpu_only and case.op == "chain"
]


def seen_rows(chain: Chain, axis: int, k: int) -> list[int]:
    """Rows (or columns) that kernel index k sends inside the output, one by one."""
    size, out = (chain.h, chain.w)[axis], chain.out_size(axis)
    s, p, d = chain.stride[axis], chain.padding[axis], chain.dilation[axis]
    return [h for h in range(size) if 0 <= h * s - p + k * d < out]


def test_band_is_the_set_of_rows_that_land_inside() -> None:
    # All small parameters: sizes to 6, outputs to 9, stride to 4, padding to 6, dilation to 3.
    for k, size, out, s, p, d in product(range(4), range(1, 7), range(1, 10), range(1, 5), range(7), range(1, 4)):
        lo, hi = band(k, size, out, s, p, d)
        inside = [h for h in range(size) if 0 <= h * s - p + k * d < out]
        assert list(range(lo, hi)) == inside, (k, size, out, s, p, d)


@pytest.mark.parametrize("chain", SMALL + RANDOM, ids=str)
def test_bands_cover_and_core(chain: Chain) -> None:
    for axis in (0, 1):
        bands = chain.bands(axis)
        rows = [seen_rows(chain, axis, k) for k in range(chain.kernel[axis])]
        assert [list(range(*b)) for b in bands] == rows
        assert chain.covered(axis) == len(set().union(*rows))
        core = range(bands[0][0], bands[-1][1])
        assert all(set(core) <= set(r) for r in rows)
        assert sorted(bands, reverse=True, key=lambda b: b[0]) == list(bands)
        assert sorted(bands, reverse=True, key=lambda b: b[1]) == list(bands)


@pytest.mark.parametrize("chain", SMALL + RANDOM, ids=str)
def test_distinct_bands_are_the_bands_of_their_taps(chain: Chain) -> None:
    for axis in (0, 1):
        size, distinct = (chain.h, chain.w)[axis], chain.distinct(axis)
        bands = distinct.at(size)
        assert list(distinct.before) == sorted(distinct.before, reverse=True)
        assert list(distinct.after) == sorted(distinct.after)
        assert len(distinct.taps) == len(distinct) + 1 and len(set(zip(distinct.before, distinct.after))) == len(bands)
        for k in range(chain.kernel[axis]):
            b = distinct.of(k)
            assert distinct.taps[b] <= k < distinct.taps[b + 1]
            assert list(range(*bands[b])) == seen_rows(chain, axis, k)


def test_distinct_bands_of_known_kernels() -> None:
    count = {  # kernel, stride, padding, output padding, dilation -> bands along one axis
        (3, 2, 1, 1, 1): 2,
        (4, 2, 1, 0, 1): 3,
        (4, 1, 0, 0, 1): 1,
        (64, 32, 0, 0, 1): 1,
        (9, 4, 4, 3, 1): 3,
    }
    assert {sizes: len(distinct_bands(*sizes)) for sizes in count} == count


@pytest.mark.parametrize("chain", SMALL + RANDOM, ids=str)
def test_sizes_are_torchs(chain: Chain) -> None:
    y = F.conv_transpose2d(
        torch.empty(chain.in_shape, device="meta"),
        torch.empty(chain.weight_shape, device="meta"),
        None,
        chain.stride,
        chain.padding,
        chain.output_padding,
        chain.groups,
        chain.dilation,
    )
    assert tuple(y.shape) == chain.conv_shape
    assert (*y.shape[:2], 1, 1) == chain.out_shape


def test_compulsory_bytes_by_hand() -> None:
    # Headline: every row is in some band; x 16*64*128*128, weight 64*128*9, bias 128, out 16*128.
    assert HEADLINE[0].problem.compulsory_bytes(4) == 4 * (16_777_216 + 73_728 + 128 + 2_048)
    # Kernel 1, padding 1: the outermost rows and columns are never read; no bias.
    cropped = Chain(2, 3, 5, 4, 6, (1, 1), padding=(1, 1), bias=False)
    assert cropped.compulsory_bytes(2) == 2 * (2 * 3 * (2 * 4) + 3 * 5 + 2 * 5)
    assert Tail(2, 3, 4, 5).compulsory_bytes(8) == 8 * (120 + 6)


def test_covered_counts_overlap_once_and_gaps_not_at_all() -> None:
    # Kernel 2, dilation 6, stride 2, padding 3 over 8 rows gives Hout = 15 - 6 + 6 = 15.
    assert Chain(1, 1, 1, 8, 8, (2, 2), (2, 2), (3, 3), dilation=(6, 6)).bands(0) == ((2, 8), (0, 6))
    # Padding so deep that only rows 4, 5 (tap 0) and 0, 1 (tap 1) remain of 6: two rows lie in a gap.
    gap = Chain(1, 1, 1, 6, 6, (2, 1), padding=(4, 0), dilation=(4, 1))
    assert gap.bands(0) == ((4, 6), (0, 2))
    assert gap.covered(0) == 4
