"""Which implementation serves a call: what is usable on a device, in which order, and why not.

"auto" takes the first of triton, cupy and torch that passes its probe on the tensor's device: a
tiny launch of every forward kernel, whose answer is checked. A kernel set that fails is skipped with one
warning that says why. A name never falls back: it raises with the reason. On the CPU both kernel
sets run through interpreters, for checking and not for use, so "auto" is torch there.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch

from convgap import execute
from reference import collapsed
from reference.problem import Chain, Problem

BACKENDS = ("triton", "cupy", "torch")
"""Every backend, in the order in which "auto" tries them."""

DISTRIBUTIONS = {"triton": "Triton", "cupy": "CuPy"}
"""What has to be installed for a kernel set, by the name it is imported under."""

DEFAULT = os.environ.get("CONVGAP_BACKEND", "auto")
"""What "auto" means, read once at import: "auto" itself, or the name of a backend."""


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


@lru_cache(maxsize=None)
def status_of(name: str, device: torch.device) -> Status:
    """Probe backend `name` on `device`, once per process."""
    if name == "torch":
        return Status(name, str(device), True, "torch operations", "")
    try:
        kernels = _load(name, device)
        _probe(kernels, device)
    except Exception as error:  # any failure at all makes the backend unusable, and is reported
        return Status(name, str(device), False, "", _sentence(error))
    return Status(name, str(device), True, "compiled" if device.type == "cuda" else "interpreter", "")


def kernels(backend: str, device: torch.device) -> ModuleType | None:
    """The kernel set that serves `backend` on `device`; None is plain torch.

    Raises RuntimeError, with the reason, if a named backend is not usable there.
    """
    if backend == "auto" and DEFAULT not in ("auto", *BACKENDS):
        raise ValueError(f"CONVGAP_BACKEND: expected one of {('auto', *BACKENDS)}, got {DEFAULT!r}")
    return _resolved(DEFAULT if backend == "auto" else backend, device)


@lru_cache(maxsize=None)
def _resolved(backend: str, device: torch.device) -> ModuleType | None:
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return None
    for name in ("triton", "cupy") if backend == "auto" else (backend,):
        found = status_of(name, device)
        if found.usable:
            return _module(name)
        if backend != "auto":
            raise RuntimeError(f"backend {name!r} is not usable on {device}: {found.reason}")
        warnings.warn(f"convgap: skipping backend {name!r} on {device}: {found.reason}", RuntimeWarning, stacklevel=2)
    return None


def depth(backend: str, problem: Problem, dtype: torch.dtype) -> int:
    """Longest chain of additions behind one output of `backend`: see docs/numerics.md."""
    if backend == "torch":
        return collapsed.depth(problem)
    return import_module(f"{backend}_impl.plan").depth(problem, dtype.itemsize)


def _module(name: str) -> ModuleType:
    return import_module(f"{name}_impl.launch")


def _load(name: str, device: torch.device) -> ModuleType:
    if name == "cupy" and device.type == "cpu":
        reason = import_module("cupy_impl.interpret").unavailable()
        if reason:
            raise RuntimeError(reason)
    elif name == "cupy":
        import_module("cupy")
    module = _module(name)
    if name == "triton":
        if device.type == "cpu" and not module.INTERPRETED:
            raise RuntimeError("Triton runs on CPU tensors only if TRITON_INTERPRET=1 is set before it is imported")
        if device.type == "cuda" and module.INTERPRETED:
            raise RuntimeError("TRITON_INTERPRET is set: Triton's kernels would be interpreted, not compiled")
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"it runs on CUDA devices, not on {device.type}")
    return module


def _probe(kernel_set: ModuleType, device: torch.device) -> None:
    """One small problem through every forward kernel; small integers, so that the answer is exact."""
    problem = Chain(2, 2, 1, 24, 24, (3, 2), (2, 2), (1, 0), (1, 1), bias=True)
    x = (torch.arange(2 * 2 * 24 * 24, dtype=torch.float32) % 7).reshape(problem.in_shape)
    weight = torch.arange(12, dtype=torch.float32).reshape(problem.weight_shape) - 5
    bias = torch.tensor([3.0])
    area = problem.out_size(0) * problem.out_size(1)
    expected = collapsed.conv_transpose2d_multiply_gap(
        x,
        weight,
        bias,
        multiplier=float(area),
        stride=problem.stride,
        padding=problem.padding,
        output_padding=problem.output_padding,
    )
    stream = current_stream(device)
    x, weight, bias = x.to(device), weight.to(device), bias.to(device)
    for save in (False, True):
        got, _ = execute.chain(kernel_set, problem, x, weight, bias, float(area), None, save, stream)
        _expect("chain", got.cpu(), expected)
    got = execute.tail(kernel_set, x, 24.0 * 24.0, None, stream)
    _expect("tail", got.cpu(), x.cpu().sum((2, 3), keepdim=True))


def _expect(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.allclose(got, expected, rtol=1e-6, atol=0):
        raise RuntimeError(f"its probe of the {what} gave {got.flatten().tolist()}, not {expected.flatten().tolist()}")


def _sentence(error: BaseException) -> str:
    """The cause in one line: of a chain of errors the first, of its text the first line that has words."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ModuleNotFoundError) and error.name in DISTRIBUTIONS:
        return f"{DISTRIBUTIONS[error.name]} is not installed"
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    text = lines[0] if lines else "no message"
    # The reasons given here are sentences already.
    return text if type(error) is RuntimeError else f"{type(error).__name__}: {text}"


def current_stream(device: torch.device) -> int:
    """Raw handle of the current stream; 0 on the CPU. A tenth of a microsecond, unlike the public way."""
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0
