"""What a fused model's forward does with a waiting output behind Python's back: C++ code that takes it for a tensor,
custom Functions, checkpoints, hooks, transforms, writes. Values and gradients are those of the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import convgap


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 2


class Model(nn.Module):
    """The pattern while it is evaluated; something else with the layer's output while it is trained."""

    def __init__(self, otherwise: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3)
        self.factor = nn.Parameter(torch.full((1, 4, 1, 1), 0.7))
        self.otherwise = otherwise

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.training:
            y = self.otherwise(self, y)
        return (y * self.factor).mean((2, 3))


def as_before(model: nn.Module, fused: nn.Module, x: Tensor, context: Any = nullcontext) -> None:
    """Both models give the same; where gradients are recorded, the same of them too."""
    found = []
    for each in (model, fused):
        given, before = x.detach().clone(), list(model.parameters())
        if context is nullcontext:
            given.requires_grad_()
        with context():
            out = each(given)
        outs = list(out) if isinstance(out, tuple) else [out]
        grads: list[Tensor] = []
        if context is nullcontext:
            sum((one.square().sum() for one in outs), torch.zeros(())).backward()
            for tensor in (given, *before):
                assert tensor.grad is not None
                grads.append(tensor.grad)
                tensor.grad = None
        found.append([*(one.detach() for one in outs), *grads])
    for was, now in zip(*found, strict=True):
        # The same few hundred products, added up in another order: some 1e-6 apart in float32.
        torch.testing.assert_close(now, was, rtol=1e-4, atol=1e-4)


def data() -> Tensor:
    return torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1))


OTHERWISE: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "custom Function": lambda _, y: Twice.apply(y),  # pyright: ignore[reportReturnType]
    "custom Function of a product": lambda m, y: Twice.apply(y * m.factor),  # pyright: ignore[reportReturnType]
    "custom Function after a product in place": lambda _, y: Twice.apply(y.mul_(3)),  # pyright: ignore[reportReturnType]
    "product in place with a parameter": lambda m, y: y.mul_(m.factor),
    "checkpoint": lambda _, y: checkpoint(torch.relu, y, use_reentrant=False),
    "reentrant checkpoint": lambda _, y: checkpoint(torch.relu, y, use_reentrant=True),
    "vmap": lambda _, y: torch.vmap(lambda t: t * 3)(y),
    "grad of torch.func": lambda _, y: y + torch.func.grad(lambda t: (t**2).sum())(y),
    "as_tensor": lambda _, y: torch.as_tensor(y) * 2,
    "unbound method": lambda _, y: Tensor.relu(y),
    "compiled function": lambda _, y: torch.compile(lambda t: t.relu(), backend="eager")(y),
    "view": lambda _, y: y.view(2, 4, -1).relu().view(y.shape),
    "NumPy": lambda _, y: y + float(y.detach().numpy().sum()),
    "its data": lambda _, y: y + y.data,
    "storage of another": lambda _, y: torch.empty(0).set_(y.detach()).reshape(y.shape) + y,  # pyright: ignore[reportArgumentType]
    "DLPack": lambda _, y: y + torch.from_dlpack(y.detach()),
}


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", OTHERWISE)
def test_what_was_not_seen_is_done_as_before(name: str, context: type[AbstractContextManager[Any]]) -> None:
    model = Model(OTHERWISE[name])
    fusion = convgap.fuse(model.eval())
    assert [found.name for found in fusion.replaced] == ["up"]
    as_before(model, fusion.model, data(), context)
    model.train()
    fusion.model.train()
    as_before(model, fusion.model, data(), context)


def test_hooks_on_what_a_gradient_passes() -> None:
    seen = list[float]()
    model = Model(lambda _, y: (y.register_hook(lambda grad: seen.append(grad.sum().item())), y)[1])
    fused = convgap.fuse(model.eval()).model
    model.train()
    fused.train()
    as_before(model, fused, data())
    assert len(seen) == 2 and seen[0] == pytest.approx(seen[1], rel=1e-4)


def test_a_layer_inside_a_checkpoint() -> None:
    class Inside(Model):
        def forward(self, x: Tensor) -> Tensor:
            return (checkpoint(self.up, x, use_reentrant=True) * self.factor).mean((2, 3))

    model = Inside(lambda _, y: y)
    as_before(model, convgap.fuse(model).model, data())


def test_a_backward_hook_on_the_pool() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    fused: Any = convgap.fuse(model).model
    shapes = []
    fused[1].register_full_backward_hook(lambda module, of_input, of_output: shapes.append(of_input[0].shape))
    as_before(model, fused, data())
    assert shapes == [(2, 4, 7, 8)]


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "relu_": lambda y: y.relu_(),
    "setitem": lambda y: y.__setitem__(0, 0),
    "view": lambda y: y.view(-1).zero_(),
    "out": lambda y: torch.add(y, 1, out=y),
    "data": lambda y: y.data.zero_(),
    "product": lambda y: y.mul_(3),
    "flag": lambda y: F.relu(y, inplace=True),
}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", WRITES)
def test_a_product_keeps_the_values_of_its_time(name: str, context: Any) -> None:
    class Written(Model):
        def forward(self, x: Tensor) -> Any:
            y = self.up(x)
            if not self.training:
                return (y * 0.5).mean((2, 3))
            twice = y * 2
            thrice = twice * 1.5
            WRITES[name](y)
            return twice.abs(), thrice.abs(), y.abs()

    model = Written(lambda _, y: y)
    fused = convgap.fuse(model.eval()).model
    model.train()
    fused.train()
    as_before(model, fused, data(), context)
    if name == "relu_" and context is torch.no_grad:
        compiled: Any = torch.compile(fused, backend="eager", fullgraph=True)
        as_before(model, compiled, data(), context)
        with torch.no_grad():
            as_before(model, torch.export.export(fused, (data(),)).module(), data(), context)


def test_second_derivatives_through_a_function() -> None:
    model = Model(OTHERWISE["custom Function"]).double()
    fused = convgap.fuse(model.eval()).model.train()
    x = data().double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: fused(t), (x,))


def test_layers_whose_input_is_written_to_do_not_wait_in_another_call() -> None:
    class Both(Model):
        def forward(self, x: Tensor) -> Any:
            pooled = (self.up(x) * 0.5).mean((2, 3))
            x = x + 1
            y = self.up(x)
            x.relu_()
            return pooled, y.abs()

    class Functions(Both):
        def forward(self, x: Tensor) -> Any:
            pooled = F.conv_transpose2d(x, self.up.weight).mean((2, 3))
            x = x + 1
            y = F.conv_transpose2d(x, self.up.weight)
            x.relu_()
            return pooled, y.abs()

    for kind in (Both, Functions):
        model = kind(lambda _, y: y)
        fusion = convgap.fuse(model)
        assert fusion.model is model and not fusion.replaced
        assert "relu_() may write to its input" in str(fusion) and "another call of it" in str(fusion)


def test_nothing_waits_outside_the_module_that_holds_the_pattern() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    fused: Any = convgap.fuse(model).model
    x = data()
    assert type(fused[0](x)) is Tensor and type(fused[:1](x)) is Tensor
    y = fused[0](x)
    with torch.no_grad():
        fused[0].weight.zero_()
    assert y.abs().sum() > 1


def test_fuse_leaves_tensors_of_the_model_alone() -> None:
    class Counts(Model):
        def __init__(self) -> None:
            super().__init__(lambda _, y: y)
            self.calls, self.listed = torch.zeros(1), [torch.zeros(1)]

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            self.listed[0].add_(1)
            return self.up(x).mean((2, 3))

    model = Counts()
    fused: Any = convgap.fuse(model).model
    assert model.calls.item() == model.listed[0].item() == 0
    fused(data())
    assert model.calls.item() == 1
