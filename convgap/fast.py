"""The native call path: what an ordinary eager call on a CUDA device tries first.

`tail`, `chain` and `backward` answer a call, or return None, and the caller goes the way through Python, which is right
for every call. They are functions of native.c once it is compiled and loaded; a call is planned (plans.py) the first
time that its sizes, strides, dtypes and settings are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from convgap import plans
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
    global _build, _state, _module, tail, chain, backward, _not_yet
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
            native.configure(module, plans.tail, plans.chain, plans.backward)
            _module = module
            tail, chain, backward = module.tail, module.chain, module.backward
            _state = "native"
        except (native.Unavailable, OSError) as error:
            _state = f"{error}; calls go through Python"
        _not_yet = False


_not_yet = True


def _tail(y: Any, *_: Any) -> Tensor | None:
    if _not_yet and isinstance(y, Tensor) and y.is_cuda:
        _advance()


def _backward(*_: Any) -> None:
    """No gradients from here."""


tail: Callable[..., Tensor | None] = _tail
chain: Callable[..., Tensor | None] = _tail
backward: Callable[..., tuple[Tensor | None, ...] | None] = _backward


def forget() -> None:
    """Plan every call anew: the code of some launch has changed."""
    if _module is not None:
        _module.clear()


@contextmanager
def off() -> Iterator[None]:
    """All calls go through Python while this is entered: for whoever watches launches or memory there. Not for several
    threads at once."""
    global _module, tail, chain, backward
    wait()
    kept = _module, tail, chain, backward
    _module, tail, chain, backward = None, _tail, _tail, _backward
    try:
        yield
    finally:
        _module, tail, chain, backward = kept
