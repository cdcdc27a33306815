"""The native call path: what an ordinary eager call on a CUDA device tries first.

`tail` and `chain` answer a call, or return None, and the caller goes the way through Python, which is right for
every call. They are functions of native.c once it is compiled and loaded; a call is planned here the first time
that its sizes, strides, dtypes and settings are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convgap import plans
from reference.problem import Chain
from runtime import native

_lock = Lock()
_build: native.Build | None = None
_module: ModuleType | None = None
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
    global _build, _state, _module, tail, chain, _not_yet
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
            native.configure(module, plans.tail, plans.chain)
            _module = module
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


def forget() -> None:
    """Plan every call anew: the code of some launch has changed."""
    _plan.cache_clear()
    if _module is not None:
        _module.clear()


@contextmanager
def off() -> Iterator[None]:
    """All calls go through Python while this is entered: for whoever watches launches or memory there. Not for several
    threads at once."""
    global _module, tail, chain
    wait()
    kept = _module, tail, chain
    _module, tail, chain = None, _tail, _tail
    try:
        yield
    finally:
        _module, tail, chain = kept


# The parts of a derivative, on tensors that the caller found ordinary; None: the way through Python is to be taken.


def forward_parts(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: Tensor | None, scale: float,
    wants: tuple[bool, bool], channels_last: bool, backend: str,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """(output, band sums) of a chain whose backward gives the gradients that `wants` says."""
    if _module is None or not x.is_cuda or not (_plain(weight) and (bias is None or bias.is_contiguous())):
        return None
    strides = None if multiplier is None else (multiplier.stride(0), multiplier.stride(1))
    where = problem, x.stride(), x.dtype, x.data_ptr() % 16
    key = *where, strides, wants, channels_last, backend, x.device
    plan = _kept(plans.forward_parts, *key)
    return plan and _module.execute(plan, scale, x, weight, bias, multiplier)


def backward(
    problem: Chain, grad: Tensor, sums: Tensor | None, weight: Tensor, scale: float, wants: tuple[bool, bool],
    channels_last: bool, backend: str,
) -> tuple[Tensor | None, Tensor | None] | None:  # fmt: skip
    """(gradient of x, gradient of the weight), of those that are wanted."""
    if _module is None or not grad.is_cuda or not any(wants) or not _plain(weight):
        return None
    if wants[1] and (sums is None or not _plain(sums)):
        return None
    key = problem, weight.dtype, (grad.stride(0), grad.stride(1)), wants, channels_last, backend, grad.device
    plan = _kept(plans.backward, *key)
    # Whatever is first tells the device.
    found = plan and _module.execute(plan, scale, weight if sums is None else sums, weight, None, grad)
    if found is None or all(wants):
        return found
    return (found, None) if wants[0] else (None, found)


def _plain(tensor: Tensor) -> bool:
    """Whether kernels may read the tensor where it is."""
    return tensor.is_contiguous() and tensor.data_ptr() % 16 == 0


def _kept(planner: Callable[..., Any], *key: Any) -> Any:
    """The plan of that key, or None where there is none yet, or never."""
    try:
        return _plan(planner, *key)
    except (LookupError, RuntimeError, ValueError):
        return None  # what is wrong is wrong again on the way through Python, which says so


@lru_cache(maxsize=4096)
def _plan(planner: Callable[..., Any], *key: Any) -> Any:
    assert _module is not None
    return _module.plan(planner(*key))
