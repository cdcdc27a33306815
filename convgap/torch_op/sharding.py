"""DTensor: how the operators act on shards. Importing this module registers the rules.

Of the chain, x may be sharded along the batch (so is the output), or, without groups, the weight along
Cout (the output is sharded along its channels) or x and the weight along Cin (the outputs are partial
sums, to be added over the ranks). Any other placement is first redistributed to one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from convgap.torch_op.schemas import ops

Way = tuple[list[Placement], list[Placement | None]]
"""Placements of the output, and of every argument (None for what is not a tensor)."""

_ALL, _SUM = Replicate(), Partial()
_N, _C = Shard(0), Shard(1)


def _way(out: Placement, tensors: Sequence[tuple[Any, Placement]], others: int) -> Way:
    """One way to run on shards; a tensor that is not there has no placement."""
    placements: list[Placement | None] = [None if tensor is None else where for tensor, where in tensors]
    return [out], placements + [None] * others


@register_sharding(ops.chain.default)
def _chain(x: Any, weight: Any, bias: Any, multiplier: Any, scale: Any, *rest: Any) -> list[Way]:
    return _products(x, weight, bias, multiplier, rest[-2], 7)


@register_sharding(ops.contract.default)
def _contract(sums: Any, weight: Any, bias: Any, multiplier: Any, scale: Any, size: Any, *rest: Any) -> list[Way]:
    return _products(sums, weight, bias, multiplier, rest[-2], 8)


def _products(x: Any, weight: Any, bias: Any, multiplier: Any, groups: int, others: int) -> list[Way]:
    def way(out: Placement, *placements: Placement) -> Way:
        return _way(out, list(zip((x, weight, bias, multiplier), placements, strict=True)), others)

    ways = [way(_ALL, _ALL, _ALL, _ALL, _ALL), way(_N, _N, _ALL, _ALL, _N)]
    if groups == 1:
        ways.append(way(_C, _ALL, Shard(1), Shard(0), _C))
        # Each rank adds its share of the bias.
        ways.append(way(_SUM, _C, Shard(0), _SUM, _ALL))
    return ways


@register_sharding(ops.expand.default)
def _expand(grad: Any, weight: Any, scale: Any, size: Any, *rest: Any) -> list[Way]:
    ways = [_way(_ALL, ((grad, _ALL), (weight, _ALL)), 8), _way(_N, ((grad, _N), (weight, _ALL)), 8)]
    if rest[-2] == 1:  # groups
        ways.append(_way(_SUM, ((grad, _C), (weight, Shard(1))), 8))
        ways.append(_way(_C, ((grad, _ALL), (weight, Shard(0))), 8))
    return ways


@register_sharding(ops.weight_grad.default)
def _weight_grad(grad: Any, sums: Any, scale: Any, size: Any, kernel: Any, *rest: Any) -> list[Way]:
    ways = [_way(_ALL, ((grad, _ALL), (sums, _ALL)), 10), _way(_SUM, ((grad, _N), (sums, _N)), 10)]
    if rest[-3] == 1:  # groups
        ways.append(_way(Shard(1), ((grad, _C), (sums, _ALL)), 10))
        ways.append(_way(Shard(0), ((grad, _ALL), (sums, _C)), 10))
    return ways


@register_sharding(ops.multiply_gap.default)
def _multiply_gap(y: Any, multiplier: Any, scale: Any, backend: Any) -> list[Way]:
    by_plane = [_way(where, ((y, where), (multiplier, where)), 2) for where in (_ALL, _N, _C)]
    return [*by_plane, _way(_SUM, ((y, _SUM), (multiplier, _ALL)), 2)]


def _by_plane(others: int) -> Any:
    """Operators on planes, each for itself, and linear."""

    def ways(tensor: Any, *rest: Any) -> list[Way]:
        return [_way(where, ((tensor, where),), others) for where in (_ALL, _N, _C, _SUM)]

    return ways


register_sharding(ops.plane_sums.default)(_by_plane(1))
register_sharding(ops.band_sums.default)(_by_plane(6))
register_sharding(ops.band_fill.default)(_by_plane(9))
