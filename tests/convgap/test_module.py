"""The module: the same parameters as the step-by-step model, and a good citizen of nn.Module."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import convgap
from reference import eager

ARGUMENTS = (6, 4, 3, 2, 1, 1)


def make(seed: int = 0, **options: object) -> convgap.ConvTranspose2dMultiplyGAP:
    torch.manual_seed(seed)
    return convgap.ConvTranspose2dMultiplyGAP(*ARGUMENTS, 0.5, **options)  # pyright: ignore[reportArgumentType]


class StepByStep(nn.Module):
    """The model as one writes it without this package."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(*ARGUMENTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return eager.multiply_gap(self.conv_transpose(x), 0.5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((-1, 3, 3), {}, ValueError, "in_channels: expected at least 1, got -1"),
        ((3, 0, 3), {}, ValueError, "out_channels: expected at least 1, got 0"),
        (("a", 3, 3), {}, TypeError, "in_channels: expected an int, got str"),
        ((4, None, 3), {}, TypeError, "out_channels: expected an int, got NoneType"),
        ((4.0, 3, 3), {}, TypeError, "in_channels: expected an int, got float"),
        ((6, 4, 3), {"groups": 4}, ValueError, "in_channels: expected a multiple of groups=4, got 6"),
        ((6, 4, 3), {"groups": 3}, ValueError, "out_channels: expected a multiple of groups=3, got 4"),
        ((6, 4, 0), {}, ValueError, "kernel_size: expected at least 1, got 0"),
        ((6, 4, 3), {"dtype": torch.int32}, TypeError, "dtype: expected float32, .* got torch.int32"),
        ((6, 4, 3), {"multiplier": None}, TypeError, "multiplier: expected a number or a torch.Tensor, got NoneType"),
        ((6, 4, 3), {"multiplier": True}, TypeError, "multiplier: expected a number or a torch.Tensor, got bool"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: Any, options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        convgap.ConvTranspose2dMultiplyGAP(*arguments, **options)


@pytest.mark.parametrize("function", [convgap.explain, convgap.warmup, convgap.specialize])
def test_what_is_no_function(function: Any) -> None:
    with pytest.raises(TypeError, match="function: expected a function or a module, got int"):
        function(3, torch.zeros(1))


def test_same_initialisation() -> None:
    torch.manual_seed(0)
    peer = nn.ConvTranspose2d(*ARGUMENTS)
    module = make()
    assert torch.equal(module.conv_transpose.weight, peer.weight)
    assert module.conv_transpose.bias is not None
    assert peer.bias is not None
    assert torch.equal(module.conv_transpose.bias, peer.bias)
    # And the generator stands where the peer left it.
    torch.manual_seed(0)
    nn.ConvTranspose2d(*ARGUMENTS)
    expected = torch.rand(3)
    make()
    assert torch.equal(torch.rand(3), expected)


def test_state_dict_both_ways(device: torch.device) -> None:
    module, peer = make().to(device), StepByStep().to(device)
    assert list(module.state_dict()) == list(peer.state_dict()) == ["conv_transpose.weight", "conv_transpose.bias"]
    x = torch.rand(2, 6, 5, 7, generator=torch.Generator().manual_seed(1)).to(device)
    with eager.ieee_float32(), torch.no_grad():
        peer.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x), peer(x), rtol=1e-5, atol=1e-6)
        other = StepByStep().to(device)
        module.load_state_dict(other.state_dict())
        torch.testing.assert_close(module(x), other(x), rtol=1e-5, atol=1e-6)


def test_a_number_is_no_state_and_a_parameter_is() -> None:
    assert "multiplier" not in make().state_dict()
    scale = nn.Parameter(torch.ones(4, 1, 1))
    module = convgap.ConvTranspose2dMultiplyGAP(*ARGUMENTS, scale)
    assert dict(module.named_parameters())["multiplier"] is scale
    module(torch.ones(2, 6, 5, 7)).sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs().sum() > 0


def test_repr() -> None:
    text = repr(make(backend="torch", strategy="tail"))
    assert text.startswith("ConvTranspose2dMultiplyGAP(")
    for part in (
        "multiplier=0.5",
        "strategy='tail'",
        "backend='torch'",
        "ConvTranspose2d(6, 4, kernel_size=(3, 3)",
    ):
        assert part in text
    assert "multiplier=(4, 1, 1)" in repr(convgap.ConvTranspose2dMultiplyGAP(6, 4, 3, multiplier=torch.ones(4, 1, 1)))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how: str, device: torch.device) -> None:
    module = make(backend="torch").to(device)
    twin = copy.deepcopy(module) if how == "deepcopy" else pickle.loads(pickle.dumps(module))
    x = torch.rand(2, 6, 5, 7, generator=torch.Generator().manual_seed(1)).to(device)
    expected = module(x)
    assert torch.equal(twin(x), expected)
    assert twin.conv_transpose.weight is not module.conv_transpose.weight
    with torch.no_grad():
        module.conv_transpose.weight.zero_()
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_device_arguments(dtype: torch.dtype, device: torch.device) -> None:
    module = convgap.ConvTranspose2dMultiplyGAP(6, 4, 3, device=device, dtype=dtype)
    out = module(torch.ones(2, 6, 5, 7, device=device, dtype=dtype))
    assert (out.dtype, out.device, out.shape) == (dtype, device, (2, 4, 1, 1))


def test_arguments_reach_the_operator(device: torch.device) -> None:
    # Every argument at a value that changes the answer.
    torch.manual_seed(0)
    module = convgap.ConvTranspose2dMultiplyGAP(
        6, 4, (3, 2), (2, 3), (1, 2), (1, 2), -1.5, groups=2, bias=False, dilation=(2, 1)
    ).to(device, torch.float64)
    x = torch.rand(2, 6, 5, 7, dtype=torch.float64).to(device)
    expected = eager.conv_transpose2d_multiply_gap(
        x, module.conv_transpose.weight, None, multiplier=-1.5, stride=(2, 3), padding=(1, 2),
        output_padding=(1, 2), groups=2, dilation=(2, 1),
    )  # fmt: skip
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-14)


def test_training_takes_the_same_steps(device: torch.device) -> None:
    module, peer = make().double().to(device), StepByStep().double().to(device)
    peer.load_state_dict(module.state_dict())
    x = torch.rand(3, 6, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    for model in (module, peer):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(module.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Doubled(nn.ConvTranspose2d):
    """A subclass whose forward is not its parent's."""

    def forward(self, *args: Any) -> Tensor:
        return 2 * super().forward(*args)


class Adapted(nn.Module):
    """A wrapper in the layer's place, as adapters for fine-tuning are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.down(x))


def doubled(model: Any) -> None:
    model.conv_transpose.__class__ = Doubled


def patched(model: Any) -> None:
    layer = model.conv_transpose
    layer.forward = lambda x: 3 * nn.ConvTranspose2d.forward(layer, x)


def adapted(model: Any) -> None:
    torch.manual_seed(1)
    model.conv_transpose = Adapted(model.conv_transpose)


def replaced(model: Any) -> None:
    torch.manual_seed(1)
    model.conv_transpose = nn.Conv2d(6, 4, 3)


def seeded(make: Callable[[Any], object]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        torch.manual_seed(1)
        with warnings.catch_warnings(action="ignore"):  # torch deprecates weight_norm by hooks; models have it
            make(model.conv_transpose)

    return change


CHANGES: dict[str, Callable[[Any], None]] = {
    "weight_norm by hooks": seeded(nn.utils.weight_norm),
    "weight_norm": seeded(parametrizations.weight_norm),
    "spectral_norm by hooks": seeded(nn.utils.spectral_norm),
    "spectral_norm": seeded(parametrizations.spectral_norm),
    "orthogonal": seeded(parametrizations.orthogonal),
    "pruning": seeded(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "pruned twice": seeded(lambda layer: [prune.random_unstructured(layer, n, 0.5) for n in ("weight", "bias")]),
    "pre-hook": seeded(lambda layer: layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))),
    "hook": seeded(lambda layer: layer.register_forward_hook(lambda module, args, out: out.relu())),
    "backward hook": seeded(lambda layer: layer.register_full_backward_hook(lambda m, i, o: (i[0] * 2,))),
    "backward pre-hook": seeded(lambda layer: layer.register_full_backward_pre_hook(lambda m, o: (o[0] * 2,))),
    "subclass": doubled,
    "patched forward": patched,
    "wrapper": adapted,
    "another layer": replaced,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_on_the_layer_counts(name: str, training: bool, device: torch.device) -> None:
    results = []
    x = torch.rand(3, 6, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    for model in (make(), StepByStep()):
        model = model.double().to(device)
        if isinstance(model, StepByStep):
            model.load_state_dict(make().state_dict())
        CHANGES[name](model)
        model.double().to(device).train(training)  # some bring layers of their own
        inputs = x.clone().requires_grad_()
        for _ in range(2):  # by the second step spectral_norm's vectors have moved, and pruning's graph is gone
            out = model(inputs)
            grads = torch.autograd.grad(out.square().sum(), [inputs, *model.parameters()])
        results.append([out, *grads])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)


def test_a_checkpoint_that_changes_only_the_norm_changes_the_answer() -> None:
    module = make()
    with warnings.catch_warnings(action="ignore"):
        nn.utils.weight_norm(module.conv_transpose)
    x = torch.rand(2, 6, 5, 7)
    before = module(x)
    state = module.state_dict()
    state["conv_transpose.weight_g"] = state["conv_transpose.weight_g"] * 2
    module.load_state_dict(state)
    bias = module.conv_transpose.bias
    assert bias is not None
    part = 0.5 * bias.reshape(4, 1, 1)
    torch.testing.assert_close(module(x) - part, 2 * (before - part), rtol=1e-4, atol=1e-5)


def test_hooks_that_listen_to_every_module() -> None:
    module, called = make(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: called.append(type(m).__name__))
    try:
        module(torch.rand(2, 6, 5, 7))
    finally:
        handle.remove()
    assert called == ["ConvTranspose2d", "ConvTranspose2dMultiplyGAP"]


def test_a_lazy_layer_is_made_at_the_first_call() -> None:
    module: Any = make()
    module.conv_transpose = nn.LazyConvTranspose2d(4, 3, 2, 1, 1)
    x = torch.rand(2, 6, 5, 7)
    first = module(x)
    assert type(module.conv_transpose) is nn.ConvTranspose2d
    torch.testing.assert_close(module(x), first, rtol=1e-5, atol=1e-6)
