"""Memory that a launch works in: partial sums, and counters by which the last block knows that it is the last.

Counters are zero before a launch and after it. A launch may share counters only with launches that the stream
orders before or after it. Eager calls therefore keep some per (device, stream). A captured call is replayed on any
stream at any time, so it gets counters of its own, for good. Both come from a slab, zeroed once per device by the
first eager call: memory that is kept may not come from the pool of a graph that is being warmed up or captured.
Only where there is no slab yet, or it is used up, does a call zero its own.
"""

from __future__ import annotations

from threading import Lock

import torch

from runtime.prepared import CPU, Prepared, accumulator

SLAB = 1 << 20
"""Counters on each device: 4 MiB."""

LEAST = 4096
"""Counters that a stream takes at least, so that it seldom has to take more."""

_lock = Lock()
_kept: dict[tuple[int, int], torch.Tensor] = {}
_slabs: dict[int, tuple[torch.Tensor, int]] = {}


def of(made: Prepared, output: torch.Tensor, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(partials, counters) of a launch that writes `output`, which stands for what the launch does not need."""
    if not made.counters and not made.partials:
        return output, output
    partials = output
    if made.partials:
        partials = torch.empty(made.partials, dtype=accumulator(output.dtype), device=output.device)
    return partials, take(made.counters, output.device, stream) if made.counters else output


def take(count: int, device: torch.device, stream: int) -> torch.Tensor:
    """int32 zeros, at least `count` of them, for one launch on `stream` (a raw handle) of `device`."""
    if device == CPU:
        return torch.zeros(count, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        return _cut(count, device)
    kept = _kept.get((device.index, stream))
    if kept is None or kept.numel() < count:
        with _lock:
            if device.index not in _slabs:
                slab = torch.zeros(SLAB, dtype=torch.int32, device=device)
                # Launches on every stream rely on these zeros; this happens once per device.
                torch.cuda.synchronize(device)
                _slabs[device.index] = slab, 0
        kept = _kept[device.index, stream] = _cut(max(count, LEAST), device)
    return kept


def _cut(count: int, device: torch.device) -> torch.Tensor:
    """Counters of the slab that nobody else gets, or fresh zeros."""
    with _lock:
        slab, used = _slabs.get(device.index, (None, 0))
        if slab is None or used + count > SLAB:
            return torch.zeros(count, dtype=torch.int32, device=device)
        _slabs[device.index] = slab, used + count
        return slab[used : used + count]
