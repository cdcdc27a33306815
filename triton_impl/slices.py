"""How the products of an output are dealt out: in slices, which fix an answer's bits and do not depend on the batch,
and in blocks of samples, on which no bit depends."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from reference.problem import Chain
from runtime.layout import pow2_at_least
from runtime.prepared import Prepared, accumulator
from triton_impl import constants as c
from triton_impl.launch import Launch, divided


@dataclass(frozen=True)
class Slices:
    """BCO outputs of a program, the products of which are cut in `slices` shares of `share` channels, or of
    `share` (channel, tap) pairs where taps are not folded."""

    BCO: int
    share: int
    slices: int


def product_slices(problem: Chain) -> Slices:
    """Slices of channels, in whole steps: for as many programs as fill a card, whatever the batch."""
    channels = problem.c_in // problem.groups
    blocks = problem.groups * ceil(problem.c_out // problem.groups / c.OUTPUTS)
    steps = ceil(channels / c.CHANNELS)
    slices = max(1, min(steps, c.SLICES, c.PROGRAMS // blocks))
    share = ceil(steps / slices) * c.CHANNELS
    return Slices(c.OUTPUTS, share, ceil(channels / share))


def tap_slices(problem: Chain) -> Slices:
    """Slices of (channel, tap) pairs, in whole steps: what a program loads together, or several times that."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    step = c.TAP_STEP * c.TAP_STEPS
    most = c.SLICES if length <= c.LONG_PRODUCT else c.TAP_SLICES
    share = step * ceil(length / (step * most))
    return Slices(c.OUTPUTS, share, ceil(length / share))


def folds(problem: Chain) -> bool:
    """Whether `contract` adds the taps of a band before the product."""
    taps = problem.kernel[0] * problem.kernel[1]
    channels, outputs = problem.c_in // problem.groups, problem.c_out // problem.groups
    programs = problem.groups * ceil(channels / c.CHANNELS) * ceil(outputs / c.OUTPUTS)
    return taps <= (c.MANY_TAPS if programs >= c.ENOUGH_PROGRAMS else c.FOLD_TAPS)


def taps_at_once(problem: Chain, held: int = c.FOLD_TAPS) -> int:
    """Taps of a band that are loaded together, a power of two, or 0 for kernels of up to `held` taps, which a program
    holds whole."""
    if problem.kernel[0] * problem.kernel[1] <= held:
        return 0
    rows, columns = problem.distinct(0).taps, problem.distinct(1).taps
    down = max(rows[i + 1] - rows[i] for i in range(len(rows) - 1))
    across = max(columns[i + 1] - columns[i] for i in range(len(columns) - 1))
    return min(c.TAPS_AT_ONCE, pow2_at_least(down * across))


def gradient_slices(count: int, programs: int, least: int) -> tuple[int, int]:
    """Terms of a slice, in whole steps, and slices of sums of `count` terms: as many as fill a card where `programs`
    are too few, of `least` steps or more."""
    steps = max(1, ceil(count / c.CHANNELS))
    share = ceil(steps / max(1, min(steps // least, c.GRADIENT_SLICES, c.PROGRAMS // programs)))
    return share * c.CHANNELS, ceil(steps / share)


def samples(problem: Chain, cut: Slices) -> int:
    """Samples of a program: many where few at a time would be more programs than fill a card. No bit depends
    on it."""
    blocks = problem.groups * ceil(problem.c_out // problem.groups / cut.BCO)
    programs = ceil(problem.n / c.FEW_SAMPLES) * blocks * cut.slices
    return c.MANY_SAMPLES if programs > c.PROGRAMS else c.FEW_SAMPLES


def slices_at_once(BN: int, BCO: int, warps: int, dtype: torch.dtype) -> int:
    """Slices that the last program of a product loads together: as many as it has registers for."""
    each = max(1, BN * BCO // (c.WARP * warps)) * (accumulator(dtype).itemsize // 4)
    return max(1, min(c.SLICES, c.SLICE_REGISTERS // each))


def extents(problem: Chain) -> dict[str, int]:
    """Samples, groups, planes of a group, and rows and columns of x, by parameter."""
    groups = problem.groups
    channels = {"G": groups, "CI": problem.c_in // groups, "CO": problem.c_out // groups}
    return {"N": problem.n, **channels, "H": problem.h, "W": problem.w}


def product_sizes(problem: Chain, cut: Slices, BN: int) -> dict[str, int]:
    """Sizes that a product takes, by parameter."""
    n_blocks = ceil(problem.n / BN)
    blocks = ceil(problem.c_out // problem.groups / cut.BCO)
    return {
        **extents(problem),
        "share": cut.share,
        **divided(n_blocks=n_blocks, slices=cut.slices, blocks=blocks),
    }


def sliced(special: Any, sizes: tuple[int, ...], tiles: int, slices: int, size: int, why: str) -> Prepared:
    """The launch of a product of `tiles` tiles of `size` numbers, each the sum of `slices` slices."""
    cut = tiles if slices > 1 else 0
    return Prepared(Launch(special, (tiles * slices, 1), sizes), cut * slices * size, cut, why)
