"""Which implementation serves a call: what is usable on a device, in which order, and why not.

"auto" takes the first of triton, cupy and torch that passes its probe on the tensor's device (convgap/probe.py). A
kernel set that fails its probe is skipped from there on, with one warning that says why. One that cannot compile or
launch a call leaves calls of that kind to the next, with a warning too, and goes on to serve all others. A name
never falls back: it raises with the reason. On the CPU both kernel sets run through interpreters, for checking and
not for use, so "auto" is torch there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from threading import RLock
from types import ModuleType
from typing import TypeVar

import torch

from convgap.probe import Check, WrongAnswer, kernel_set, probe
from runtime.plan import PlanError
from runtime.prepared import Unlaunchable
from runtime.refused import sentence

BACKENDS = ("triton", "cupy", "torch")
"""Every backend, in the order in which "auto" tries them on a CUDA device."""

ORDER: dict[str, tuple[str, ...]] = {"cuda": BACKENDS}
"""What "auto" tries, by type of device; plain torch where nothing is said. Read once per device."""

DEFAULT = os.environ.get("CONVGAP_BACKEND") or "auto"
"""What "auto" means, read once at import: "auto" itself, or the name of a backend. Empty counts as unset."""

Answer = TypeVar("Answer")

# Guards what is found out once: without it, threads that call at the same time would each probe and warn.
_lock = RLock()
_found: dict[tuple[str, torch.device], Status] = {}


@dataclass(frozen=True)
class Status:
    """One backend on one device."""

    name: str
    device: str
    usable: bool
    how: str
    """"compiled", "interpreter" or "torch operations"; empty if not usable."""
    reason: str
    """Why it is not usable; empty if it is."""
    calls: str = ""
    """How ordinary eager calls get to compiled kernels: "native", or why they go through Python."""


def check_name(backend: str) -> None:
    """Raise TypeError or ValueError unless `backend` is "auto" or the name of a backend."""
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a string, got {type(backend).__name__}")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {('auto', *BACKENDS)}, got {backend!r}")


def status_of(name: str, device: torch.device, check: Check | None = None) -> Status:
    """Backend `name` on `device`, probed once per process, by `check` if it is given; "cpu:0" is the CPU.

    Raises RuntimeError while a CUDA graph is captured, where nothing new can be probed, and
    torch.OutOfMemoryError, which says nothing about the backend: the next call probes again. Raises PlanError, a
    ValueError, for a plan that is of another card or no plan: what was asked for is wrong, and not the backend.
    """
    if device.type == "cpu":
        device = torch.device("cpu")
    with _lock:
        found = _found.get((name, device))
        if found is None:
            found = _found[name, device] = _probed(name, device, check)
        return found


def _probed(name: str, device: torch.device, check: Check | None) -> Status:
    if name == "torch":
        return Status(name, str(device), True, "torch operations", "")
    if _capturing(device):
        raise RuntimeError(
            f"backend {name!r} has not been used on {device} yet, and cannot be tried while a CUDA graph is"
            " captured: call convgap.warmup(...) before"
        )
    try:
        probe(name, device, check)
    except (torch.OutOfMemoryError, PlanError):
        raise
    except Exception as error:  # any other failure makes the backend unusable, and is reported
        reason = error.__cause__ if isinstance(error, Unlaunchable) and error.__cause__ else error
        return Status(name, str(device), False, "", sentence(reason))
    return Status(name, str(device), True, "compiled" if device.type == "cuda" else "interpreter", "")


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def chosen(backend: str, device: torch.device, operator: str) -> str | None:
    """The backend that is asked first, or None if that is not known without a probe."""
    return next(iter(_choices.get((backend, device, operator), ())), None)


_choices: dict[tuple[str, torch.device, str], tuple[str, ...]] = {}
"""(backend asked for, device, operator) -> the backends that may serve it, in order, without plain torch."""


def _candidates(backend: str, device: torch.device, operator: str, check: Check | None) -> tuple[str, ...]:
    """Usable backends for a call, each probed by `check` at the operator's first call."""
    asked = DEFAULT if backend == "auto" else backend
    if asked != "auto" and asked not in BACKENDS:
        # The argument is checked before: what is left is the variable.
        raise ValueError(f"CONVGAP_BACKEND: expected one of {('auto', *BACKENDS)}, got {asked!r}")
    with _lock:
        usable = []
        for name in ORDER.get(device.type, ("torch",)) if asked == "auto" else (asked,):
            new = (name, device) not in _found
            found = status_of(name, device, check)
            if found.usable and not new and check is not None and name != "torch" and not _capturing(device):
                found = _checked(found, device, check)
            if found.usable:
                usable.append(name)
                break
            if asked != "auto":
                raise RuntimeError(f"backend {name!r} is not usable on {device}: {found.reason}")
            _warn(f"convgap: skipping backend {found.name!r} on {found.device}: {found.reason}")
        names = tuple(usable) or ("torch",)
        if not _capturing(device):
            _choices[backend, device, operator] = names
        return names


def _checked(found: Status, device: torch.device, check: Check) -> Status:
    """A backend that works, after the first call of another operator: a wrong answer gives it up as well."""
    try:
        check(kernel_set(found.name))
    except Unlaunchable:
        pass  # this call alone
    except WrongAnswer as error:
        found = _found[found.name, device] = Status(found.name, found.device, False, "", sentence(error))
        _choices.clear()
    return found


def serve(
    backend: str,
    device: torch.device,
    operator: str,
    run: Callable[[ModuleType | None], Answer],
    check: Callable[[], Check | None] = lambda: None,
) -> Answer:
    """run(kernel set) with the one that serves `backend` on `device`; None is plain torch.

    operator   name of the step that is run
    check      makes its probe, where this is the operator's first call

    Raises RuntimeError, with the reason, if a named backend is not usable or cannot launch this call.
    """
    names = _choices.get((backend, device, operator))
    if names is None:
        names = _candidates(backend, device, operator, check())
    for name in names:
        if name == "torch":
            break
        try:
            return run(kernel_set(name))
        except Unlaunchable as error:
            if backend != "auto" or DEFAULT != "auto":
                raise RuntimeError(f"backend {name!r} cannot serve this call on {device}: {error}") from error
            _warn(f"convgap: backend {name!r} leaves calls of this kind on {device} to the next: {error}")
            return _next(name, device, run)
    return run(None)


def _next(first: str, device: torch.device, run: Callable[[ModuleType | None], Answer]) -> Answer:
    """run with what comes behind `first` in the order of "auto"."""
    order = ORDER.get(device.type, ())
    for name in order[order.index(first) + 1 :]:
        if name != "torch" and status_of(name, device).usable:
            try:
                return run(kernel_set(name))
            except Unlaunchable as error:
                _warn(f"convgap: backend {name!r} leaves calls of this kind on {device} to the next: {error}")
    return run(None)


@lru_cache(maxsize=1024)
def _warn(message: str) -> None:
    """Once for each message, as long as they are few."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)
