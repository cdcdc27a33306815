"""What a kernel set prepares for a call: its launches and the workspace they need.

Both kernel sets take the same arguments in the same order, so what happens between tensors and
launches is written once (runtime/execute.py) and served by either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from runtime.layout import Layout

CPU = torch.device("cpu")
"""To compare with: torch makes a string anew whenever it is asked for the type of a device."""


class Launch(Protocol):
    """A kernel with its code, grid and block fixed. Pointers are given as tensors."""

    @property
    def grid(self) -> tuple[int, int]: ...

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None: ...

    def load(self, device: torch.device) -> None: ...


@dataclass(frozen=True)
class TailCall:
    """multiply_gap with `partials` accumulators and `counters` zeros (none where one block holds a
    plane), or, with `flat`, multiply_gap_flat, which takes fewer arguments."""

    layout: Layout
    multiply_gap: Launch
    partials: int
    counters: int
    depth: int
    """Longest chain of additions behind one output."""
    flat: bool = False


@dataclass(frozen=True)
class ChainCall:
    """Either band_sums_contract (where one launch serves), or band_sums, then contract; the last block of
    each finishes, with so many accumulators of its own and zeroed counters."""

    layout: Layout
    band_sums: Launch
    contract: Launch
    band_sums_contract: Launch | None
    partials: int
    counters: int
    band_partials: int
    band_counters: int
    contract_partials: int
    contract_counters: int
    depth: int
    """Longest chain of additions behind one output, whichever way it is made."""


@dataclass(frozen=True)
class BackwardCall:
    """expand, then band_fill, make dx; weight_grad makes dweight from the saved band sums."""

    layout: Layout
    expand: Launch
    band_fill: Launch
    weight_grad: Launch


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in itself, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_grid(grid: tuple[int, int]) -> None:
    """Refuse what CUDA cannot launch. Raises ValueError."""
    if grid[0] >= 2**31 or grid[1] >= 2**16:
        raise ValueError(f"sizes: expected a grid within CUDA's 2**31 - 1 x 65535 blocks, they need {grid}")
