"""Zeroed counters for launches whose last block finishes the work and leaves the counters at zero.

A launch may share counters only with launches that the stream orders before or after it. Eager
calls therefore keep one set per (device, stream). A captured call is replayed on any stream at any
time, so it gets counters of its own, for good: from a slab zeroed beforehand, or, where no eager
call has made the slab yet or it is used up, from memory that the graph itself zeroes.
"""

from __future__ import annotations

from threading import Lock

import torch

SLAB = 1 << 20
"""Counters kept for captured calls on each device: 4 MiB, one per sample (or block of planes) and call."""

_lock = Lock()
_eager: dict[tuple[int, int], torch.Tensor] = {}
_slabs: dict[int, tuple[torch.Tensor, int]] = {}


def take(count: int, device: torch.device, stream: int) -> torch.Tensor:
    """int32 zeros, at least `count` of them, for one launch on `stream` (a raw handle) of `device`."""
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    index = device.index
    kept = _eager.get((index, stream))
    if torch.cuda.is_current_stream_capturing():
        return _take_for_capture(count, device)
    if kept is None or kept.numel() < count:
        with _lock:
            if index not in _slabs:
                slab = torch.zeros(SLAB, dtype=torch.int32, device=device)
                # Graphs on other streams rely on these zeros; this happens once per device.
                torch.cuda.synchronize(device)
                _slabs[index] = slab, 0
            kept = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
            _eager[index, stream] = kept
    return kept


def _take_for_capture(count: int, device: torch.device) -> torch.Tensor:
    with _lock:
        slab, used = _slabs.get(device.index, (None, 0))
        if slab is None or used + count > SLAB:
            return torch.zeros(count, dtype=torch.int32, device=device)
        _slabs[device.index] = slab, used + count
        return slab[used : used + count]
