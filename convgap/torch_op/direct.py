"""When a call may go straight to its kernel: where torch's dispatcher would find nothing to do on the way.

The dispatcher goes by two sets of keys: those of the tensors (a subclass, a negation still to be done, ...) and those
of the thread (modes, transforms, autocast, tracing, ...). If both are the ordinary ones and nothing is to be
differentiated it would end at the kernel, having taken about as long as all else that a call costs the host.
"""

from __future__ import annotations

from threading import Thread

import torch
from torch import Tensor
from torch._C._autograd import _profiler_enabled
from torch.autograd import forward_ad


def _keys(*names: str) -> int:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
    for name in names:
        keys = keys | torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name))
    return keys.raw_repr()


# Tensors made in inference mode, and all others.
_ORDINARY = frozenset(
    _keys(device, f"Autocast{device}", *more)
    for device in ("CPU", "CUDA")
    for more in ((), ("ADInplaceOrView", f"Autograd{device}"))
)


def _thread() -> tuple[int, int]:
    """Keys that this thread adds to those of every call's tensors, and that it takes away."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr(),
        torch._C._dispatch_tls_local_exclude_set().raw_repr(),
    )


def _ordinary_threads() -> frozenset[tuple[int, int]]:
    """A thread's keys in inference mode and outside: of a new one, since this module may be imported anywhere."""
    found = set()

    def look() -> None:
        for inference in (False, True):
            with torch.inference_mode(inference):
                found.add(_thread())

    thread = Thread(target=look)
    thread.start()
    thread.join()
    return frozenset(found)


_THREADS = _ordinary_threads()


def direct(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors may leave the dispatcher out. Never while a profiler listens for operators."""
    # What most calls fail by comes first: those of training.
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors):
        return False
    for tensor in tensors:
        if tensor is not None and torch._C._dispatch_keys(tensor).raw_repr() not in _ORDINARY:
            return False
    return _thread() in _THREADS and forward_ad._current_level < 0 and not _profiler_enabled()
