"""Tensors from bytes, one call of the candidate, bytes from tensors.

The functions of torch that this rests on are taken once, before the candidate's file is read.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_contiguous, _detach, _view = torch.Tensor.contiguous, torch.Tensor.detach, torch.Tensor.view
_reshape, _cpu, _numpy, _copy, _clone = (
    torch.Tensor.reshape, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.copy_, torch.Tensor.clone,
)  # fmt: skip
_empty, _frombuffer, _full, _as_strided = torch.empty, torch.frombuffer, torch.full, torch.as_strided
_equal, _sleep, _rng, _no_grad = torch.equal, time.sleep, torch.random.get_rng_state, torch.no_grad
_synchronize, _busy = torch.cuda.synchronize, torch.cuda._sleep
_tensor, _type, _isinstance = torch.Tensor, type, isinstance

BUSY_CYCLES = 40_000_000  # about 20 ms: much longer than any stream takes to overtake another
LATE_S = 0.05


def raw(tensor: Tensor) -> bytes:
    """The elements in order, as bytes."""
    if tensor.numel() == 0:
        return b""
    flat = _reshape(_contiguous(_detach(tensor)), -1)
    return _numpy(_cpu(_view(flat, torch.uint8))).tobytes()


class Memory:
    """Storages by slot: a slot that is used again with as many bytes keeps its address."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slots: dict[str, Tensor] = {}

    def put(self, spec: dict[str, Any], data: bytearray, *, late: bool = False) -> Tensor:
        """The tensor that `spec` describes over these bytes. late: written in stream order, behind a busy device."""
        held = self._slots.get(spec["slot"])
        if held is None or held.numel() != len(data):
            held = self._slots[spec["slot"]] = _empty(len(data), dtype=torch.uint8, device=self.device)
        if len(data):
            fresh = _frombuffer(data, dtype=torch.uint8).to(self.device)
            if late and self.device.type == "cuda":
                held.fill_(255)
                _synchronize()
                _busy(BUSY_CYCLES)
            _copy(held, fresh)
        typed = _view(held, getattr(torch, spec["dtype"]))
        return _as_strided(typed, tuple(spec["shape"]), tuple(spec["stride"]), spec["offset"])

    def bytes_of(self, slot: str) -> bytes:
        """All bytes of a slot's storage."""
        return raw(self._slots[slot])


def poison(shape: list[int], dtype: torch.dtype, device: torch.device) -> None:
    """Leave NaN, or a number that nobody expects, in the memory that the next output is likely to get."""
    unlikely = torch.nan if dtype.is_floating_point else True if dtype == torch.bool else 113
    blocks = [_full(tuple(shape), unlikely, dtype=dtype, device=device) for _ in range(8)]
    del blocks


class Operations(TorchDispatchMode):
    """Counts torch's operators while entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def complaint(out: Any, device: torch.device, shape: list[int]) -> str:
    """What is wrong with an answer before its numbers are looked at; "" if nothing."""
    if not _isinstance(out, _tensor):
        return f"type: answered with {_type(out).__name__}, expected a tensor"
    if _type(out) is not _tensor:
        return f"lazy: answered with {_type(out).__name__}, a subclass of Tensor that may compute later"
    if out.layout != torch.strided or out.device.type != device.type:
        return f"type: answered with a {out.layout} tensor on {out.device}, expected a strided one on {device.type}"
    if list(out.shape) != shape:
        return f"shape: answered with {list(out.shape)}, expected {shape}"
    return ""


def call(subject: Any, x: Any, watch: Any, launches: Any, *, count: bool) -> tuple[Any, dict[str, Any]]:
    """One call: its answer, and what was seen meanwhile."""
    operations = Operations() if count else None
    before = _rng()
    watch.calling = True
    try:
        with _no_grad():
            if operations is None:
                out = subject.call(x)
            else:
                with operations:
                    out = subject.call(x)
    finally:
        watch.calling = False
    seen: dict[str, Any] = {"launches": dict(launches.counts)}
    if operations is not None:
        seen["operations"] = dict(operations.counts)
    if not _equal(before, _rng()):
        seen["random"] = True
    return out, seen


def result(out: Tensor, *, wait: bool) -> tuple[bytes, bytes]:
    """The bytes at once, in stream order, and again a moment later if `wait`."""
    kept = _clone(_contiguous(_detach(out)))
    first = raw(kept)
    if not wait:
        return first, first
    if out.is_cuda:
        _synchronize()
    _sleep(LATE_S)
    return first, raw(out)
