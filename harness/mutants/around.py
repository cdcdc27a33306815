"""What is wrong around an implementation: it is given other arguments, or another answer is made of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.cases.inputs import Inputs
from harness.mutants.mutant import NotApplicable, Outside
from harness.numerics.examine import Call
from reference.problem import Chain


def weight_of(inputs: Inputs) -> Tensor:
    """The weight; NotApplicable for the tail."""
    if inputs.weight is None:
        raise NotApplicable
    return inputs.weight


def chain_of(inputs: Inputs) -> Chain:
    """The sizes of the call; NotApplicable for the tail."""
    c_in, per_group, *kernel = weight_of(inputs).shape
    n, _, h, w = inputs.x.shape
    c_out = per_group * inputs.sizes["groups"]
    return Chain(n, c_in, c_out, h, w, (kernel[0], kernel[1]), bias=inputs.bias is not None, **inputs.sizes)


def changed(**changes: Callable[[Inputs], Any]) -> Outside:
    """The real implementation on changed arguments: field of Inputs -> its new value."""
    return lambda call, i: call(replace(i, **{name: change(i) for name, change in changes.items()}))


def change_weight(change: Callable[[Tensor], Tensor]) -> Outside:
    return changed(weight=lambda i: change(weight_of(i)))


def change_bias(change: Callable[[Inputs, Tensor], Tensor | None]) -> Outside:
    def outside(call: Call, i: Inputs) -> Tensor:
        if i.bias is None:
            raise NotApplicable
        return call(replace(i, bias=change(i, i.bias)))

    return outside


def change_sizes(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Outside:
    """Other stride, padding, ...; where the call is refused there is no such mutant."""

    def outside(call: Call, i: Inputs) -> Tensor:
        weight_of(i)
        sizes = i.sizes | change(i.sizes)
        if sizes == i.sizes:
            raise NotApplicable
        try:
            return call(replace(i, sizes=sizes))
        except ValueError:
            raise NotApplicable from None

    return outside


def change_x(change: Callable[[Tensor], Tensor]) -> Outside:
    return changed(x=lambda i: change(i.x.clone()))


def put(value: Any, *index: Any) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x[index] = value
        return x

    return change


def change_answer(change: Callable[[Tensor], Tensor]) -> Outside:
    return lambda call, i: change(call(i))


def pooled_plane(inputs: Inputs) -> tuple[int, int]:
    """Rows and columns of the plane that the mean is over."""
    if inputs.weight is None:
        return inputs.x.shape[2], inputs.x.shape[3]
    chain = chain_of(inputs)
    return chain.out_size(0), chain.out_size(1)


def mean_times(factor: Callable[[Inputs], float]) -> Outside:
    """The mean (without the bias) off by a factor."""

    def outside(call: Call, i: Inputs) -> Tensor:
        f = factor(i)
        if f == 1:
            raise NotApplicable
        if i.weight is None:
            return (call(replace(i, x=i.x.double())) * f).to(i.x.dtype)
        double = replace(
            i, x=i.x.double(), weight=i.weight.double() * f, bias=None if i.bias is None else i.bias.double()
        )
        return call(double).to(i.x.dtype)

    return outside


def input_plane_over_output_plane(i: Inputs) -> float:
    weight_of(i)
    return prod(pooled_plane(i)) / prod(i.x.shape[2:])


def one_group_for_all(call: Call, i: Inputs) -> Tensor:
    groups = i.sizes.get("groups", 1)
    if groups == 1:
        raise NotApplicable
    first = i.x.unflatten(1, (groups, -1))[:, :1]
    return call(replace(i, x=first.expand(-1, groups, -1, -1, -1).flatten(1, 2)))


def groups_interleaved(call: Call, i: Inputs) -> Tensor:
    groups = i.sizes.get("groups", 1)
    if groups in (1, i.x.shape[1]):
        raise NotApplicable
    return call(replace(i, x=i.x.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)))


def as_if_contiguous(call: Call, i: Inputs) -> Tensor:
    """x read with the strides of a contiguous tensor, whatever its own."""
    n, c, h, w = i.x.shape
    stride = (c * h * w, h * w, w, 1)
    extent = i.x.untyped_storage().nbytes() // i.x.element_size() - i.x.storage_offset()
    if i.x.stride() == stride or n * c * h * w > extent:
        raise NotApplicable
    return call(replace(i, x=i.x.as_strided(i.x.shape, stride)))


def _rounded(value: Tensor, bits: int) -> Tensor:
    """float32 rounded to nearest with `bits` fewer fraction bits."""
    half, mask = 1 << bits - 1, -1 << bits
    return (value.contiguous().view(torch.int32) + half & mask).view(torch.float32)


def tf32(call: Call, i: Inputs) -> Tensor:
    if i.x.dtype != torch.float32:
        raise NotApplicable
    return call(replace(i, x=_rounded(i.x, 13), weight=None if i.weight is None else _rounded(i.weight, 13)))


def inputs_through(dtype: torch.dtype) -> Outside:
    def outside(call: Call, i: Inputs) -> Tensor:
        if i.x.dtype.itemsize <= dtype.itemsize:
            raise NotApplicable
        weight = None if i.weight is None else i.weight.to(dtype).to(i.weight.dtype)
        return call(replace(i, x=i.x.to(dtype).to(i.x.dtype), weight=weight))

    return outside


def answer_through(dtype: torch.dtype) -> Outside:
    def outside(call: Call, i: Inputs) -> Tensor:
        if i.x.dtype.itemsize <= dtype.itemsize:
            raise NotApplicable
        return call(i).to(dtype).to(i.x.dtype)

    return outside


def _all_through(dtype: torch.dtype, call: Call, i: Inputs) -> Tensor:
    """The whole computation in another dtype."""
    cast = {n: v.to(dtype) for n in ("x", "weight", "bias") if (v := getattr(i, n)) is not None}
    return call(replace(i, **cast))


def float64_in_float32(call: Call, i: Inputs) -> Tensor:
    if i.x.dtype != torch.float64:
        raise NotApplicable
    return _all_through(torch.float32, call, i).double()


def truncated(call: Call, i: Inputs) -> Tensor:
    """The answer cut off, not rounded, to half precision."""
    if i.x.dtype.itemsize != 2:
        raise NotApplicable
    exact = _all_through(torch.float32, call, i)
    nearest = exact.to(i.x.dtype)
    beyond = nearest.float().abs() > exact.abs()
    return torch.where(beyond, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


def accumulated_in(dtype: torch.dtype) -> Outside:
    """Sums kept in a half format: each row of the plane is added to a running row of sums."""

    def outside(call: Call, i: Inputs) -> Tensor:
        y, multiplier = i.x, i.multiplier
        if i.weight is not None:
            y = F.conv_transpose2d(y, i.weight, i.bias, *i.sizes.values())
        total = torch.zeros_like(y[:, :, 0], dtype=dtype)
        for row in y.unbind(2):
            total += row.to(dtype)
        mean = total.float().sum(-1)[..., None, None] / prod(y.shape[2:])
        return (mean * multiplier).to(i.x.dtype)

    return outside


def border_subtracted(call: Call, i: Inputs) -> Tensor:
    """Each tap's band as the whole plane minus the rows and columns that it does not see."""
    weight, x = weight_of(i).float(), i.x.float()
    chain, groups = chain_of(i), i.sizes["groups"]
    total = x.sum((2, 3))
    bands = []
    for top, bottom in chain.bands(0):
        for left, right in chain.bands(1):
            if top >= bottom or left >= right:
                bands.append(torch.zeros_like(total))
                continue
            outside = x[:, :, :top].sum((2, 3)) + x[:, :, bottom:].sum((2, 3))
            middle = x[:, :, top:bottom]
            outside = outside + middle[..., :left].sum((2, 3)) + middle[..., right:].sum((2, 3))
            bands.append(total - outside)
    sums = torch.stack(bands, 2).unflatten(1, (groups, -1))
    out = torch.einsum("ngik,giok->ngo", sums, weight.flatten(2).unflatten(0, (groups, -1))).flatten(1)
    out = out / prod(pooled_plane(i)) + (0 if i.bias is None else i.bias)
    return (out[..., None, None] * i.multiplier).to(i.x.dtype)


def unwritten(call: Call, i: Inputs) -> Tensor:
    """The last element is never stored."""
    right = call(i)
    if right.numel() == 0:
        raise NotApplicable
    out = torch.empty(right.shape, dtype=right.dtype, device=right.device)
    out.view(-1)[:-1] = right.flatten()[:-1]
    return out


class Stale:
    """Every answer is the one before it (the first is right)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, call: Call, i: Inputs) -> Tensor:
        right = call(i)
        key = (*right.shape, right.dtype, right.device)
        kept = self._kept.get(key, right)
        self._kept[key] = right
        return kept


class Unordered:
    """As with floating-point atomics: right, but added up in another order each time."""

    def __init__(self) -> None:
        self._random = Random(0)

    def __call__(self, call: Call, i: Inputs) -> Tensor:
        x = i.x
        if i.weight is None:
            rows = self._random.sample(range(x.shape[2]), x.shape[2])
            columns = self._random.sample(range(x.shape[3]), x.shape[3])
            return call(replace(i, x=x[:, :, rows][..., columns]))
        if i.sizes["groups"] > 1:
            raise NotApplicable
        planes = self._random.sample(range(x.shape[1]), x.shape[1])
        return call(replace(i, x=x[:, planes], weight=i.weight[planes]))


def depends_on_batch(call: Call, i: Inputs) -> Tensor:
    """Right, but a sample in a batch is added up in another order than alone."""
    if i.x.shape[0] == 1:
        return call(i)
    if i.weight is None:
        return call(replace(i, x=i.x.flip(2, 3)))
    if i.sizes["groups"] > 1:
        raise NotApplicable
    return call(replace(i, x=i.x.flip(1), weight=i.weight.flip(0)))


def writes_its_input(call: Call, i: Inputs) -> Tensor:
    """Scales y in place."""
    if i.weight is not None or i.x.numel() == 0 or 0 in i.x.stride():
        raise NotApplicable
    right = call(i)
    i.x.mul_(i.multiplier)
    return right


def other_axis(name: str) -> Outside:
    return change_sizes(lambda s: {name: s[name][::-1]})
