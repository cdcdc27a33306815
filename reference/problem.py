"""One operator call as plain numbers: sizes, bands, compulsory bytes. Pure Python, no tensors.

The chain is linear, so the convolution output never has to exist. Kernel tap (kh, kw) sends input
element (h, w) to output element (h*s - p + kh*d, w*s - p + kw*d), and the element counts only if
that lands inside the output. So a tap sees one rectangle of the input: a *row band* times a
*column band*. With T[n, ci, kh, kw] the sum of x over the band of tap (kh, kw),

    out[n, co] = multiplier * (bias[co] + 1/(Hout*Wout) * sum over ci in the group, kh, kw of
                               T[n, ci, kh, kw] * weight[ci, co, kh, kw])

Both ends of the bands fall as k grows. Therefore [lo(0), hi(K-1)) lies inside every band: it is
the *core*, streamed once; the few rows before and after it are the *rims*.

Written without the output size, the band of kernel index k is [before(k), size - after(k)): what the padding crops
on either side depends on the kernel, the stride, the padding, the output padding and the dilation, not on the input.
Neighbouring kernel indices often crop alike, so there are fewer distinct bands than taps (`Bands`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

Band = tuple[int, int]


def band(k: int, size: int, out_size: int, stride: int, padding: int, dilation: int) -> Band:
    """Input interval [lo, hi) that kernel index k sends inside [0, out_size); empty if lo >= hi."""
    lo = (max(padding - k * dilation, 0) + stride - 1) // stride
    hi = min(size, max(out_size - 1 + padding - k * dilation + stride, 0) // stride)
    return lo, hi


@dataclass(frozen=True)
class Bands:
    """The distinct bands of one axis, in the order of the kernel indices: band b is [before[b], size - after[b]), empty
    where that is not a range, and is the band of the kernel indices [taps[b], taps[b + 1]).

    before falls and after grows with b. All three are independent of the input's size.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    taps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before)

    def of(self, k: int) -> int:
        """Which band kernel index k has."""
        return bisect_right(self.taps, k) - 1

    def at(self, size: int) -> tuple[Band, ...]:
        """The bands of an axis of `size` elements; both ends are inside [0, size]."""
        return tuple((min(before, size), max(size - after, 0)) for before, after in zip(self.before, self.after))


@lru_cache(maxsize=4096)
def distinct_bands(kernel: int, stride: int, padding: int, output_padding: int, dilation: int) -> Bands:
    """The distinct bands of one axis.

    With size_out - 1 = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding, the end of the
    band of k, floor((size_out - 1 + padding - k * dilation) / stride) + 1, is size - ceil((padding - output_padding -
    dilation * (kernel - 1 - k)) / stride) where that is below size.
    """
    crops = [
        (
            max(0, -((k * dilation - padding) // stride)),
            max(0, -((output_padding + dilation * (kernel - 1 - k) - padding) // stride)),
        )
        for k in range(kernel)
    ]
    starts = [k for k in range(kernel) if k == 0 or crops[k] != crops[k - 1]]
    before, after = zip(*(crops[k] for k in starts), strict=True)
    return Bands(before, after, (*starts, kernel))


def _swap(pair: tuple[int, int]) -> tuple[int, int]:
    return pair[1], pair[0]


class Geometry(NamedTuple):
    """The numbers of a transposed convolution that are not sizes; rows first."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Tail:
    """Sizes of one multiply + global average pool: y [n, c, h, w] -> out [n, c, 1, 1]."""

    n: int
    c: int
    h: int
    w: int

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, 1, 1

    def compulsory_bytes(self, itemsize: int) -> int:
        """Each input element read once, each output written once."""
        return itemsize * (prod(self.in_shape) + prod(self.out_shape))


@dataclass(frozen=True)
class Chain:
    """Sizes of one conv_transpose2d + multiply + global average pool.

    x [n, c_in, h, w], weight [c_in, c_out / groups, *kernel] -> out [n, c_out, 1, 1].
    """

    n: int
    c_in: int
    c_out: int
    h: int
    w: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    def __hash__(self) -> int:
        # Looked up on every call: worked out once.
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c_in, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.c_in, self.c_out // self.groups, *self.kernel

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c_out, 1, 1

    @cached_property
    def sums_shape(self) -> tuple[int, int, int, int]:
        """Shape of the band sums: samples, input channels, distinct row bands, distinct column bands."""
        return self.n, self.c_in, len(self.distinct(0).before), len(self.distinct(1).before)

    @property
    def conv_shape(self) -> tuple[int, int, int, int]:
        """Shape of the convolution output, which only the literal operator ever stores."""
        return self.n, self.c_out, self.out_size(0), self.out_size(1)

    def out_size(self, axis: int) -> int:
        """Rows (axis 0) or columns (axis 1) of the convolution output, as torch defines them."""
        size = (self.h, self.w)[axis]
        return (
            (size - 1) * self.stride[axis]
            - 2 * self.padding[axis]
            + self.dilation[axis] * (self.kernel[axis] - 1)
            + self.output_padding[axis]
            + 1
        )

    @cached_property
    def out_area(self) -> int:
        """Elements of a plane of the convolution output."""
        return self.out_size(0) * self.out_size(1)

    def bands(self, axis: int) -> tuple[Band, ...]:
        """Row (axis 0) or column (axis 1) band of each kernel index."""
        size, out = (self.h, self.w)[axis], self.out_size(axis)
        return tuple(
            band(k, size, out, self.stride[axis], self.padding[axis], self.dilation[axis])
            for k in range(self.kernel[axis])
        )

    def distinct(self, axis: int) -> Bands:
        """The distinct row (axis 0) or column (axis 1) bands."""
        return distinct_bands(
            self.kernel[axis],
            self.stride[axis],
            self.padding[axis],
            self.output_padding[axis],
            self.dilation[axis],
        )

    @property
    def geometry(self) -> Geometry:
        """What is not a size."""
        return Geometry(self.stride, self.padding, self.output_padding, self.dilation, self.groups)

    def swapped(self) -> Chain:
        """The same call with rows and columns in each other's place."""
        return Chain(
            self.n, self.c_in, self.c_out, self.w, self.h, _swap(self.kernel), _swap(self.stride), _swap(self.padding),
            _swap(self.output_padding), _swap(self.dilation), self.groups, self.bias,
        )  # fmt: skip

    @property
    def has_empty_bands(self) -> bool:
        """Whether some tap never sends anything inside the output."""
        return any(lo >= hi for axis in (0, 1) for lo, hi in self.bands(axis))

    def covered(self, axis: int) -> int:
        """Rows or columns that at least one band holds: the only ones that are ever read."""
        reach = end = 0
        for lo, hi in sorted(b for b in self.bands(axis) if b[0] < b[1]):
            reach += max(0, hi - max(lo, end))
            end = max(end, hi)
        return reach

    def compulsory_bytes(self, itemsize: int) -> int:
        """The covered part of x, the weight and the bias read once, the output written once."""
        x = self.n * self.c_in * self.covered(0) * self.covered(1)
        return itemsize * (x + prod(self.weight_shape) + self.bias * self.c_out + prod(self.out_shape))


Problem = Chain | Tail
