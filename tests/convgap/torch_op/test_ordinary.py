"""Calls that leave torch's dispatcher out: only where it would have found nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import convgap
from runtime.private import ordinary
from tests.usable import require


class Listener(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def pending_negation(like: Tensor) -> Tensor:
    """A view whose elements are those of `like`, in memory with the opposite signs."""
    view = torch.complex(torch.zeros_like(like), -like).conj().imag
    assert view.is_neg() and torch.equal(view, like)
    return view


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_ordinary_tensors_go_straight(inference: bool, grad: bool, device: torch.device) -> None:
    plain = torch.rand(2, 3, 4, 4, device=device)
    parameter = torch.nn.Parameter(plain, requires_grad=False)
    with torch.inference_mode(inference), torch.set_grad_enabled(grad):
        made_here = torch.rand(2, 3, 4, 4, device=device)
        assert ordinary(plain, plain[:, :, ::2], parameter, made_here, None)


@pytest.mark.parametrize(
    "listening",
    [
        lambda: torch.autocast("cpu"),
        Listener,
        FakeTensorMode,
        forward_ad.dual_level,
        torch.autograd.profiler.profile,
        torch._C._AutoDispatchBelowAutograd,
    ],
    ids=["autocast", "dispatch mode", "fake tensors", "forward mode", "profiler", "below autograd"],
)
def test_nothing_goes_past_a_listener(listening: Callable[[], AbstractContextManager[Any]]) -> None:
    x = torch.rand(2, 3, 4, 4)
    assert ordinary(x)
    with listening():
        assert not ordinary(x)
    assert ordinary(x)


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.functionalize])
def test_nothing_goes_past_a_transform(transform: Callable[..., Any]) -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(ordinary(x))
        return x.sum()

    transform(function)(torch.rand(2, 3))
    assert seen == [False]


@pytest.mark.parametrize(
    "made",
    [
        pending_negation,
        lambda like: torch._efficientzerotensor(like.shape),  # pyright: ignore[reportPrivateImportUsage]
        lambda like: like.to("meta"),
        lambda like: FakeTensorMode().from_tensor(like),
    ],
    ids=["negation", "zero", "meta", "fake"],
)
def test_tensors_that_are_more_than_their_memory_do_not(made: Callable[[Tensor], Tensor]) -> None:
    assert not ordinary(made(torch.rand(2, 3, 4, 4)))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_a_pending_negation_is_done(backend: str, inference: bool, device: torch.device) -> None:
    require(backend, device)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(device) for shape in ((2, 3, 5, 6), (3, 4, 3, 2), (4,))
    )
    with torch.inference_mode() if inference else nullcontext():
        for name in ("x", "weight", "bias"):
            given: dict[str, Any] = {"x": x, "weight": weight, "bias": bias, "stride": 2, "backend": backend}
            expected = convgap.conv_transpose2d_multiply_gap(**given)
            given[name] = pending_negation(given[name])
            got = convgap.conv_transpose2d_multiply_gap(**given)
            # The strides of x are others, so its sums may be added in another order.
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        got = convgap.multiply_gap(pending_negation(x), 0.5, backend=backend)
        torch.testing.assert_close(got, 0.5 * x.mean((2, 3), keepdim=True), rtol=1e-5, atol=1e-6)


def test_a_profiler_sees_the_operator() -> None:
    profile = torch.autograd.profiler.profile()
    with profile:
        convgap.multiply_gap(torch.rand(2, 3, 4, 4), 0.5)
    assert profile.function_events is not None
    assert "convgap::multiply_gap" in {event.name for event in profile.function_events}


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:Converting a tensor to a Python boolean")
def test_a_trace_records_the_operator() -> None:
    traced: Any = torch.jit.trace(lambda y: convgap.multiply_gap(y, 0.5), torch.zeros(2, 3, 4, 4))
    y = torch.rand(2, 3, 4, 4)
    assert torch.equal(traced(y), convgap.multiply_gap(y, 0.5))
