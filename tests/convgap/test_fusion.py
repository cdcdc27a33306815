"""convgap.fuse: what it replaces gives the same answers, what it leaves it leaves for a reason."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convgap


class Head(nn.Module):
    """ConvTranspose2d, then `rest(self, y)`."""

    def __init__(self, rest: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("columns", torch.rand(1, 1, 1, 10))
        self.unused = nn.Linear(2, 2)
        self.factor = 0.5
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, self.up(x))


REPLACED: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[str, ...]]] = {
    "scale, mean": (lambda m, y: (y * m.factor).mean((2, 3), keepdim=True), ("scale", "mean")),
    "mean twice": (
        lambda m, y: torch.mean(torch.mean(y * 0.5, dim=[2, 3], keepdim=True), dim=[2, 3], keepdim=True),
        ("scale", "mean"),
    ),
    "pool, scale": (lambda m, y: 2 * m.pool(y), ("adaptive_avg_pool2d",)),
    "no scale": (lambda m, y: y.mean((-1, -2)), ("mean",)),
    "quotient": (lambda m, y: F.adaptive_avg_pool2d(y / 4, 1), ("scale", "adaptive_avg_pool2d")),
    "parameter": (lambda m, y: torch.mul(m.gain, y).mean((-2, -1)), ("scale", "mean")),
    "parameter and numbers": (
        lambda m, y: 3 * m.pool(2 * (y * m.gain)) / 7, ("scale", "scale", "adaptive_avg_pool2d"),
    ),
    "used twice afterwards": (lambda m, y: (lambda p: p + p.sin())(m.pool(y * 2)), ("scale", "adaptive_avg_pool2d")),
}  # fmt: skip

LEFT: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "activation": (lambda m, y: torch.relu(y).mean((2, 3)), "relu() follows"),
    "used twice": (lambda m, y: y.mean((2, 3)) + y.sum(), "used 2 times"),
    "other dimensions": (lambda m, y: y.mean((1, 2)), "mean((1, 2)) follows"),
    "max pool": (lambda m, y: F.adaptive_max_pool2d(y, 1), "adaptive_max_pool2d(1) follows"),
    "larger pool": (lambda m, y: F.adaptive_avg_pool2d(y, 2), "adaptive_avg_pool2d(2) follows"),
    "end": (lambda m, y: y * 2, "the end of the model follows"),
    "columns": (lambda m, y: (y * m.columns).mean((2, 3)), "several rows or columns"),
    "unknown tensor": (lambda m, y: (y * m.gain.exp()).mean((2, 3)), "known only when the model runs"),
    "scaled by itself": (lambda m, y: (y * y).mean((2, 3)), "mul(up) follows"),
}


def data() -> Tensor:
    return torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def head(rest: Callable[[Any, Tensor], Tensor]) -> Head:
    torch.manual_seed(0)
    return Head(rest).double()


@pytest.mark.parametrize("name", REPLACED)
def test_replaced(name: str) -> None:
    rest, steps = REPLACED[name]
    model = head(rest)
    fusion = convgap.fuse(model)
    assert [(found.name, found.steps) for found in fusion.replaced] == [("up", ("conv_transpose2d", *steps))]
    assert fusion.left == ()
    x = data()
    got, expected = fusion.model(x), model(x)
    assert got.shape == expected.shape
    # float64: two right answers differ by a few units of 1e-16.
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    assert [s.operator for s in convgap.explain(fusion.model, x).steps] == ["band_sums", "contract"]
    used = [p for n, p in model.named_parameters() if not n.startswith("unused")]
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), used, allow_unused=True),
        torch.autograd.grad(expected.square().sum(), used, allow_unused=True),
        strict=True,
    ):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", LEFT)
def test_left(name: str) -> None:
    rest, why = LEFT[name]
    model = head(rest)
    fusion = convgap.fuse(model)
    assert fusion.model is model
    assert fusion.replaced == ()
    (left,) = fusion.left
    assert left.name == "up"
    assert why in left.why


def test_a_tensor_made_in_the_forward_ends_the_pattern_after_the_pool() -> None:
    model = head(lambda m, y: m.pool(y) + m.gain)
    fusion = convgap.fuse(model)
    assert fusion.replaced[0].steps == ("conv_transpose2d", "adaptive_avg_pool2d")
    torch.testing.assert_close(fusion.model(data()), model(data()), rtol=1e-12, atol=1e-14)


def test_state_dict_and_parameters_are_the_models() -> None:
    model = head(REPLACED["parameter"][0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = convgap.fuse(model).model
    assert sorted(fused.state_dict()) == sorted(before)
    assert {id(p) for p in fused.parameters()} == {id(p) for p in model.parameters()}
    fused.load_state_dict(before)
    twin = head(REPLACED["parameter"][0])
    twin.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(data()), twin(data()), rtol=1e-12, atol=1e-14)


class Numbers(nn.Module):
    """Picklable, with a pattern two levels down."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.heads = nn.ModuleList(nn.ConvTranspose2d(3, n, 3, groups=g) for n, g in ((4, 1), (6, 3)))
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.dropout(torch.cat([0.5 * up(x).mean((2, 3)) for up in self.heads], 1))


def test_deepcopy_pickle_and_training_mode() -> None:
    torch.manual_seed(0)
    model = Numbers().double().eval()
    fusion = convgap.fuse(model)
    assert [found.name for found in fusion.replaced] == ["heads.0", "heads.1"]
    expected = model(data())
    for fused in (fusion.model, copy.deepcopy(fusion.model), pickle.loads(pickle.dumps(fusion.model))):
        assert not fused.training
        torch.testing.assert_close(fused(data()), expected, rtol=1e-12, atol=1e-14)
    assert convgap.fuse(model.train()).model.training


def test_control_flow_is_left_and_its_children_are_rewritten() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = head(REPLACED["scale, mean"][0])
            self.up = nn.ConvTranspose2d(3, 3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else self.inner(self.up(x))

    model = Gate()
    fusion = convgap.fuse(model)
    assert [found.name for found in fusion.replaced] == ["inner.up"]
    assert [left.name for left in fusion.left] == ["model", "up"]
    assert "cannot be traced" in fusion.left[0].why
    for x in (data(), -data()):
        torch.testing.assert_close(fusion.model(x), model(x), rtol=1e-12, atol=1e-14)
    assert isinstance(model.inner, Head)


def test_hooks_keep_being_called() -> None:
    model = nn.Sequential(head(REPLACED["no scale"][0]), nn.Identity())
    called = []
    model.get_submodule("0.up").register_forward_hook(lambda *_: called.append("up"))
    fusion = convgap.fuse(model)
    assert [left.why for left in fusion.left] == ["it has hooks"]
    fusion.model(data())
    assert called == ["up"]


def test_subclass_and_output_size_are_left() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(3, 4, 2))
            self.b = nn.ConvTranspose2d(3, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).mean((2, 3)) + self.b(x, output_size=(10, 12)).mean((2, 3))

    fusion = convgap.fuse(Sized())
    assert {left.name: left.why.split(",")[0] for left in fusion.left} == {
        "a": "it is a ParametrizedConvTranspose2d",
        "b": "it is called with output_size",
    }


def test_functional_convolution() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 2, 3, 2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv_transpose2d(x, self.weight, None, 2, padding=1).mean([2, 3], True) * 0.25

    model = Functional()
    fusion = convgap.fuse(model)
    assert [found.steps for found in fusion.replaced] == [("conv_transpose2d", "mean")]
    torch.testing.assert_close(fusion.model(data()), model(data()), rtol=1e-12, atol=1e-14)


def test_report_and_bad_input() -> None:
    assert str(convgap.fuse(nn.Linear(2, 2))) == "no ConvTranspose2d in the model"
    assert str(convgap.fuse(head(REPLACED["no scale"][0]))) == "replaced up: conv_transpose2d -> mean"
    assert str(convgap.fuse(head(LEFT["activation"][0]))).startswith("left up: relu() follows")
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        convgap.fuse(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="backend: expected one of"):
        convgap.fuse(nn.Linear(2, 2), backend="cuda")
    with pytest.raises(ValueError, match="strategy: expected one of"):
        convgap.fuse(nn.Linear(2, 2), strategy="other")
