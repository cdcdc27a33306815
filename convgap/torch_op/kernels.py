"""What the operators do, on tensors of a CPU or of a CUDA device: choose a backend, and call its step.

`problem` holds all sizes of a call; of band sums and their transpose, which know nothing of outputs and groups, it has
one output channel and one group.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from convgap.probe import check_chain, check_tail
from convgap.selection import serve
from convgap.torch_op.schemas import ONE_BAND, Sizes, empty_dx
from reference.problem import Chain
from runtime import ahead, call
from runtime.private import current_stream
from torch_impl import backward, forward


@lru_cache(maxsize=4096)
def problem_of(
    x_shape: tuple[int, ...], kernel: tuple[int, ...], c_out: int, bias: bool, stride: Any, padding: Any,
    output_padding: Any, dilation: Any, groups: int,
) -> Chain:  # fmt: skip
    """The sizes of one call as the kernels take them."""
    n, c_in, h, w = x_shape
    return Chain(
        n, c_in, c_out, h, w, (kernel[0], kernel[1]), tuple(stride), tuple(padding), tuple(output_padding),
        tuple(dilation), groups, bias,
    )  # fmt: skip


def weighted_problem(shape: Sizes, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Chain:
    """Of the operators that take the weight, from the [n, c_in, h, w] of x and the numbers of a Geometry."""
    c_out = weight.shape[1] * geometry[4]
    return problem_of(
        tuple(shape), tuple(weight.shape[2:]), c_out, bias is not None, *map(tuple, geometry[:4]), geometry[4]
    )


def planes_problem(n: int, c: int, size: Sizes, kernel: Sizes, *bands: Sizes) -> Chain:
    """Of the operators that do not, from the first four numbers of a Geometry."""
    return problem_of((n, c, *size), tuple(kernel), 1, False, *map(tuple, bands), 1)


def multiply_gap(y: Tensor, multiplier: Tensor | None, scale: float, backend: str) -> Tensor:
    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return forward.tail(y, scale, multiplier)
        return call.tail(kernels, y, scale, multiplier, current_stream(y.device))

    return serve(backend, y.device, "multiply_gap", run, lambda: check_tail(y, multiplier is not None))


def plane_sums(y: Tensor, backend: str) -> Tensor:
    n, c, *size = y.shape
    return band_sums(planes_problem(n, c, size, (1, 1), *ONE_BAND), y, backend)


def chain(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    backend: str,
) -> Tensor:  # fmt: skip
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    given = multiplier is not None

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return forward.chain(problem, x, weight, bias, scale, multiplier)
        if x.is_cuda and problem.n:
            where = x.stride(), x.dtype, x.data_ptr() % 16
            ahead.load(x.device, call.prepare_chain(kernels, problem, *where, given))
        stream = current_stream(x.device)
        return call.chain(kernels, problem, x, weight, bias, scale, multiplier, stream)

    return serve(backend, x.device, "chain", run, lambda: check_chain(problem, x, weight, bias, given))


def forward_parts(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    wants: tuple[bool, bool], channels_last: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output, band sums) of a chain whose backward gives the gradients of x and of the weight that `wants` says."""
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    given = multiplier is not None

    def run(kernels: Any) -> tuple[Tensor, Tensor]:
        if kernels is None:
            sums = forward.band_sums(problem, x).contiguous()
            return forward.contract(problem, sums, weight, bias, scale, multiplier), sums
        stream = current_stream(x.device)
        if problem.n:
            where = x.stride(), x.dtype, x.data_ptr() % 16
            ahead.load(x.device, call.prepare_parts(kernels, problem, *where, given))
            call.begin_backward(kernels, problem, x.dtype, wants, channels_last, x.device)
        sums = call.band_sums(kernels, problem, x, stream)
        return call.contract(kernels, problem, sums, weight, bias, scale, multiplier, stream), sums

    check = partial(check_chain, problem, x, weight, bias, given, (wants, channels_last))
    return serve(backend, x.device, "contract", run, check)


def band_sums(problem: Chain, x: Tensor, backend: str) -> Tensor:
    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return forward.band_sums(problem, x).contiguous()
        return call.band_sums(kernels, problem, x, current_stream(x.device))

    return serve(backend, x.device, "band_sums", run)


def contract(
    problem: Chain, sums: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    backend: str,
) -> Tensor:  # fmt: skip
    sums, weight = sums.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return forward.contract(problem, sums, weight, bias, scale, multiplier)
        stream = current_stream(sums.device)
        return call.contract(kernels, problem, sums, weight, bias, scale, multiplier, stream)

    return serve(backend, sums.device, "contract", run)


def expand(problem: Chain, grad: Tensor, weight: Tensor, scale: float, backend: str) -> Tensor:
    weight = weight.contiguous()

    def run(kernels: Any) -> Tensor:
        if kernels is None:
            return backward.expand(problem, grad, weight, scale).contiguous()
        return call.expand(kernels, problem, grad, weight, scale, current_stream(grad.device))

    return serve(backend, grad.device, "expand", run)


def weight_grad(
    problem: Chain,
    grad: Tensor,
    sums: Tensor,
    scale: float,
    dtype: torch.dtype,
    wants_bias: bool,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weight and, if it is wanted, of the bias."""
    sums = sums.contiguous()

    def run(kernels: Any) -> tuple[Tensor, Tensor | None]:
        if kernels is None:
            dw = backward.weight_grad(problem, grad, sums, scale, dtype).contiguous()
            return dw, backward.bias_grad(grad, scale, dtype) if wants_bias else None
        stream = current_stream(grad.device)
        return call.weight_grad(kernels, problem, grad, sums, scale, dtype, wants_bias, stream)

    return serve(backend, grad.device, "weight_grad", run)


def band_fill(problem: Chain, d: Tensor, dtype: torch.dtype, channels_last: bool, backend: str) -> Tensor:
    d = d.contiguous()

    def run(kernels: Any) -> Tensor:
        dx = empty_dx(d, (problem.h, problem.w), dtype, channels_last)
        if kernels is None:
            return backward.band_fill(problem, d, dx)
        return call.band_fill(kernels, problem, d, dx, current_stream(d.device))

    return serve(backend, d.device, "band_fill", run)


# The same as torch.library calls them: the sizes are gathered from tensors and numbers.


def _chain(x: Tensor, weight: Tensor, bias: Any, multiplier: Any, scale: float, *rest: Any) -> Tensor:
    *geometry, backend = rest
    return chain(weighted_problem(x.shape, weight, bias, *geometry), x, weight, bias, multiplier, scale, backend)


def _band_sums(x: Tensor, kernel: Sizes, *rest: Any) -> Tensor:
    *bands, backend = rest
    n, c, *size = x.shape
    return band_sums(planes_problem(n, c, size, kernel, *bands), x, backend)


def _contract(
    sums: Tensor, weight: Tensor, bias: Any, multiplier: Any, scale: float, size: Sizes, *rest: Any
) -> Tensor:
    *geometry, backend = rest
    problem = weighted_problem((*sums.shape[:2], *size), weight, bias, *geometry)
    return contract(problem, sums, weight, bias, multiplier, scale, backend)


def _expand(grad: Tensor, weight: Tensor, scale: float, size: Sizes, *rest: Any) -> Tensor:
    *geometry, backend = rest
    problem = weighted_problem((grad.shape[0], weight.shape[0], *size), weight, None, *geometry)
    return expand(problem, grad, weight, scale, backend)


def _weight_grad(grad: Tensor, sums: Tensor, scale: float, size: Sizes, kernel: Sizes, *rest: Any) -> Tensor:
    *bands, groups, dtype, backend = rest
    shape = *sums.shape[:2], *size
    problem = problem_of(shape, tuple(kernel), grad.shape[1], False, *map(tuple, bands), groups)
    return weight_grad(problem, grad, sums, scale, dtype, False, backend)[0]


def _band_fill(d: Tensor, size: Sizes, kernel: Sizes, *rest: Any) -> Tensor:
    *bands, dtype, channels_last, backend = rest
    problem = planes_problem(d.shape[0], d.shape[1], size, kernel, *bands)
    return band_fill(problem, d, dtype, channels_last, backend)


KERNELS = {
    "multiply_gap": multiply_gap,
    "plane_sums": plane_sums,
    "chain": _chain,
    "band_sums": _band_sums,
    "contract": _contract,
    "expand": _expand,
    "weight_grad": _weight_grad,
    "band_fill": _band_fill,
}
"""Operator name -> its kernel for torch.library."""
