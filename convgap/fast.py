"""The native call path: what an ordinary eager call on a CUDA device tries first.

`tail` and `chain` answer a call, or return None, and the caller goes the way through Python, which is right for
every call. They are functions of native.c once it is compiled and loaded; a call is planned here the first time
that its sizes, strides, dtypes and settings are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from convgap import selection
from convgap.arguments import check_chain, check_tail
from reference.problem import Chain
from runtime import call, native, refused
from runtime.prepared import Prepared, Unlaunchable, accumulator

POINTER, WORKSPACE, COUNTERS, OUTPUT, INTEGER, MEAN, SCALE = range(7)
"""What an argument of a kernel is, as native.c numbers it."""

X, WEIGHT, BIAS, MULTIPLIER = range(4)
"""The tensors of a call, as native.c numbers them."""

_lock = Lock()
_build: native.Build | None = None
_state = "no call on a CUDA device was made yet"


def state() -> str:
    """What the native path is doing: "native" where it serves calls, else why it does not."""
    return native.refusal() or _state


def wait() -> str:
    """Build and load the native path if it can be, and wait for it. Returns `state()`."""
    if torch.cuda.is_available():
        _advance(True)
    return state()


def _advance(wait: bool = False) -> None:
    """Start the compiler; when it is done, put the native functions in the place of those below."""
    global _build, _state, tail, chain, _not_yet
    with _lock:
        if not _not_yet:
            return
        try:
            if reason := native.refusal():
                raise native.Unavailable(reason)
            _build = _build or native.Build()
            if not _build.done(wait):
                _state = "the C compiler is at work, calls go through Python meanwhile"
                return
            module = native.load(_build.target)
            native.configure(module, _plan_tail, _plan_chain)
            tail, chain = module.tail, module.chain
            _state = "native"
        except (native.Unavailable, OSError) as error:
            _state = f"{error}; calls go through Python"
        _not_yet = False


_not_yet = True


def _tail(y: Any, *_: Any) -> Tensor | None:
    if _not_yet and isinstance(y, Tensor) and y.is_cuda:
        _advance()


tail: Callable[..., Tensor | None] = _tail
chain: Callable[..., Tensor | None] = _tail


# --- planning ---


def _plan_tail(y: Tensor, multiplier: Any, backend: str) -> tuple[Any, ...] | None:
    batched, _, tensor = check_tail(y, multiplier)
    given = tensor is not None

    def steps(kernels: call.KernelSet) -> tuple[Any, ...]:
        problem = call.tail_of(*batched.shape)
        where = batched.stride(), batched.dtype, batched.data_ptr() % 16
        pool = kernels.prepare_multiply_gap(problem, *where, given)
        plan = _Plan(batched)
        plan.launch(pool, [(POINTER, X), (OUTPUT, 0)], tensor, [(MEAN, 0)])
        return plan.finished(problem.c, problem.h * problem.w, y.dim() == 4)

    return _planned("multiply_gap", backend, multiplier, tensor, batched, steps)


def _plan_chain(
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
        plan = _Plan(batched)
        one = kernels.prepare_band_sums_contract(problem, *where, given)
        if one is not None:
            plan.launch(one, [(POINTER, X), *ends], tensor, scales)
        else:
            sums = plan.space(prod(problem.sums_shape) * accumulator(batched.dtype).itemsize)
            plan.launch(kernels.prepare_band_sums(problem, *where), [(POINTER, X), sums])
            plan.launch(kernels.prepare_contract(problem, weight.dtype, given), [sums, *ends], tensor, scales)
        return plan.finished(problem.c_out, problem.out_area, x.dim() == 4)

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

    def __init__(self, x: Tensor) -> None:
        self._x = x
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
        multiplier: Tensor | None = None,
        scales: list[tuple[int, int]] | None = None,
    ) -> None:
        """Add a launch: its own pointers, then what runtime/call.py gives every kernel of its kind."""
        refused.check(made.launch, self._x.device)
        arguments = list(pointers)
        arguments.append(self.space(made.partials * accumulator(self._x.dtype).itemsize))
        arguments.append((COUNTERS, 0))
        self._counters = max(self._counters, made.counters)
        if scales is not None:
            strides = (0, 0) if multiplier is None else multiplier.stride()[:2]
            arguments.append((OUTPUT, 0) if multiplier is None else (POINTER, MULTIPLIER))
            arguments += [(INTEGER, stride) for stride in strides]
            arguments += scales
        # Triton adds parameters for scratch memory that there is none of.
        arguments += [(INTEGER, size) for size in (*made.launch.sizes, 0, 0, 0, 0)]
        function, threads, shared = made.launch.handle(self._x.device)
        self._launches.append((function, *made.launch.grid, threads, shared, tuple(arguments)))

    def finished(self, channels: int, area: int, batched: bool) -> tuple[Any, ...]:
        """The plan of an output with so many channels that is the mean over `area` positions."""
        size, stride = (channels, 1, 1), (1, 1, 1)
        if batched:
            size, stride = (self._x.shape[0], *size), (channels, *stride)
        return size, stride, self._x.dtype, float(area), self._space, self._counters, tuple(self._launches)
