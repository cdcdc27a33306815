"""Memory that shows who touched it: NaN inside what is not written yet, NaN around what is not ours.

The allocator often hands out the memory of the call before, right answer included, and a read past the end of a buffer
often finds zeros. So a kernel that writes nothing, or reads too far, can look right. Here every byte that nobody was
meant to read or write is 0xFF: NaN in every floating dtype, -1 in the integers.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from convgap import fast

POISON = 0xFF
# A multiple of the widest access (16 bytes) in every dtype, so that alignment is as without guards.
ZONE = 64


def _poisoned(numel: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return torch.full((numel * dtype.itemsize,), POISON, dtype=torch.uint8, device=device).view(dtype)


def _intact(buffer: Tensor) -> bool:
    return bool((buffer.view(torch.uint8) == POISON).all())


def _placed(shape: tuple[int, ...], like: Tensor, make: Any) -> Tensor:
    """Room for `shape` with like's strides and address modulo 16, in a buffer that `make` makes."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, like.stride(), strict=True))
    offset = ZONE + like.data_ptr() % 16 // like.element_size()
    buffer = make(offset + extent + ZONE, dtype=like.dtype, device=like.device)
    return buffer.as_strided(shape, like.stride(), offset)


def surrounded(values: Tensor, like: Tensor | None = None) -> Tensor:
    """Copy of `values` with like's (or their own) strides and address modulo 16, in the middle of poison.

    Along an axis that `like` repeats with stride 0 the first of the values stands for all.
    """
    if values.numel() == 0:
        return values
    copy = _placed(tuple(values.shape), values if like is None else like, _poisoned)
    to = copy
    for dim, stride in enumerate(copy.stride()):
        if stride == 0:
            to, values = to.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    to.copy_(values)
    return copy


def zeros_like(x: Tensor) -> Tensor:
    """Zeros with the strides of x and its address modulo 16."""
    return x if x.numel() == 0 else _placed(tuple(x.shape), x, torch.zeros)


class Guards:
    """While entered, torch.empty gives poisoned memory between two zones of poison.

    Both kernel sets take outputs and workspaces from torch.empty, so they need not know of this class. The function is
    replaced for the whole process: use one Guards at a time, in one thread.
    """

    def __init__(self) -> None:
        self._zones: list[tuple[Tensor, str]] = []
        self._patch = mock.patch.object(torch, "empty", self._empty)
        self._plain = torch.empty
        self._through_python = ExitStack()

    def __enter__(self) -> Guards:
        # The native path takes its memory elsewhere, and launches the same kernels.
        self._through_python.enter_context(fast.off())
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()
        self._through_python.close()

    def _empty(self, *args: Any, **kwargs: Any) -> Tensor:
        plain = self._plain(*args, **kwargs)
        extent = plain.untyped_storage().nbytes() // plain.element_size()
        buffer = _poisoned(ZONE + extent + ZONE, plain.dtype, plain.device)
        what = f"{tuple(plain.shape)} of {plain.dtype}"
        self._zones += [(buffer[:ZONE], f"before {what}"), (buffer[ZONE + extent :], f"after {what}")]
        return buffer.as_strided(plain.shape, plain.stride(), ZONE)

    def broken(self) -> list[str]:
        """Which zones somebody has written to: "after (2, 3, 1, 1) of torch.float32"."""
        return [where for zone, where in self._zones if not _intact(zone)]
