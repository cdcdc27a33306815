"""The native call path: what an ordinary eager call on a CUDA device tries first.

`tail` and `chain` answer a call, or return None, and the caller goes the way through Python, which is right for every
call. They are functions of native.c once it is compiled and loaded; a call is planned here the first time that its sizes,
strides, dtypes and settings are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from convgap import selection
from runtime import call, native, private, refused
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
    from convgap.functions import tail_arguments

    batched, tensor, _ = tail_arguments(y, multiplier)
    return _planned(backend, batched, y.dim() == 4, tensor, multiplier, lambda kernels: _tail_steps(kernels, batched, tensor))


def _plan_chain(x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Any, *rest: Any) -> tuple[Any, ...] | None:
    from convgap.functions import chain_arguments

    *options, backend = rest
    problem, batched, tensor, _ = chain_arguments(x, weight, bias, multiplier, *options)
    if not (weight.is_contiguous() and weight.data_ptr() % 16 == 0 and (bias is None or bias.is_contiguous())):
        return None  # a copy is made of them on the way through Python
    return _planned(
        backend, batched, x.dim() == 4, tensor, multiplier, lambda kernels: _chain_steps(kernels, problem, batched, bias, tensor)
    )
