"""How the products of an output are cut in slices. Nothing here depends on the batch: the slices fix an
answer's bits."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from reference.problem import Chain
from triton_impl import constants as c


@dataclass(frozen=True)
class Slices:
    """BCO outputs of a program, the products of which are cut in `slices` shares of `share` channels, or of
    `share` (channel, tap) pairs where taps are not folded."""

    BCO: int
    share: int
    slices: int


def fold_channels(dtype: torch.dtype) -> int:
    """Channels of one step of a product."""
    return c.CHANNELS


def product_slices(problem: Chain, BCO: int = c.OUTPUTS) -> Slices:
    """Slices of channels, in whole steps."""
    return _cut(problem, BCO, problem.c_in // problem.groups, c.CHANNELS, c.SLICES)


def tap_slices(problem: Chain) -> Slices:
    """Slices of (channel, tap) pairs, in whole steps."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    return _cut(problem, c.TAP_OUTPUTS, length, c.TAP_STEP, c.TAP_SLICES)


def _cut(problem: Chain, BCO: int, length: int, step: int, most: int) -> Slices:
    blocks = problem.groups * ceil(problem.c_out // problem.groups / BCO)
    steps = ceil(length / step)
    slices = max(1, min(steps, most, c.PROGRAMS // blocks))
    share = ceil(steps / slices) * step
    return Slices(BCO, share, ceil(length / share))
