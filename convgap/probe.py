"""Whether a kernel set works on a device: it can be loaded, and gives the right answers.

The first call of each operator is its probe: the same call on one sample of small whole numbers, against plain
torch. So the kernels that are compiled for the probe are those that the call needs anyway. Where nothing was called
yet, and where the first call is one that the kernel set cannot launch, a small problem takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from reference.problem import Chain, Tail
from runtime import ahead, call, plan, private
from runtime.names import importable
from runtime.prepared import Prepared, Unlaunchable, accumulator
from torch_impl import forward


def kernel_set(name: str) -> ModuleType:
    """What prepares the launches of "triton" or "cupy", as runtime.call takes it. ImportError where it does not
    load."""
    return import_module(importable(f"{name}_impl.prepare"))


Check = Callable[[Any], None]
"""check(kernel set): one call of the kind that is asked for; raises WrongAnswer, or what is in the way."""


Backward = tuple[tuple[bool, bool], bool]
"""Which gradients of (x, weight) a call will be asked for, and whether x is channels last."""


class WrongAnswer(RuntimeError):
    """A kernel set can be launched, and is wrong."""


def probe(name: str, device: torch.device, check: Check | None = None) -> None:
    """Load the kernel set and check it on `device`, by `check` or by a small problem. Raises whatever is in the way."""
    kernels = _load(name, device)
    if check is not None:
        try:
            check(kernels)
            return
        except Unlaunchable:
            pass  # it may be this call alone
    _small(kernels, device)


def _load(name: str, device: torch.device) -> ModuleType:
    if device.type not in ("cpu", "cuda"):
        raise RuntimeError(f"it runs on CUDA devices, not on {device.type}")
    if device.type == "cuda":
        _check_device(device)
    plan.require_card(device)
    if name == "cupy" and device.type == "cpu":
        reason = import_module(importable("cupy_impl.interpret")).unavailable()
        if reason:
            raise RuntimeError(reason)
    elif name == "cupy":
        _import("cupy")
    module = _import(importable(f"{name}_impl.prepare"))
    if name == "triton":
        if device.type == "cpu" and not module.INTERPRETED:
            raise RuntimeError("Triton runs on CPU tensors only if TRITON_INTERPRET=1 is set before it is imported")
        versions = (import_module(package).__version__ for package in ("triton", "numpy"))
        if device.type == "cpu" and (reason := cannot_interpret(*versions)):
            raise RuntimeError(reason)
        if device.type == "cuda" and module.INTERPRETED:
            raise RuntimeError("TRITON_INTERPRET is set: Triton's kernels would be interpreted, not compiled")
    return module


def cannot_interpret(triton: str, numpy: str) -> str | None:
    """Why these versions do not interpret together; None if they do."""
    old, new = (tuple(map(int, text.split(".")[:2])) for text in (triton, numpy))
    if old < (3, 7) and new >= (2, 4):
        return f"Triton before 3.7 interprets with NumPy before 2.4 only: here are Triton {triton} and NumPy {numpy}"
    return None


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


def _small(kernels: Any, device: torch.device) -> None:
    """A small chain and a small tail, without much to compile."""
    problem = Chain(2, 2, 1, 24, 24, (3, 2), (2, 2), (1, 0), (1, 1), bias=True)
    x, weight, bias = (
        torch.ones(shape, dtype=torch.float32, device=device)  # whatever torch's defaults are set to
        for shape in (problem.in_shape, problem.weight_shape, (1,))
    )
    _chain(kernels, problem, x, weight, bias, False)
    _tail(kernels, x, False)


def check_tail(y: Tensor, tensor: bool) -> Check | None:
    """The check of a tail like that of y; None if y is no good example. `tensor`: whether the multiplier is one."""
    return partial(_tail, y=y, tensor=tensor) if _usual(y) else None


def check_chain(
    problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, tensor: bool, backward: Backward | None = None
) -> Check | None:  # fmt: skip
    """The same for a chain. backward: where the band sums are kept for one."""
    given = {"problem": problem, "x": x, "weight": weight, "bias": bias, "tensor": tensor}
    return partial(_chain, **given, backward=backward) if _usual(x) else None


def _tail(kernels: Any, y: Tensor, tensor: bool) -> None:
    def prepare(problem: Tail, *where: Any) -> list[Prepared]:
        return [kernels.prepare_multiply_gap(problem, *where)]

    _begin(Tail(*y.shape), y, tensor, prepare)
    stream = private.current_stream(y.device)
    sample = _whole_numbers(y[:1])
    multiplier = _ones(y.shape[1], y) if tensor else None
    expected = sample.double().mean((2, 3), keepdim=True)
    _expect("tail", call.tail(kernels, sample, 1.0, multiplier, stream), expected)


def _chain(
    kernels: Any, problem: Chain, x: Tensor, weight: Tensor, bias: Tensor | None, tensor: bool,
    backward: Backward | None = None,
) -> None:  # fmt: skip
    _begin(problem, x, tensor, partial(call.prepare_parts if backward else call.prepare_chain, kernels))
    if backward:
        call.begin_backward(kernels, problem, x.dtype, *backward, x.device)
    stream = private.current_stream(x.device)
    one = replace(problem, n=1)
    sample, taps = _whole_numbers(x[:1]), _whole_numbers(weight)
    added = None if bias is None else _whole_numbers(bias)
    multiplier = _ones(problem.c_out, x) if tensor else None
    wide = None if added is None else added.double()
    try:
        expected = forward.chain(one, sample.double(), taps.double(), wide, 1.0, None)
    except RuntimeError as error:
        raise Unlaunchable(f"plain torch has no answer to compare with: {error}") from error
    given = taps, added, 1.0, multiplier, stream
    if backward:
        got = call.contract(kernels, one, call.band_sums(kernels, one, sample, stream), *given)
    else:
        got = call.chain(kernels, one, sample, *given)
    _expect("chain", got, expected)


def _begin(problem: Any, x: Tensor, tensor: bool, prepare: Callable[..., list[Prepared]]) -> None:
    """Have the code of the sample and of the call itself compiled while the expected answer is worked out."""
    for each, alignment in ((replace(problem, n=1), 0), (problem, x.data_ptr() % 16)):
        with suppress(Unlaunchable):
            ahead.load(x.device, prepare(each, x.stride(), x.dtype, alignment, tensor))


MOST = 1 << 24
"""Elements that a sample of a call may take in memory for the call to be its own probe: 64 MiB of float32."""


def _usual(x: Tensor) -> bool:
    """Whether there is a sample, of moderate size, and each of its elements has a place of its own."""
    if not x.shape[0] or any(stride == 0 and size > 1 for size, stride in zip(x.shape[1:], x.stride()[1:])):
        return False
    return sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:])) < MOST


def _whole_numbers(like: Tensor) -> Tensor:
    """0 to 4 in turn, with the strides of `like`. Without negative ones nothing cancels."""
    numbers = torch.arange(like.numel(), device=like.device, dtype=torch.int64) % 5
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    return made.copy_(numbers.view(like.shape))


def _ones(c: int, like: Tensor) -> Tensor:
    return torch.ones(1, c, 1, 1, dtype=accumulator(like.dtype), device=like.device)


ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Relative error that a working kernel stays far below, with sums of numbers that are not negative."""


def _expect(what: str, got: Tensor, expected: Tensor) -> None:
    # On the CPU: each of torch's operations that a process has not used yet takes some 10 ms to load on a GPU.
    got, expected = got.cpu(), expected.cpu()
    right = torch.isclose(got.double(), expected, rtol=ROUNDING[got.dtype], atol=0)
    if not right.all():
        values = tuple(t.double()[~right][:4].tolist() for t in (got, expected))
        raise WrongAnswer(f"its probe of the {what} gave {values[0]}, not {values[1]}")
