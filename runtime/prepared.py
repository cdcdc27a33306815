"""What a kernel set prepares for a call: its launch, the workspace of that launch, and why it was chosen.

Both kernel sets take the same arguments in the same order, so what happens between tensors and launches is written
once (runtime/call.py) and served by either.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

CPU = torch.device("cpu")
"""To compare with: torch makes a string anew whenever it is asked for the type of a device."""


class Launch(Protocol):
    """A kernel with its code, its grid and its sizes fixed: one call's pointers and numbers are all that is missing."""

    @property
    def kernel(self) -> str:
        """Name of the kernel."""
        ...

    @property
    def kind(self) -> Hashable:
        """All that fixes the compiled code. Launches of equal kinds share it."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks along x and y."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """The kernel's last parameters, which follow from the sizes and strides of the call."""
        ...

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None:
        """Launch on `stream` (a raw handle) of `device`, with the kernel's pointers (as tensors) and numbers in the
        order of its parameters. The sizes are added."""
        ...

    def load(self, device: torch.device) -> None:
        """Compile and load the code, so that no launch of this kind has to."""
        ...

    @property
    def fixed(self) -> bool:
        """Whether its code is for just these sizes, not for any."""
        ...

    def fix(self, device: torch.device) -> None:
        """Compile the code for just these sizes, and launch that from now on: the same bits, fewer instructions."""
        ...

    def unfix(self) -> None:
        """Launch the code for any sizes again."""
        ...

    def handle(self, device: torch.device) -> tuple[int, int, int]:
        """(CUfunction as a number, threads of a block, bytes of dynamic shared memory), for a launcher in C. Loads the
        code. Raises RuntimeError where there is none to hand out: on the CPU."""
        ...


@dataclass(frozen=True)
class Prepared:
    """One launch and the workspace that it needs."""

    launch: Launch
    partials: int
    """Numbers of the accumulator's dtype for work that is cut in parts; 0 where it is not."""
    counters: int
    """int32 zeros, which the launch leaves at zero; 0 where it needs none."""
    why: str
    """One sentence without a full stop: why this kernel in this form."""


class Unlaunchable(ValueError):
    """Sizes that a kernel set cannot launch. Under backend "auto" the next backend serves such a call."""


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in itself, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_grid(grid: tuple[int, int]) -> None:
    """Refuse what CUDA cannot launch. Raises Unlaunchable."""
    if grid[0] >= 2**31 or grid[1] >= 2**16:
        raise Unlaunchable(f"sizes: expected a grid within CUDA's 2**31 - 1 x 65535 blocks, they need {grid}")
