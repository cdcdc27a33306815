"""What is wrong between a plan and its launches: other bands, other arguments of a kernel, another grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from harness.mutants.interpose import Run, changed, parameters, with_arguments
from reference.problem import Chain


def crop_forgotten(axis: int, side: int) -> Callable[[Chain], Chain]:
    """One side's bands reach to the edge of the plane. side 0: top or left, 1: bottom or right."""
    return lambda right: _uncropped(right, axis, side)


def _uncropped(right: Chain, axis: int, side: int) -> Chain:
    padding, more = list(right.padding), list(right.output_padding)
    if side == 0:
        # Without padding nothing lands before the output; its end must stay where it was.
        more[axis] -= padding[axis]
        padding[axis] = 0
    else:
        # So large that nothing lands beyond it.
        more[axis] += 1_000_000 + 100 * (right.h, right.w)[axis]
    return replace(right, padding=(padding[0], padding[1]), output_padding=(more[0], more[1]))


def no_crop(right: Chain) -> Chain:
    """Every band is the whole plane."""
    for axis, side in product((0, 1), repeat=2):
        right = _uncropped(right, axis, side)
    return right


def argument(name: str, change: Callable[[dict[str, Any]], Any], *kernels: str) -> Run:
    """Another value for one argument of those kernels that have it (or of the kernels given)."""

    def arguments(kernel: str, named: dict[str, Any]) -> None:
        if name in named and (not kernels or kernel in kernels):
            named[name] = change(named)

    return with_arguments(arguments)


def multiplier_strides_swapped(kernel: str, named: dict[str, Any]) -> None:
    if "mult_n" in named:
        named["mult_n"], named["mult_c"] = named["mult_c"], named["mult_n"]


def last_block_missing(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
    x, y = launch.grid
    if x > 1:
        changed(launch, grid=(x - 1, y))(device, stream, *arguments)


def finished_early(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
    """The counters start at 1, so that the last block but one takes itself for the last. The last one never comes: on a
    GPU it might be in time.

    What the workspace holds before a launch is nobody's promise. Here it is NaN, for it often holds the right sums of
    the call before. The counters are the mutant's own: others rely on theirs.
    """
    named = dict(zip(parameters(launch.kernel), arguments, strict=False))
    x, y = launch.grid
    # Where one block does all, the place of the counters holds something else.
    if "counters" in named and named["counters"].dtype == torch.int32:
        named["partials"].fill_(torch.nan)
        named["counters"] = torch.ones_like(named["counters"])
        launch = changed(launch, grid=(x - 1, y))
    launch(device, stream, *named.values())
