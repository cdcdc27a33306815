"""Float64 truth in NumPy, by definition: every tap of every input element is scattered into y.

Kernel tap (kh, kw) adds x[n, ci, h, w] * weight[ci, co, kh, kw] to y[n, co, oh, ow] where
oh = h*stride - padding + kh*dilation (columns alike), if that lies inside y; y starts as the bias.
This file imports nothing of the project, so that no mistake is shared with what it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Size = int | tuple[int, int]


class Gradients(NamedTuple):
    """Gradients in the shape of what they belong to; bias is None where there was none."""

    x: Array
    weight: Array
    bias: Array | None
    multiplier: Array


class _Tap(NamedTuple):
    """One kernel element: where it is, the input it reads, the output it adds to (same shape)."""

    kernel: tuple[int, int]
    source: tuple[slice, slice]
    target: tuple[slice, slice]


def multiply_gap(y: ArrayLike, multiplier: ArrayLike, *, absolute: bool = False) -> Array:
    """Mean over H, W of multiplier * y: [N, C, H, W] -> [N, C, 1, 1] in float64.

    `absolute` puts the absolute values of all arguments in: the condition measure of the sum.
    """
    y = np.asarray(y)
    out = np.empty((*y.shape[:2], 1, 1))
    with np.errstate(all="ignore"):
        for sample, factor in enumerate(np.broadcast_to(multiplier, out.shape)):
            plane, factor = _float64(absolute, y[sample], factor)
            out[sample] = (plane * factor).mean(axis=(-2, -1), keepdims=True)
    return out


def multiply_gap_grad(
    y: ArrayLike, multiplier: ArrayLike, grad: ArrayLike, *, absolute: bool = False
) -> tuple[Array, Array]:
    """(dy [N, C, H, W], dmultiplier) for the output gradient `grad` [N, C, 1, 1], in float64."""
    y, multiplier, grad = _float64(absolute, y, multiplier, grad)
    with np.errstate(all="ignore"):
        dy = np.broadcast_to(grad * multiplier / (y.shape[-2] * y.shape[-1]), y.shape)
        return dy, _sum_to(grad * y.mean(axis=(-2, -1), keepdims=True), multiplier.shape)


def conv_transpose2d_multiply_gap(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    multiplier: ArrayLike = 1.0,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    absolute: bool = False,
) -> Array:
    """The chain in float64: x [N, Cin, H, W], weight [Cin, Cout/groups, KH, KW] -> [N, Cout, 1, 1].

    `absolute` puts the absolute values of all arguments in: the condition measure of the sum.
    """
    x, weight, multiplier = _float64(absolute, x, weight, multiplier)
    x, weight = _grouped(x, groups, 1), _grouped(weight, groups, 0)
    n, _, _, *plane = x.shape
    _, _, c_out, *kernel = weight.shape
    (bias,) = _float64(absolute, np.zeros(groups * c_out) if bias is None else bias)
    size, taps = _scatter(plane, kernel, stride, padding, output_padding, dilation)
    out = np.empty((n, groups * c_out, 1, 1))
    multiplier = np.broadcast_to(multiplier, out.shape)
    with np.errstate(all="ignore"):
        for sample in range(n):
            y = np.broadcast_to(bias.reshape(groups, c_out, 1, 1), (groups, c_out, *size)).copy()
            for tap in taps:
                y[:, :, *tap.target] += _contract(weight[..., *tap.kernel].mT, x[sample][:, :, *tap.source])
            y = y.reshape(groups * c_out, *size)
            y *= multiplier[sample]
            out[sample] = y.mean(axis=(-2, -1), keepdims=True)
    return out


def conv_transpose2d_multiply_gap_grad(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    multiplier: ArrayLike,
    grad: ArrayLike,
    *,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    absolute: bool = False,
) -> Gradients:
    """Gradients of sum(grad * out), grad [N, Cout, 1, 1]: the scatter's adjoint, a gather per tap."""
    x, weight, multiplier, grad = _float64(absolute, x, weight, multiplier, grad)
    size, taps = _scatter(x.shape[2:], weight.shape[2:], stride, padding, output_padding, dilation)
    pooled = conv_transpose2d_multiply_gap(
        x,
        weight,
        bias,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        dilation=dilation,
        absolute=absolute,
    )
    dx, dweight, dbias = np.zeros_like(x), np.zeros_like(weight), np.zeros(grad.shape[1])
    # Views with a group axis, written through.
    x, dx_, weight, dweight_ = (_grouped(v, groups, a) for v, a in ((x, 1), (dx, 1), (weight, 0), (dweight, 0)))
    with np.errstate(all="ignore"):
        scaled = np.broadcast_to(grad * multiplier / (size[0] * size[1]), grad.shape)
        for sample in range(len(x)):
            dy = np.broadcast_to(scaled[sample], (len(dbias), *size))
            dbias += dy.sum(axis=(-2, -1))
            dy = _grouped(dy, groups, 0)
            for tap in taps:
                gathered, read = dy[:, :, *tap.target], x[sample][:, :, *tap.source]
                dx_[sample][:, :, *tap.source] += _contract(weight[..., *tap.kernel], gathered)
                dweight_[..., *tap.kernel] += _flat(read) @ _flat(gathered).mT
        dmultiplier = _sum_to(grad * pooled, multiplier.shape)
    return Gradients(dx, dweight, None if bias is None else dbias, dmultiplier)


def depth(terms: int, pooled: int) -> int:
    """Longest chain of additions above: `terms` products met in one y, then NumPy's pairwise mean.

    The mean adds blocks of 128 in 8 accumulators, then halves; both axes in turn at worst.
    """
    return terms + 2 * (16 + 3 + int(log2(max(pooled, 1))) + 1)


def _scatter(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Size,
    padding: Size,
    output_padding: Size,
    dilation: Size,
) -> tuple[tuple[int, int], list[_Tap]]:
    """Size of y, and for each tap the input elements that land inside y, and where they land."""
    s, p, op, d = (_pair(value) for value in (stride, padding, output_padding, dilation))
    out = [(size[a] - 1) * s[a] - 2 * p[a] + d[a] * (kernel[a] - 1) + op[a] + 1 for a in (0, 1)]
    taps = []
    for k in np.ndindex(*kernel):
        source, target = [], []
        for a in (0, 1):
            landing = np.arange(size[a]) * s[a] - p[a] + k[a] * d[a]
            inside = np.flatnonzero((landing >= 0) & (landing < out[a]))
            first, n = (inside[0], len(inside)) if len(inside) else (0, 0)
            source.append(slice(first, first + n))
            target.append(slice(landing[first], landing[first] + n * s[a], s[a]) if n else slice(0, 0))
        taps.append(_Tap((k[0], k[1]), (source[0], source[1]), (target[0], target[1])))
    return (out[0], out[1]), taps


def _grouped(value: Array, groups: int, axis: int) -> Array:
    """View with the channels of `axis` split into groups and channels per group."""
    return value.reshape(*value.shape[:axis], groups, value.shape[axis] // groups, *value.shape[axis + 1 :])


def _flat(value: Array) -> Array:
    return value.reshape(*value.shape[:2], -1)


def _contract(matrix: Array, value: Array) -> Array:
    """Product over the channels of each group: [G, A, B] with [G, B, H, W] -> [G, A, H, W]."""
    return (matrix @ _flat(value)).reshape(*matrix.shape[:2], *value.shape[2:])


def _pair(value: Size) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _float64(absolute: bool, *values: ArrayLike) -> list[Array]:
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    return [np.abs(array) for array in arrays] if absolute else arrays


def _sum_to(value: Array, shape: tuple[int, ...]) -> Array:
    """Undo a broadcast of `shape` to value's shape."""
    value = value.sum(axis=tuple(range(value.ndim - len(shape))))
    return value.sum(axis=tuple(a for a, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)
