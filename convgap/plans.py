"""Plans of the native call path: what a call launches, worked out once and handed to native.c."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from convgap import selection
from convgap.arguments import check_chain, check_tail
from reference.problem import Chain
from runtime import ahead, call, refused
from runtime.prepared import Prepared, Unlaunchable, accumulator

POINTER, WORKSPACE, COUNTERS, OUTPUT, INTEGER, MEAN, SCALE = range(7)
"""What an argument of a kernel is, as native.c numbers it."""

X, WEIGHT, BIAS, MULTIPLIER = range(4)
"""The tensors of a call, as native.c numbers them."""


def tail(y: Tensor, multiplier: Any, backend: str) -> tuple[Any, ...] | None:
    batched, _, tensor = check_tail(y, multiplier)
    given = tensor is not None

    def steps(kernels: call.KernelSet) -> tuple[Any, ...]:
        problem = call.tail_of(*batched.shape)
        where = batched.stride(), batched.dtype, batched.data_ptr() % 16
        pool = kernels.prepare_multiply_gap(problem, *where, given)
        plan = _Plan(batched.dtype, batched.device)
        plan.launch(pool, [(POINTER, X), (OUTPUT, 0)], _strides(tensor), [(MEAN, 0)])
        return plan.given(_output(problem.c, batched, y.dim() == 4), area=problem.h * problem.w)

    return _planned("multiply_gap", backend, multiplier, tensor, batched, steps)


def chain(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Any, *rest: Any
) -> tuple[Any, ...] | None:
    *options, backend = rest
    batched, problem, _, tensor = check_chain(x, weight, bias, multiplier, *options)
    if not (
        weight.is_contiguous() and weight.data_ptr() % 16 == 0 and (bias is None or bias.is_contiguous())
    ):
        return None  # the way through Python copies them
    assert isinstance(problem, Chain)
    given = tensor is not None
    ends = [(POINTER, WEIGHT), (OUTPUT, 0) if bias is None else (POINTER, BIAS), (OUTPUT, 0)]
    scales = [(MEAN, 0), (SCALE, 0)]

    def steps(kernels: call.KernelSet) -> tuple[Any, ...]:
        where = batched.stride(), batched.dtype, batched.data_ptr() % 16
        plan = _Plan(batched.dtype, batched.device)
        made = call.prepare_chain(kernels, problem, *where, given)
        ahead.load(batched.device, made)
        source = POINTER, X
        if len(made) > 1:
            sums = plan.space(prod(problem.sums_shape) * accumulator(batched.dtype).itemsize)
            plan.launch(made[0], [source, sums])
            source = sums
        plan.launch(made[-1], [source, *ends], _strides(tensor), scales)
        return plan.given(_output(problem.c_out, batched, x.dim() == 4), area=problem.out_area)

    return _planned("chain", backend, multiplier, tensor, batched, steps)


def _planned(
    operator: str,
    backend: str,
    multiplier: Any,
    tensor: Tensor | None,
    x: Tensor,
    steps: Callable[[call.KernelSet], tuple[Any, ...]],
) -> tuple[Any, ...] | None:
    """`steps` of the kernel set that serves the call; None where Python has more to do for it than to launch."""
    name = selection.chosen(backend, x.device, operator)
    if name is None:
        raise LookupError("the first call of an operator is its probe, and goes through Python")
    if name == "torch" or not x.shape[0]:
        return None
    if isinstance(multiplier, Tensor) and multiplier.dtype != accumulator(x.dtype):
        return None  # the way through Python converts it
    try:
        kernels: Any = selection.kernel_set(name)
        return steps(kernels)
    except Unlaunchable:
        return None  # the way through Python asks the next backend, or says why not


class _Plan:
    """The launches of one call and their workspace, as native.c takes them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._itemsize, self._device = accumulator(dtype).itemsize, device
        self._launches: list[tuple[Any, ...]] = []
        self._space = self._counters = 0

    def space(self, size: int) -> tuple[int, int]:
        """The argument that points to `size` bytes of workspace."""
        start = self._space
        self._space += -(-size // 256) * 256
        return WORKSPACE, start

    def launch(
        self,
        made: Prepared,
        pointers: list[tuple[int, int]],
        multiplier: tuple[int, int] | None = None,
        scales: list[tuple[int, int]] | None = None,
    ) -> None:
        """Add a launch that may be cut in parts: its own pointers, then what runtime/call.py gives all such kernels."""
        arguments = [*pointers, self.space(made.partials * self._itemsize), (COUNTERS, 0)]
        self._counters = max(self._counters, made.counters)
        if scales is not None:
            arguments.append((OUTPUT, 0) if multiplier is None else (POINTER, MULTIPLIER))
            arguments += [(INTEGER, stride) for stride in multiplier or (0, 0)]
            arguments += scales
        self.add(made, arguments)

    def add(self, made: Prepared, arguments: list[tuple[int, int]]) -> None:
        """Add a launch with all of its arguments but the sizes."""
        refused.check(made.launch, self._device)
        # Triton adds parameters for scratch memory that there is none of.
        sizes = [(INTEGER, size) for size in (*made.launch.sizes, 0, 0, 0, 0)]
        function, threads, shared = made.launch.handle(self._device)
        self._launches.append((function, *made.launch.grid, threads, shared, (*arguments, *sizes)))

    def given(self, *outputs: tuple[Any, ...], area: int) -> tuple[Any, ...]:
        """The plan of these outputs; `area`: positions that the mean is taken over."""
        return outputs, float(area), self._space, self._counters, tuple(self._launches)


def _output(channels: int, x: Tensor, batched: bool) -> tuple[Any, ...]:
    """Size, stride and dtype of an output with `channels` channels."""
    size, stride = (channels, 1, 1), (1, 1, 1)
    if batched:
        size, stride = (x.shape[0], *size), (channels, *stride)
    return size, stride, x.dtype


def _strides(multiplier: Tensor | None) -> tuple[int, int] | None:
    return None if multiplier is None else (multiplier.stride(0), multiplier.stride(1))


def _contiguous(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    _, b, c, d = shape
    return b * c * d, c * d, d, 1


# The parts of a derivative, by all that fixes them.

SUMS, GRAD = X, MULTIPLIER
"""Tensors of a backward, in the places that native.c has: band sums, and the gradient of the output."""


def forward_parts(
    problem: Chain, stride: tuple[int, ...], dtype: torch.dtype, alignment: int, multiplier: tuple[int, int] | None,
    wants: tuple[bool, bool], channels_last: bool, backend: str, device: torch.device,
) -> tuple[Any, ...]:  # fmt: skip
    """Of (x, weight, bias, multiplier) -> (output, band sums). `wants` and `channels_last` are its backward's, whose
    code is compiled meanwhile. Raises Unlaunchable, RuntimeError or LookupError."""
    kernels = _kernels(problem, backend, device, "contract")
    made = call.prepare_parts(kernels, problem, stride, dtype, alignment, multiplier is not None)
    ahead.load(device, made)
    call.begin_backward(kernels, problem, dtype, wants, channels_last, device)
    plan = _Plan(dtype, device)
    sums = OUTPUT, 1
    plan.launch(made[0], [(POINTER, X), sums])
    pointers = [sums, (POINTER, WEIGHT), (POINTER, BIAS) if problem.bias else (OUTPUT, 0), (OUTPUT, 0)]
    plan.launch(made[1], pointers, multiplier, [(MEAN, 0), (SCALE, 0)])
    out = problem.out_shape, (problem.c_out, 1, 1, 1), dtype
    return plan.given(
        out, (problem.sums_shape, _contiguous(problem.sums_shape), accumulator(dtype)), area=problem.out_area
    )


def backward(
    problem: Chain, dtype: torch.dtype, grad_stride: tuple[int, int], wants: tuple[bool, bool], channels_last: bool,
    backend: str, device: torch.device,
) -> tuple[Any, ...]:  # fmt: skip
    """Of (band sums, weight, None, gradient) -> the gradients of x and of the weight, of those that are wanted."""
    kernels = _kernels(problem, backend, device, "expand" if wants[0] else "weight_grad")
    made = call.prepare_backward(kernels, problem, dtype, wants, channels_last)
    ahead.load(device, made)
    plan = _Plan(dtype, device)
    outputs = []
    numbers = [*((INTEGER, stride) for stride in grad_stride), (MEAN, 0)]
    if wants[0]:
        d = plan.space(prod(problem.sums_shape) * accumulator(dtype).itemsize)
        plan.add(made[0], [(POINTER, GRAD), (POINTER, WEIGHT), d, *numbers])
        plan.add(made[1], [d, (OUTPUT, 0)])
        outputs.append((problem.in_shape, call.dx_stride(problem, channels_last), dtype))
    if wants[1]:
        plan.add(made[-1], [(POINTER, GRAD), (POINTER, SUMS), (OUTPUT, len(outputs)), *numbers])
        outputs.append((problem.weight_shape, _contiguous(problem.weight_shape), dtype))
    return plan.given(*outputs, area=problem.out_area)


def _kernels(problem: Chain, backend: str, device: torch.device, operator: str) -> Any:
    """The kernel set that served this operator before. Raises LookupError where none did, for the way through Python
    comes first, and for a batch of none, for which there is nothing to launch."""
    name = selection.chosen(backend, device, operator)
    if name is None or name == "torch" or not problem.n:
        raise LookupError(operator)
    return selection.kernel_set(name)
