"""Whether a chain is better in one launch, by one of two kernels, than in two."""

from __future__ import annotations

from math import ceil

from reference.problem import Chain
from runtime.layout import Layout, pow2_at_least
from triton_impl import constants as c
from triton_impl import tiles


def own_fits(problem: Chain, layout: Layout, own: tiles.Tile) -> bool:
    """Whether each program contracts its own band sums and the last one of a sample finishes.

    That reads the weights of a plane once per sample and part, so they must be small beside the part (a half:
    L2 gives that away), fit the registers, and leave few rows to the finish. `own` is a tile of one plane;
    where neighbouring planes share lines, that would waste them.
    """
    taps = problem.kernel[0] * problem.kernel[1]
    ci, co = problem.c_in // problem.groups, problem.c_out // problem.groups
    return (
        layout.unit != "planes"
        and co * taps * 2 <= own.rows * own.cols
        and pow2_at_least(co) * pow2_at_least(taps) <= c.OWN_WEIGHTS * own.warps
        and ci * own.parts * co <= c.OWN_ROWS
    )


def planes_fit(problem: Chain) -> bool:
    """Whether planes are so small that band sums need not leave a program: it reads them again for each block
    of outputs."""
    plane = problem.h * problem.w
    blocks = ceil(problem.c_out // problem.groups / c.OUTPUTS)
    short = problem.kernel[0] * problem.kernel[1] <= c.FOLD_TAPS
    return short and plane <= c.SMALLEST_PLANE and blocks * plane <= c.REREAD
