"""Code for just the sizes of a call: the same bits, for these sizes alone, on both ways to a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import convgap
import convgap.selection
from convgap import explanation, fast


def usable(backend: str, device: torch.device) -> None:
    status = convgap.selection.status_of(backend, device)
    if not status.usable:
        pytest.skip(f"{backend}: {status.reason}")


# A tail whose planes lie one behind the other, one whose planes are cut in parts, a chain with few weights, one of
# small planes, and one with many channels: between them the two sets launch every kernel that makes an output.
CALLS = {
    "small planes": ("tail", (2, 6, 5, 7)),
    "large planes": ("tail", (1, 2, 130, 66)),
    "few weights": ("chain", (2, 3, 33, 20), 4, {"stride": 2, "padding": 1}),
    "smallest planes": ("chain", (5, 6, 2, 2), 7, {"padding": 1}),
    "many channels": ("chain", (2, 40, 9, 11), 24, {"stride": 2, "padding": 1, "output_padding": 1}),
}


def made(name: str, device: torch.device) -> tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]:
    operator, shape, *rest = CALLS[name]
    generator = torch.Generator().manual_seed(1)

    def random(*size: int) -> Tensor:
        return (torch.rand(size, generator=generator) - 0.5).to(device)

    if operator == "tail":
        return convgap.multiply_gap, (random(*shape), 0.5), {}
    c_out, options = rest
    x, weight, bias = random(*shape), random(shape[1], c_out, 3, 3), random(c_out)
    return convgap.conv_transpose2d_multiply_gap, (x, weight, bias), {"multiplier": 0.5, **options}


@pytest.fixture(autouse=True)
def any_sizes_afterwards() -> Iterator[None]:
    """Launches are shared by whoever makes the same call: what a test made special is put back."""
    kept: list[Any] = []
    original = explanation.launches

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        kept.extend(found)
        return found

    explanation.launches = noted
    yield
    explanation.launches = original
    for launch, _ in kept:
        launch.unfix()
    fast.forget()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_same_bits_for_these_sizes_alone(backend: str, name: str, device: torch.device) -> None:
    usable(backend, device)
    function, args, options = made(name, device)
    options["backend"] = backend
    general = function(*args, **options)
    before = convgap.explain(function, *args, **options).steps[0]
    assert before.fixed == () and "code for any sizes" in str(before)

    told = convgap.specialize(function, *args, **options).steps[0]
    assert told.kernels and told.fixed == told.kernels and "code for just these sizes" in str(told)
    assert torch.equal(function(*args, **options), general)
    with fast.off():  # the way through Python
        assert torch.equal(function(*args, **options), general)
    larger = args[0].repeat(1, 1, 2, 1)
    assert convgap.explain(function, larger, *args[1:], **options).steps[0].fixed == ()


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_a_backward_too(backend: str, device: torch.device) -> None:
    usable(backend, device)
    function, args, options = made("many channels", device)
    options["backend"] = backend
    leaves = [tensor.requires_grad_() for tensor in args]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(*leaves, **options).sum(), leaves)

    general = gradients()
    told = convgap.specialize(function, *leaves, **options)
    kernels = {kernel for step in told.steps for kernel in step.fixed}
    assert {"expand", "band_fill", "weight_grad"} <= kernels
    assert all(torch.equal(a, b) for a, b in zip(gradients(), general, strict=True))
