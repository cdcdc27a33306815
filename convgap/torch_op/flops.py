"""Additions and multiplications, for torch.utils.flop_counter.FlopCounterMode: those that are done, not those of the
convolution that is not. Importing this module registers them."""

from __future__ import annotations

from math import prod
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from convgap.torch_op.schemas import Sizes, bands_shape, ops


def _elements(shape: Sizes, *_: Any, **__: Any) -> int:
    return prod(shape)


def _products(n: int, weight: Sizes, bands: Sizes) -> int:
    """Weights of taps with equal bands are added before the product."""
    return 2 * n * weight[0] * weight[1] * prod(bands)


def _of_weight(weight: Sizes, rest: tuple[Any, ...]) -> tuple[int, int]:
    """Distinct bands, from the arguments that follow the tensors: ..., the numbers of a Geometry, backend."""
    *_, stride, padding, output_padding, dilation, _, _ = rest
    return bands_shape(weight[2:], stride, padding, output_padding, dilation)


@register_flop_formula(ops.chain)
def _chain(x: Sizes, weight: Sizes, *rest: Any, **__: Any) -> int:
    return prod(x) + _products(x[0], weight, _of_weight(weight, rest))


@register_flop_formula(ops.contract)
def _contract(sums: Sizes, weight: Sizes, *_: Any, **__: Any) -> int:
    return _products(sums[0], weight, sums[2:])


@register_flop_formula(ops.expand)
def _expand(grad: Sizes, weight: Sizes, *_: Any, out_shape: Sizes, **__: Any) -> int:
    return _products(grad[0], weight, out_shape[2:])


@register_flop_formula(ops.weight_grad)
def _weight_grad(grad: Sizes, sums: Sizes, *_: Any, out_shape: Sizes, **__: Any) -> int:
    return _products(grad[0], out_shape, sums[2:])


@register_flop_formula(ops.band_fill)
def _band_fill(*_: Any, out_shape: Sizes, **__: Any) -> int:
    return prod(out_shape)


for _packet in (ops.multiply_gap, ops.plane_sums, ops.band_sums):
    register_flop_formula(_packet)(_elements)
