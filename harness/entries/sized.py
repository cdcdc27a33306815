"""Code for just the sizes of a call, for a while: what convgap.specialize does for good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from convgap import fast
from runtime.prepared import Launch


@contextmanager
def fixed(launches: Sequence[tuple[Launch, torch.device]]) -> Iterator[None]:
    """Launches of just these sizes while this is entered; whoever else makes such a call meanwhile makes them too."""
    fast.forget()
    for launch, device in launches:
        launch.fix(device)
    try:
        yield
    finally:
        for launch, _ in launches:
            launch.unfix()
        fast.forget()
