"""Whether a kernel set works on a device: it can be loaded, and gives the right answers to a few small calls."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from reference.problem import Chain
from runtime import call, private
from runtime.names import importable
from torch_impl import bands


def kernel_set(name: str) -> ModuleType:
    """What prepares the launches of "triton" or "cupy", as runtime.call takes it. ImportError where it does not
    load."""
    return import_module(importable(f"{name}_impl.prepare"))


def probe(name: str, device: torch.device) -> None:
    """Load the kernel set and check its answers on `device`. Raises whatever is in the way."""
    _check(_load(name, device), device)


def _load(name: str, device: torch.device) -> ModuleType:
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"it runs on CUDA devices, not on {device.type}")
    if device.type == "cuda":
        _check_device(device)
    if name == "cupy" and device.type == "cpu":
        reason = import_module(importable("cupy_impl.interpret")).unavailable()
        if reason:
            raise RuntimeError(reason)
    elif name == "cupy":
        _import("cupy")
    module = _import(importable(f"{name}_impl.prepare"))
    if name == "triton":
        if device.type == "cpu" and not module.INTERPRETED:
            raise RuntimeError(
                "Triton runs on CPU tensors only if TRITON_INTERPRET=1 is set before it is imported"
            )
        if device.type == "cuda" and module.INTERPRETED:
            raise RuntimeError("TRITON_INTERPRET is set: Triton's kernels would be interpreted, not compiled")
    return module


def _check_device(device: torch.device) -> None:
    """Raise RuntimeError where torch has no such CUDA device."""
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise RuntimeError(f"torch finds {count} CUDA device{'s' * (count != 1)}, no {device}")


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = {"triton": "Triton", "cupy": "CuPy"}.get(error.name or "")
        if package is None:
            raise
        raise RuntimeError(f"{package} is not installed") from None


def _check(kernels: Any, device: torch.device) -> None:
    """One small problem through every forward kernel; small integers, so that the answer is exact."""
    problem = Chain(2, 2, 1, 24, 24, (3, 2), (2, 2), (1, 0), (1, 1), bias=True)
    on_cpu: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are set to
    x = (torch.arange(2 * 2 * 24 * 24, **on_cpu) % 7).reshape(problem.in_shape)
    weight = torch.arange(12, **on_cpu).reshape(problem.weight_shape) - 5
    bias = torch.tensor([3.0], **on_cpu)
    expected = bands.conv_transpose2d_multiply_gap(
        x,
        weight,
        bias,
        multiplier=float(problem.out_area),
        stride=problem.stride,
        padding=problem.padding,
        output_padding=problem.output_padding,
    )
    stream = private.current_stream(device)
    x, weight, bias = x.to(device), weight.to(device), bias.to(device)
    area = float(problem.out_area)
    got = call.chain(kernels, problem, x, weight, bias, area, None, stream)
    _expect("chain", got, expected)
    sums = call.band_sums(kernels, problem, x, stream)
    got = call.contract(kernels, problem, sums, weight, bias, area, None, stream)
    _expect("band sums", got, expected)
    got = call.tail(kernels, x, 24.0 * 24.0, None, stream)
    _expect("tail", got, x.cpu().sum((2, 3), keepdim=True))


def _expect(what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    got = got.cpu()
    if not torch.allclose(got, expected, rtol=1e-6, atol=0):
        numbers = got.flatten().tolist(), expected.flatten().tolist()
        raise RuntimeError(f"its probe of the {what} gave {numbers[0]}, not {numbers[1]}")
