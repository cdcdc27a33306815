"""How a 4-D tensor lies in memory, in the terms that a kernel's tiles are chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

Unit = Literal["planes", "rows", "columns", "none"]


def pow2_at_least(value: int) -> int:
    """Smallest power of two >= value, at least 1."""
    return 1 << max(value - 1, 0).bit_length()


def pow2_at_most(value: int) -> int:
    """Largest power of two <= value, at least 1."""
    return 1 << max(value.bit_length() - 1, 0)


LONG_ROW = 512
"""Elements of a plane of one row above which it is described as one column."""


@dataclass(frozen=True)
class Layout:
    """Sizes and strides of [n, c, h, w], in elements.

    unit     the axis along which neighbours are adjacent in memory; rows only where a whole plane is one column
    vector   elements of a 16-byte (or narrower) access that stays aligned everywhere along `unit`
    first    elements of such an access that is aligned at the first element
    swapped  whether h and w are the tensor's columns and rows
    """

    n: int
    c: int
    h: int
    w: int
    stride: tuple[int, int, int, int]
    unit: Unit
    vector: int
    first: int
    swapped: bool


def describe(
    shape: tuple[int, ...], stride: tuple[int, ...], itemsize: int, address: int, *, whole_planes: bool
) -> Layout:
    """Layout of a tensor of 4-D `shape` at `address` (bytes; only its alignment matters).

    Planes stored column by column are described with rows and columns swapped: kernels see rows in a run. So is a plane
    of one long row: kernels stream along columns, and keep a row in their threads.
    With whole_planes every element of a plane counts alike, so that rows and columns that lie in one
    run are merged into one long column: [n, c, h * w, 1].
    """
    n, c, h, w = shape
    sn, sc, sh, sw = stride
    swapped = h > 1 and sh == 1 and (w == 1 or sw != 1)
    if swapped:
        h, w, sh, sw = w, h, sw, sh
    if h == 1 and w > LONG_ROW and sw == 1 and not whole_planes:
        h, w, sh, sw, swapped = w, h, sw, sh, not swapped
    if whole_planes and (w == 1 or h == 1 or sh == w * sw):
        sh, sw = (sh if w == 1 else sw), 0
        h, w = h * w, 1
    if w > 1 and sw == 1:
        unit: Unit = "columns"
    elif h > 1 and sh == 1:
        unit = "rows"
    elif c > 1 and sc == 1:
        unit = "planes"
    else:
        unit = "none"
    axes = {"planes": 1, "rows": 2, "columns": 3}
    first = gcd(16 // itemsize, address // itemsize)
    vector = 1
    if unit != "none":
        along = axes[unit]
        steps = [s for axis, s in enumerate((sn, sc, sh, sw)) if axis != along and (n, c, h, w)[axis] > 1]
        vector = gcd(first, (n, c, h, w)[along], *steps)
    return Layout(n, c, h, w, (sn, sc, sh, sw), unit, vector, first, swapped)
