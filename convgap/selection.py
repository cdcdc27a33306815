"""Which implementation serves a call: what is usable on a device, in which order, and why not.

"auto" takes the first of triton, cupy and torch that passes its probe on the tensor's device: a
tiny launch of every forward kernel, whose answer is checked. A kernel set that fails, then or later, is
skipped from there on with one warning that says why. A name never falls back: it raises with the reason. On
the CPU both kernel sets run through interpreters, for checking and not for use, so "auto" is torch there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from threading import RLock
from types import ModuleType
from typing import Any, TypeVar

import torch

from reference.problem import Chain, Problem, Tail
from runtime import execute
from runtime.names import importable
from runtime.prepared import CPU
from torch_impl import forward

BACKENDS = ("triton", "cupy", "torch")
"""Every backend, in the order in which "auto" tries them on a CUDA device."""

ORDER: dict[str, tuple[str, ...]] = {"cuda": BACKENDS}
"""What "auto" tries, by type of device; plain torch where nothing is said. Read once per device."""

DEFAULT = os.environ.get("CONVGAP_BACKEND", "auto")
"""What "auto" means, read once at import: "auto" itself, or the name of a backend."""

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


def check_name(backend: str) -> None:
    """Raise TypeError or ValueError unless `backend` is "auto" or the name of a backend."""
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a string, got {type(backend).__name__}")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {('auto', *BACKENDS)}, got {backend!r}")


def status_of(name: str, device: torch.device) -> Status:
    """Probe backend `name` on `device`, once per process.

    Raises RuntimeError while a CUDA graph is captured, where nothing new can be probed, and
    torch.OutOfMemoryError, which says nothing about the backend: the next call probes again.
    """
    with _lock:
        found = _found.get((name, device))
        if found is None:
            found = _found[name, device] = _probed(name, device)
        return found


def _probed(name: str, device: torch.device) -> Status:
    if name == "torch":
        return Status(name, str(device), True, "torch operations", "")
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"backend {name!r} has not been used on {device} yet, and cannot be tried while a CUDA graph is"
            " captured: call convgap.warmup(...) before"
        )
    try:
        _probe(_load(name, device), device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any other failure makes the backend unusable, and is reported
        return Status(name, str(device), False, "", sentence(error))
    return Status(name, str(device), True, "compiled" if device.type == "cuda" else "interpreter", "")


def serve(backend: str, device: torch.device, run: Callable[[ModuleType | None], Answer]) -> Answer:
    """run(kernel set) with the one that serves `backend` on `device`; None is plain torch.

    Under "auto" a kernel set that fails at run, as where only some kernel of it does not compile, is
    given up like one that fails its probe. Raises RuntimeError, with the reason, if a named backend
    is not usable.
    """
    name = choose(backend, device)
    if name == "torch":
        return run(None)
    if backend != "auto" or DEFAULT != "auto":
        return run(kernel_set(name))
    try:
        return run(kernel_set(name))
    except (torch.OutOfMemoryError, TypeError, ValueError):
        raise  # memory or the call's own sizes are at fault
    except Exception as error:
        _give_up(name, device, error)
    return serve(backend, device, run)


def choose(backend: str, device: torch.device) -> str:
    """Name of the backend that serves `backend` on `device`. Raises as `serve` does."""
    return _chosen(DEFAULT if backend == "auto" else backend, device)


@cache
def _chosen(backend: str, device: torch.device) -> str:
    check_name(backend)
    with _lock:
        for name in ORDER.get(device.type, ("torch",)) if backend == "auto" else (backend,):
            found = status_of(name, device)
            if found.usable:
                return name
            if backend != "auto":
                raise RuntimeError(f"backend {name!r} is not usable on {device}: {found.reason}")
            _warn_skipped(found)
    return "torch"


def _give_up(name: str, device: torch.device, error: Exception) -> None:
    with _lock:
        if status_of(name, device).usable:
            _found[name, device] = Status(name, str(device), False, "", sentence(error))
            _chosen.cache_clear()


@cache
def _warn_skipped(found: Status) -> None:
    """Once per backend and device."""
    message = f"convgap: skipping backend {found.name!r} on {found.device}: {found.reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def depth(
    backend: str,
    problem: Problem,
    dtype: torch.dtype,
    stride: tuple[int, ...] | None = None,
    address: int = 0,
) -> int:
    """Longest chain of additions behind one output of `backend`: see docs/numerics.md.

    stride   of the input, in elements; contiguous if not given
    address  of the input, in bytes; only its alignment matters
    """
    if backend == "torch":
        return forward.depth(problem)
    _, c, h, w = problem.in_shape
    stride = stride or (c * h * w, h * w, w, 1)
    kernels = kernel_set(backend)
    if isinstance(problem, Tail):
        return kernels.prepare_tail(problem.in_shape, stride, dtype, address % 16, False).depth
    return kernels.prepare_chain(problem, stride, dtype, address % 16, False).depth


@cache
def kernel_set(name: str) -> ModuleType:
    """The launches of "triton" or "cupy", as runtime.execute takes them. ImportError where they cannot be loaded."""
    return import_module(importable(f"{name}_impl.launch"))


def _load(name: str, device: torch.device) -> ModuleType:
    if name == "cupy" and device.type == "cpu":
        reason = import_module(importable("cupy_impl.interpret")).unavailable()
        if reason:
            raise RuntimeError(reason)
    elif name == "cupy":
        _import("cupy")
    module = _import(importable(f"{name}_impl.launch"))
    if name == "triton":
        if device.type == "cpu" and not module.INTERPRETED:
            raise RuntimeError(
                "Triton runs on CPU tensors only if TRITON_INTERPRET=1 is set before it is imported"
            )
        versions = (import_module(package).__version__ for package in ("triton", "numpy"))
        if device.type == "cpu" and (reason := _cannot_interpret(*versions)):
            raise RuntimeError(reason)
        if device.type == "cuda" and module.INTERPRETED:
            raise RuntimeError("TRITON_INTERPRET is set: Triton's kernels would be interpreted, not compiled")
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"it runs on CUDA devices, not on {device.type}")
    return module


def _cannot_interpret(triton: str, numpy: str) -> str | None:
    """Why these versions do not interpret together; None if they do."""
    old, new = (tuple(map(int, text.split(".")[:2])) for text in (triton, numpy))
    if old < (3, 7) and new >= (2, 4):
        return f"Triton before 3.7 interprets with NumPy before 2.4 only: here are Triton {triton} and NumPy {numpy}"
    return None


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = {"triton": "Triton", "cupy": "CuPy"}.get(error.name or "")
        if package is None:
            raise
        raise RuntimeError(f"{package} is not installed") from None


def _probe(kernels: Any, device: torch.device) -> None:
    """One small problem through every forward kernel; small integers, so that the answer is exact."""
    problem = Chain(2, 2, 1, 24, 24, (3, 2), (2, 2), (1, 0), (1, 1), bias=True)
    on_cpu: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are set to
    x = (torch.arange(2 * 2 * 24 * 24, **on_cpu) % 7).reshape(problem.in_shape)
    weight = torch.arange(12, **on_cpu).reshape(problem.weight_shape) - 5
    bias = torch.tensor([3.0], **on_cpu)
    area = problem.out_size(0) * problem.out_size(1)
    expected = forward.chain(problem, x, weight, bias, float(area), None)
    stream = current_stream(device)
    x, weight, bias = x.to(device), weight.to(device), bias.to(device)
    got = execute.chain(kernels, problem, x, weight, bias, float(area), None, stream)
    _expect("chain", got, expected)
    sums = execute.band_sums(kernels, problem, x, stream)
    got = execute.contract(kernels, problem, sums, weight, bias, float(area), None, stream)
    _expect("band sums", got, expected)
    got = execute.tail(kernels, x, 24.0 * 24.0, None, stream)
    _expect("tail", got, x.cpu().sum((2, 3), keepdim=True))


def _expect(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    got = got.cpu()
    if not torch.allclose(got, expected, rtol=1e-6, atol=0):
        numbers = got.flatten().tolist(), expected.flatten().tolist()
        raise RuntimeError(f"its probe of the {what} gave {numbers[0]}, not {numbers[1]}")


def sentence(error: BaseException) -> str:
    """What an exception says, and what caused it, on one line. Banners and blank lines are left out."""
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalnum, line))]
    if len(" ".join(lines)) > 300:  # a compiler's output, say
        lines = [line for line in lines if "error" in line.lower()] or lines
    text = " ".join(lines)
    said = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return said if error.__cause__ is None else f"{said} (from {sentence(error.__cause__)})"


def current_stream(device: torch.device) -> int:
    """Raw handle of the current stream; 0 on the CPU. A tenth of a microsecond, unlike the public way."""
    return 0 if device == CPU else torch._C._cuda_getCurrentRawStream(device.index)
