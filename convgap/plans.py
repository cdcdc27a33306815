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

Argument = tuple[int, int]
"""One of these, and which one, or its value."""

X, WEIGHT, BIAS, MULTIPLIER = range(4)
"""The tensors of a call, as native.c numbers them."""


Node = tuple[Callable[..., Any], Any]
"""What makes a node of autograd of a call, and what it is given to know its kind by."""

_chain_node: Callable[..., Any]
_tail_node: Callable[..., Any]
_chain_kind: Callable[..., Any]


def differentiate(
    chain_node: Callable[..., Any], chain_kind: Callable[..., Any], tail_node: Callable[..., Any]
) -> None:
    """Have calls that want gradients made nodes of autograd by these:

    chain_node(x, weight, bias, multiplier, scale, kind, made)
    tail_node(y, multiplier, scale, backend, made)

    `made` is a tuple of what the launches have made.
    chain_kind(problem, x, weight, bias, multiplier, backend) is the `kind`, or None where no gradient is wanted.
    """
    global _chain_node, _chain_kind, _tail_node
    _chain_node, _chain_kind, _tail_node = chain_node, chain_kind, tail_node


def tail(y: Tensor, multiplier: Any, backend: str) -> tuple[Any, ...] | None:
    batched, _, tensor = check_tail(y, multiplier)
    given = tensor is not None
    node = (_tail_node, backend) if torch.is_grad_enabled() and y.requires_grad else None

    def steps(kernels: call.KernelSet) -> tuple[Any, ...]:
        problem = call.tail_of(*batched.shape)
        where = batched.stride(), batched.dtype, batched.data_ptr() % 16
        pool = kernels.prepare_multiply_gap(problem, *where, given)
        plan = _Plan(batched.dtype, batched.device)
        plan.launch(pool, [(POINTER, X), (OUTPUT, 0)], [*_multiplier(tensor), (MEAN, 0)])
        return plan.given(_output(problem.c, batched, y.dim() == 4), area=problem.h * problem.w, node=node)

    return _planned("multiply_gap", backend, multiplier, tensor, y, node, steps)


def chain(x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Any, *rest: Any) -> tuple[Any, ...] | None:
    *options, backend = rest
    batched, problem, _, tensor = check_chain(x, weight, bias, multiplier, *options)
    if not (_plain(weight) and (bias is None or bias.is_contiguous())):
        return None  # the way through Python copies them
    assert isinstance(problem, Chain)
    given, dtype, device = tensor is not None, x.dtype, x.device
    kind = _chain_kind(problem, batched, weight, bias, tensor, backend)
    keeps = kind.wants[1] if kind else False
    ends = [(POINTER, WEIGHT), (OUTPUT, 0) if bias is None else (POINTER, BIAS), (OUTPUT, 0)]
    numbers = [*_multiplier(tensor), (MEAN, 0), (SCALE, 0)]

    def steps(kernels: call.KernelSet) -> tuple[Any, ...]:
        where = batched.stride(), dtype, batched.data_ptr() % 16
        plan = _Plan(dtype, device)
        prepare = call.prepare_parts if keeps else call.prepare_chain
        made = prepare(kernels, problem, *where, given)
        ahead.load(device, made)
        outputs = [_output(problem.c_out, batched, x.dim() == 4)]
        source = POINTER, X
        if kind and keeps:
            call.begin_backward(kernels, problem, dtype, kind.wants[:2], kind.channels_last, device)
            outputs.append((problem.sums_shape, _contiguous(problem.sums_shape), accumulator(dtype)))
        if len(made) > 1:
            size = prod(problem.sums_shape) * accumulator(dtype).itemsize
            sums = (OUTPUT, 1) if keeps else plan.space(size)
            plan.launch(made[0], [source, sums], [])
            source = sums
        plan.launch(made[-1], [source, *ends], numbers)
        node = None if kind is None else (_chain_node, kind)
        return plan.given(*outputs, area=problem.out_area, node=node)

    return _planned("contract" if keeps else "chain", backend, multiplier, tensor, x, kind, steps)


def _planned(
    operator: str,
    backend: str,
    multiplier: Any,
    tensor: Tensor | None,
    x: Tensor,
    node: Any,
    steps: Callable[[call.KernelSet], tuple[Any, ...]],
) -> tuple[Any, ...] | None:
    """`steps` of the kernel set that serves the call; None where Python has more to do for it than to launch."""
    name = selection.chosen(backend, x.device, operator)
    if name is None:
        raise LookupError("the first call of an operator is its probe, and goes through Python")
    if name == "torch" or not x.numel():
        return None
    if isinstance(multiplier, Tensor) and multiplier.dtype != accumulator(x.dtype):
        return None  # the way through Python converts it
    if node is not None and x.dim() != 4:
        return None  # there x and the output are views, which are differentiated too
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

    def space(self, size: int) -> Argument:
        """The argument that points to `size` bytes of workspace."""
        start = self._space
        self._space += -(-size // 256) * 256
        return WORKSPACE, start

    def launch(self, made: Prepared, pointers: list[Argument], numbers: list[Argument]) -> None:
        """Add a launch that may be cut in parts: its workspace stands between its pointers and its numbers."""
        self._counters = max(self._counters, made.counters)
        workspace = self.space(made.partials * self._itemsize)
        self.add(made, [*pointers, workspace, (COUNTERS, 0), *numbers])

    def add(self, made: Prepared, arguments: list[Argument]) -> None:
        """Add a launch with all of its arguments but the sizes."""
        refused.check(made.launch, self._device)
        # Triton adds parameters for scratch memory that there is none of.
        sizes = [(INTEGER, size) for size in (*made.launch.sizes, 0, 0, 0, 0)]
        function, threads, shared = made.launch.handle(self._device)
        self._launches.append((function, *made.launch.grid, threads, shared, (*arguments, *sizes)))

    def given(self, *outputs: tuple[Any, ...] | None, area: int, node: Node | None = None) -> tuple[Any, ...]:
        """The plan of these outputs, None for one that is not wanted; `area`: positions that the mean is taken over."""
        return outputs, float(area), self._space, self._counters, tuple(self._launches), node


def _output(channels: int, x: Tensor, batched: bool) -> tuple[Any, ...]:
    """Size, stride and dtype of an output with `channels` channels."""
    size, stride = (channels, 1, 1), (1, 1, 1)
    if batched:
        size, stride = (x.shape[0], *size), (channels, *stride)
    return size, stride, x.dtype


def _plain(tensor: Tensor) -> bool:
    """Whether kernels may read the tensor where it is."""
    return tensor.is_contiguous() and tensor.data_ptr() % 16 == 0


def _multiplier(tensor: Tensor | None) -> list[Argument]:
    """The multiplier and its strides; where there is none, another pointer takes its place."""
    strides = (0, 0) if tensor is None else tensor.stride()[:2]
    pointer = (OUTPUT, 0) if tensor is None else (POINTER, MULTIPLIER)
    return [pointer, *((INTEGER, stride) for stride in strides)]


def _contiguous(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    _, b, c, d = shape
    return b * c * d, c * d, d, 1


SUMS, GRAD = X, MULTIPLIER
"""Tensors of a backward, in the places that native.c has: band sums, and the gradient of the output."""


def backward(
    number: int, kind: Any, scale: float, grad: Tensor, sums: Tensor | None, weight: Tensor
) -> tuple[Any, ...] | None:
    """Of the gradients of x, weight and bias that the node's `kind` wants, and that are made by kernels."""
    wants_x, wants_weight, wants_bias, _ = kind.wants
    problem, dtype, device = kind.problem, kind.dtype, grad.device
    if not (wants_x or wants_weight) or (wants_bias and not wants_weight):
        return None
    read = [weight, sums] if wants_weight else [weight]
    if grad.dtype != accumulator(dtype) or not all(tensor is not None and _plain(tensor) for tensor in read):
        return None  # hooks may have put something else in their places
    kernels = _kernels(problem, kind.backend, device, "expand" if wants_x else "weight_grad")
    made = call.prepare_backward(kernels, problem, dtype, (wants_x, wants_weight), kind.channels_last)
    ahead.load(device, made)
    plan = _Plan(dtype, device)
    outputs: list[Any] = [None] * 3
    numbers = [*((INTEGER, stride) for stride in grad.stride()[:2]), (MEAN, 0)]
    if wants_x:
        d = plan.space(prod(problem.sums_shape) * accumulator(dtype).itemsize)
        plan.launch(made[0], [(POINTER, GRAD), (POINTER, WEIGHT), d], numbers)
        plan.add(made[1], [d, (OUTPUT, 0)])
        outputs[0] = problem.in_shape, call.dx_stride(problem, kind.channels_last), dtype
    if wants_weight:
        pointers = [(POINTER, GRAD), (POINTER, SUMS), (OUTPUT, 1), (OUTPUT, 2 if wants_bias else 1)]
        plan.launch(made[-1], pointers, [*numbers, (SCALE, 0), (INTEGER, int(wants_bias))])
        outputs[1] = problem.weight_shape, _contiguous(problem.weight_shape), dtype
        outputs[2] = ((problem.c_out,), (1,), dtype) if wants_bias else None
    return plan.given(*outputs, area=problem.out_area)


def _kernels(problem: Chain, backend: str, device: torch.device, operator: str) -> Any:
    """The kernel set that served this operator before. Raises LookupError where none did, for the way through Python
    comes first, and for a batch of none, for which there is nothing to launch."""
    name = selection.chosen(backend, device, operator)
    if name is None or name == "torch" or not problem.n:
        raise LookupError(operator)
    return selection.kernel_set(name)
