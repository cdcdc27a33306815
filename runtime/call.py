"""Tensors to launches: outputs, workspace, order. One text for both kernel sets, one function per step.

The arguments are validated already. Strides are in elements, `stream` is a raw stream handle, and a multiplier is a
[n, c_out, 1, 1] tensor of the accumulator's dtype (any strides, usually expanded) or None for 1. Weights, biases, band
sums and their gradients are contiguous; x, y, dx and gradients of outputs may have any strides.

Band sums are [n, c_in, RB, CB], one for each distinct row band and column band (`Chain.sums_shape`), in the
accumulator's dtype.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from reference.problem import Chain, Tail
from runtime import ahead, refused, workspace
from runtime.prepared import Prepared, Unlaunchable, accumulator

Stride = tuple[int, ...]


class KernelSet(Protocol):
    """What triton_impl.prepare and cupy_impl.prepare both are. `alignment` is an address modulo 16, `tensor` says
    whether there is a multiplier; all but `prepare_band_sums_contract` raise Unlaunchable for sizes beyond their
    grid."""

    def prepare_multiply_gap(
        self, problem: Tail, stride: Stride, dtype: torch.dtype, alignment: int, tensor: bool
    ) -> Prepared: ...

    def prepare_band_sums(self, problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int) -> Prepared: ...

    def prepare_contract(self, problem: Chain, dtype: torch.dtype, tensor: bool) -> Prepared: ...

    def prepare_band_sums_contract(
        self, problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int, tensor: bool
    ) -> Prepared | None:
        """The chain in one launch, or None where two are better."""
        ...

    def prepare_expand(self, problem: Chain, dtype: torch.dtype) -> Prepared: ...

    def prepare_band_fill(self, problem: Chain, stride: Stride, dtype: torch.dtype) -> Prepared: ...

    def prepare_weight_grad(self, problem: Chain, dtype: torch.dtype) -> Prepared: ...


def prepare_chain(
    kernels: KernelSet, problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int, tensor: bool
) -> list[Prepared]:
    """The launches of a chain: one, or those of its band sums and their product. Arguments as in KernelSet."""
    one = kernels.prepare_band_sums_contract(problem, stride, dtype, alignment, tensor)
    return [one] if one else prepare_parts(kernels, problem, stride, dtype, alignment, tensor)


def prepare_parts(
    kernels: KernelSet, problem: Chain, stride: Stride, dtype: torch.dtype, alignment: int, tensor: bool
) -> list[Prepared]:
    """The launches of a chain whose band sums are kept for its backward."""
    sums = kernels.prepare_band_sums(problem, stride, dtype, alignment)
    return [sums, kernels.prepare_contract(problem, dtype, tensor)]


def prepare_backward(
    kernels: KernelSet, problem: Chain, dtype: torch.dtype, wants: tuple[bool, bool], channels_last: bool
) -> list[Prepared]:
    """The launches of the gradients of x and of the weight, of those that are wanted; `channels_last`: how x lies."""
    made = []
    if wants[0]:
        stride = dx_stride(problem, channels_last)
        made += [kernels.prepare_expand(problem, dtype), kernels.prepare_band_fill(problem, stride, dtype)]
    return [*made, kernels.prepare_weight_grad(problem, dtype)] if wants[1] else made


def begin_backward(
    kernels: KernelSet, problem: Chain, dtype: torch.dtype, wants: tuple[bool, bool], channels_last: bool,
    device: torch.device,
) -> None:  # fmt: skip
    """Have the code of a backward compiled while its forward runs."""
    with suppress(Unlaunchable):  # the backward says so itself, if there is one
        ahead.load(device, prepare_backward(kernels, problem, dtype, wants, channels_last))


def dx_stride(problem: Chain, channels_last: bool) -> Stride:
    """Strides of the gradient of x."""
    _, c, h, w = problem.in_shape
    return (c * h * w, 1, c * w, c) if channels_last else (c * h * w, h * w, w, 1)


tail_of = lru_cache(maxsize=4096)(Tail)
"""Tail(n, c, h, w), made once."""


def tail(kernels: KernelSet, y: Tensor, scale: float, multiplier: Tensor | None, stream: int) -> Tensor:
    """multiplier * scale * (mean of y over h, w) for y [n, c, h, w] -> [n, c, 1, 1]."""
    problem = tail_of(*y.shape)
    out = torch.empty(problem.out_shape, dtype=y.dtype, device=y.device)
    if problem.n:
        made = kernels.prepare_multiply_gap(problem, y.stride(), y.dtype, y.data_ptr() % 16, multiplier is not None)
        numbers = scale / (problem.h * problem.w)
        _launch(made, out.device, stream, (y, out), multiplier, (numbers,))
    return out


def chain(
    kernels: KernelSet,
    problem: Chain,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    multiplier: Tensor | None,
    stream: int,
) -> Tensor:
    """multiplier * scale * (bias + mean of the transposed convolution) -> [n, c_out, 1, 1]."""
    if not problem.n:
        return torch.empty(problem.out_shape, dtype=x.dtype, device=x.device)
    where = x.stride(), x.dtype, x.data_ptr() % 16
    one, *rest = prepare_chain(kernels, problem, *where, multiplier is not None)
    if rest:
        sums = band_sums(kernels, problem, x, stream)
        return contract(kernels, problem, sums, weight, bias, scale, multiplier, stream)
    out = torch.empty(problem.out_shape, dtype=x.dtype, device=x.device)
    pointers = x, _aligned(weight), out if bias is None else bias, out
    _launch(one, out.device, stream, pointers, multiplier, (scale / problem.out_area, scale))
    return out


def band_sums(kernels: KernelSet, problem: Chain, x: Tensor, stream: int) -> Tensor:
    """Sum of x over every pair of a row band and a column band: [n, c_in, RB, CB]."""
    sums = torch.empty(problem.sums_shape, dtype=accumulator(x.dtype), device=x.device)
    if problem.n:
        made = kernels.prepare_band_sums(problem, x.stride(), x.dtype, x.data_ptr() % 16)
        partials, zeros = workspace.of(made, sums, stream)
        _start(made, x.device, stream, x, sums, partials, zeros)
    return sums


def contract(
    kernels: KernelSet,
    problem: Chain,
    sums: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    multiplier: Tensor | None,
    stream: int,
) -> Tensor:
    """The chain's output [n, c_out, 1, 1], in the weight's dtype, from band sums."""
    out = torch.empty(problem.out_shape, dtype=weight.dtype, device=weight.device)
    if problem.n:
        made = kernels.prepare_contract(problem, weight.dtype, multiplier is not None)
        pointers = _aligned(sums), _aligned(weight), out if bias is None else bias, out
        _launch(made, out.device, stream, pointers, multiplier, (scale / problem.out_area, scale))
    return out


def expand(kernels: KernelSet, problem: Chain, grad: Tensor, weight: Tensor, scale: float, stream: int) -> Tensor:
    """Gradient of each band sum, [n, c_in, RB, CB], for grad [n, c_out, 1, 1], both in the accumulator's dtype."""
    d = torch.empty(problem.sums_shape, dtype=grad.dtype, device=grad.device)
    if problem.n:
        made = kernels.prepare_expand(problem, weight.dtype)
        numbers = grad.stride(0), grad.stride(1), scale / problem.out_area
        _start(made, d.device, stream, grad, _aligned(weight), d, *workspace.of(made, d, stream), *numbers)
    return d


def band_fill(kernels: KernelSet, problem: Chain, d: Tensor, dx: Tensor, stream: int) -> Tensor:
    """Fill dx (fresh, problem.in_shape) with the sum of d over the bands that hold each element."""
    if problem.n:
        made = kernels.prepare_band_fill(problem, dx.stride(), dx.dtype)
        _start(made, dx.device, stream, _aligned(d), dx)
    return dx


def weight_grad(
    kernels: KernelSet,
    problem: Chain,
    grad: Tensor,
    sums: Tensor,
    scale: float,
    dtype: torch.dtype,
    wants_bias: bool,
    stream: int,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weight and, if it is wanted, of the bias, both in `dtype`, from grad [n, c_out, 1, 1] and band
    sums, both in the accumulator's dtype."""
    dw = torch.empty(problem.weight_shape, dtype=dtype, device=grad.device)
    db = torch.empty(problem.c_out, dtype=dtype, device=grad.device) if wants_bias else None
    if not problem.n:
        return dw.zero_(), None if db is None else db.zero_()
    made = kernels.prepare_weight_grad(problem, dtype)
    pointers = grad, _aligned(sums), dw, dw if db is None else db, *workspace.of(made, grad, stream)
    numbers = grad.stride(0), grad.stride(1), scale / problem.out_area, scale, int(wants_bias)
    _start(made, dw.device, stream, *pointers, *numbers)
    return dw, db


def _launch(
    made: Prepared,
    device: torch.device,
    stream: int,
    pointers: tuple[Tensor, ...],
    multiplier: Tensor | None,
    scales: tuple[float, ...],
) -> None:
    """Launch a kernel that makes an output, the last of `pointers`: workspace and multiplier follow it."""
    out = pointers[-1]
    partials, zeros = workspace.of(made, out, stream)
    if multiplier is None:
        _start(made, device, stream, *pointers, partials, zeros, out, 0, 0, *scales)
        return
    strides = multiplier.stride(0), multiplier.stride(1)
    _start(made, device, stream, *pointers, partials, zeros, multiplier, *strides, *scales)


def _start(made: Prepared, device: torch.device, stream: int, *arguments: Any) -> None:
    """The launch itself. Raises Unlaunchable, with the reason, where this kind of launch does not compile or load."""
    launch = made.launch
    refused.check(launch, device)
    try:
        launch(device, stream, *arguments)
    except Exception as error:
        refused.note(launch, device, error)
        raise


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if its address is not that of an access of 16 bytes: a view into other parameters, say."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
