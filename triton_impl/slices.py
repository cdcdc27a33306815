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
