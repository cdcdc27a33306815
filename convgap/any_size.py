"""Calls of other heights, widths and batches: whatever code they need is compiled before they come.

A kind of call, which is all that is compiled, depends on its sizes only through classes: how many elements an access
has, how large a tile is. So the kinds of all sizes are found by preparing calls of some sizes of each class.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor

from convgap.explanation import Explanation, prepared, warmed
from convgap.probe import kernel_set
from convgap.torch_op.schemas import is_channels_last
from runtime import ahead
from runtime.prepared import Launch

BATCHES = 1, 32, 4096
"""Batches that stand for all: few and many samples for a block of a matrix product."""

SIZE_AT = {"contract": 5, "expand": 3, "weight_grad": 3, "band_fill": 1}
"""For operators that are not given x itself: the index, among their arguments, of x's (rows, columns). All others have
x as argument 0."""


def warmup_sizes(
    heights: range, widths: range, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Explanation:
    """As `warmup` of function(*args, **kwargs), for all heights and widths that x may have and for any batch: none of
    these calls waits for a compiler afterwards.

    Inputs are taken to be contiguous or channels last, as in this call, at addresses that are multiples of 16. It takes
    the compilers some seconds the first time, in threads of their own; later their files are found on disk. In the end
    Python's collector runs, for which a later call would have to wait. Raises ValueError for an empty range or one that
    reaches below 1, and whatever the call raises.
    """
    for name, sides in (("heights", heights), ("widths", widths)):
        if not isinstance(sides, range):
            raise TypeError(f"{name}: expected a range, got {type(sides).__name__}")
        if not sides or min(sides) < 1:
            raise ValueError(f"{name}: expected a range of positive numbers, got {sides}")
    rows, columns = representatives(heights), representatives(widths)
    found: dict[Hashable, tuple[Launch, torch.device]] = {}

    def note(backend: str, operator: str, given: tuple[Any, ...], out: Tensor) -> None:
        if backend in ("triton", "cupy"):
            for launch in kinds(rows, columns, backend, operator, given, out):
                found.setdefault((launch.kind, out.device), (launch, out.device))

    steps = warmed(function, args, kwargs, note).steps
    ahead.load_now(found.values())
    # What was prepared stays. Python's collector looks through it, and all of torch, now and not during a later call.
    gc.collect()
    return Explanation(tuple(steps))


def representatives(sides: range) -> list[int]:
    """Heights or widths that stand for all: the ends, powers of two, where tiles change, and what is near them, where
    the width of an access does; the same at three places between them."""
    low, high = min(sides), max(sides)
    middles = [eighths * 2**k // 8 for k in range(3, high.bit_length() + 1) for eighths in (8, 10, 12, 14)]
    near = {m + d for m in (low, high, *middles) for d in (-4, -3, -2, -1, 0, 1, 2, 3, 4)}
    return sorted(side for side in near if side in sides)


def kinds(
    heights: list[int], widths: list[int], backend: str, operator: str, args: tuple[Any, ...], out: Tensor
) -> Iterator[Launch]:
    """Launches of the operator at other sizes, among them one of every kind."""
    kernels: Any = _NotKept(backend)
    n, c, h, w = _input(operator, args, out)
    for size in (
        *((max(n, 1), *sides) for sides in product(heights, widths)),
        *((batch, h, w) for batch in BATCHES),
    ):
        with suppress(ValueError):  # too small for the geometry, or too large for a grid
            other = resized(operator, args, out, c, size)
            yield from (each.launch for each in prepared(kernels, operator, *other))


class _NotKept:
    """A kernel set that does not keep what it prepares: that would push out what calls have prepared."""

    def __init__(self, backend: str) -> None:
        self._kernels = kernel_set(backend)

    def __getattr__(self, name: str) -> Any:
        prepare = getattr(self._kernels, name)
        return getattr(prepare, "__wrapped__", prepare)


def _input(operator: str, args: tuple[Any, ...], out: Tensor) -> tuple[int, int, int, int]:
    """Sizes of x in a call of the operator."""
    if operator not in SIZE_AT:
        n, c, h, w = args[0].shape
    else:
        h, w = args[SIZE_AT[operator]]
        n, c = (args[1] if operator == "weight_grad" else out if operator == "expand" else args[0]).shape[:2]
    return n, c, h, w


def resized(
    operator: str, args: tuple[Any, ...], out: Tensor, c: int, size: tuple[int, int, int]
) -> tuple[tuple[Any, ...], Tensor]:
    """(arguments, output) of the same call at another batch, height and width. The tensors have no data."""
    n, h, w = size
    first, *rest = args
    if operator not in SIZE_AT:
        return (_like(first, (n, c, h, w)), *rest), out
    rest[SIZE_AT[operator] - 1] = h, w
    if operator == "weight_grad":
        rest[0] = _like(rest[0], (n, *rest[0].shape[1:]))
    if operator == "band_fill":
        out = _like(out, (n, c, h, w))
    return (_like(first, (n, *first.shape[1:])), *rest), out


def _like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor without data, in the memory format of the other."""
    last = tensor.dim() == 4 and is_channels_last(tensor)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=tensor.dtype, device="meta", memory_format=layout)
