"""Tensors to launches: outputs, workspace, order. One text for both kernel sets.

The arguments are validated already. Strides are in elements, `stream` is a raw stream handle, and a
multiplier is a [n, c_out, 1, 1] tensor of the accumulator's dtype (any strides, usually expanded)
or None for 1. Weight and bias are contiguous; everything else may have any strides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from reference.problem import Chain
from runtime import counters
from runtime.prepared import BackwardCall, ChainCall, TailCall, accumulator


class KernelSet(Protocol):
    """What triton_impl.launch and cupy_impl.launch both are."""

    BATCHES: tuple[int, ...]
    """Batch sizes that between them need every form of a kernel."""

    def prepare_tail(
        self,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
        alignment: int,
        tensor: bool,
    ) -> TailCall: ...

    def prepare_chain(
        self, problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int, tensor: bool
    ) -> ChainCall: ...

    def prepare_backward(
        self, problem: Chain, stride: tuple[int, ...], dtype: torch.dtype
    ) -> BackwardCall: ...


def tail(kernels: KernelSet, y: Tensor, scale: float, multiplier: Tensor | None, stream: int) -> Tensor:
    """multiplier * scale * (mean of y over h, w) for y [n, c, h, w] -> [n, c, 1, 1]."""
    n, c, h, w = y.shape
    out = torch.empty(n, c, 1, 1, dtype=y.dtype, device=y.device)
    if out.numel() == 0:
        return out
    call = kernels.prepare_tail((n, c, h, w), y.stride(), y.dtype, y.data_ptr() % 16, multiplier is not None)
    m, mult_n, mult_c = _multiplier(multiplier, out)
    layout = call.layout
    if call.flat:
        call.multiply_gap(y.device, stream, y, out, m, layout.stride[0], mult_n, mult_c, scale / (h * w))
        return out
    partials = zeros = out
    if call.counters:
        partials = torch.empty(call.partials, dtype=accumulator(y.dtype), device=y.device)
        zeros = counters.take(call.counters, y.device, stream)
    call.multiply_gap(
        y.device, stream, y, out, partials, zeros, m, layout.stride[0], mult_n, mult_c, scale / (h * w)
    )
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
    call = kernels.prepare_chain(problem, x.stride(), x.dtype, x.data_ptr() % 16, multiplier is not None)
    if call.band_sums_contract is None:
        sums = band_sums(kernels, problem, x, stream)
        return contract(kernels, problem, sums, weight, bias, scale, multiplier, stream)
    out = torch.empty(*problem.out_shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    partials = torch.empty(call.partials, dtype=accumulator(x.dtype), device=x.device)
    zeros = counters.take(call.counters, x.device, stream)
    m, mult_n, mult_c = _multiplier(multiplier, out)
    call.band_sums_contract(
        x.device, stream, x, weight, out if bias is None else bias, out, partials, zeros, m,
        call.layout.stride[0], mult_n, mult_c, scale / problem.out_area, scale,
    )  # fmt: skip
    return out


def band_sums(kernels: KernelSet, problem: Chain, x: Tensor, stream: int) -> Tensor:
    """Sum of x over every tap's band: [n, c_in, kh, kw], in the accumulator's dtype."""
    call = kernels.prepare_chain(problem, x.stride(), x.dtype, x.data_ptr() % 16, False)
    acc = accumulator(x.dtype)
    sums = torch.empty(problem.n, problem.c_in, *problem.kernel, dtype=acc, device=x.device)
    if sums.numel():
        partials = zeros = sums
        if call.band_counters:
            partials = torch.empty(call.band_partials, dtype=acc, device=x.device)
            zeros = counters.take(call.band_counters, x.device, stream)
        call.band_sums(x.device, stream, x, sums, partials, zeros, call.layout.stride[0])
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
    """The chain's output [n, c_out, 1, 1] from contiguous band sums [n, c_in, kh, kw]."""
    out = torch.empty(*problem.out_shape, dtype=weight.dtype, device=weight.device)
    if out.numel() == 0:
        return out
    sums, weight = _aligned(sums), _aligned(weight)
    call = kernels.prepare_chain(problem, _contiguous(problem), weight.dtype, 0, multiplier is not None)
    partials = torch.empty(call.contract_partials, dtype=sums.dtype, device=out.device)
    zeros = counters.take(call.contract_counters, out.device, stream)
    m, mult_n, mult_c = _multiplier(multiplier, out)
    call.contract(
        out.device, stream, sums, weight, out if bias is None else bias, out, partials, zeros, m, mult_n, mult_c,
        scale / problem.out_area, scale, problem.n,
    )  # fmt: skip
    return out


def load_contract(
    kernels: KernelSet, problem: Chain, dtype: torch.dtype, tensor: bool, device: torch.device
) -> None:
    """Compile and load `contract` for every batch size; `tensor`: whether there is a multiplier."""
    for n in kernels.BATCHES:
        call = kernels.prepare_chain(replace(problem, n=n), _contiguous(problem), dtype, 0, tensor)
        call.contract.load(device)


def expand(
    kernels: KernelSet, problem: Chain, grad: Tensor, weight: Tensor, scale: float, stream: int
) -> Tensor:
    """Gradient of each band sum [n, c_in, kh, kw] for grad [n, c_out, 1, 1], both in the accumulator's dtype."""
    d = torch.empty(problem.n, problem.c_in, *problem.kernel, dtype=grad.dtype, device=grad.device)
    if d.numel():
        call = kernels.prepare_backward(problem, _contiguous(problem), weight.dtype)
        call.expand(
            d.device, stream, grad, weight, d, grad.stride(0), grad.stride(1), scale / problem.out_area,
            problem.n,
        )  # fmt: skip
    return d


def band_fill(kernels: KernelSet, problem: Chain, d: Tensor, dx: Tensor, stream: int) -> Tensor:
    """Fill dx (fresh, problem.in_shape) with the sum of contiguous d over the taps that see each element."""
    if dx.numel():
        call = kernels.prepare_backward(problem, dx.stride(), dx.dtype)
        call.band_fill(dx.device, stream, d, dx, call.layout.stride[0])
    return dx


def weight_grad(
    kernels: KernelSet,
    problem: Chain,
    grad: Tensor,
    sums: Tensor,
    scale: float,
    dtype: torch.dtype,
    stream: int,
) -> Tensor:
    """Gradient of the weight, from grad [n, c_out, 1, 1] and band sums in the accumulator's dtype."""
    dw = torch.empty(*problem.weight_shape, dtype=dtype, device=grad.device)
    if dw.numel():
        call = kernels.prepare_backward(problem, _contiguous(problem), dtype)
        call.weight_grad(
            dw.device, stream, grad, sums, dw, grad.stride(0), grad.stride(1), scale / problem.out_area,
            problem.n,
        )  # fmt: skip
    return dw


def _multiplier(multiplier: Tensor | None, absent: Tensor) -> tuple[Tensor, int, int]:
    """(pointer, stride over samples, stride over channels); kernels never read an absent one."""
    if multiplier is None:
        return absent, 0, 0
    return multiplier, multiplier.stride(0), multiplier.stride(1)


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if its address is not that of an access of 16 bytes: a view into other parameters, say."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _contiguous(problem: Chain) -> tuple[int, int, int, int]:
    return problem.c_in * problem.h * problem.w, problem.h * problem.w, problem.w, 1
