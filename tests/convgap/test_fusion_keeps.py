"""convgap.fuse keeps what a model is: state, hooks, containers, ways to run it, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import convgap
from reference import eager
from tests.convgap.forwards import KEPT, data, make, outcome


class Stateful(nn.Module):
    """Everything that a state_dict may have: tied parameters, shared children, extra state, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3)
        self.again = self.up
        self.heads = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.heads[1].weight = self.heads[0].weight
        self.register_buffer("hidden", torch.ones(1), persistent=False)
        self.offset = torch.ones(4)
        self.steps = 5
        self.register_load_state_dict_pre_hook(renamed)
        self.register_state_dict_post_hook(lambda module, state, prefix, meta: None)

    def get_extra_state(self) -> int:
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state

    def forward(self, x: Tensor) -> Tensor:
        out = self.up(x).mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.offset
        for head in self.heads:
            out = head(out)
        return out

    def helper(self) -> str:
        return "kept"


def renamed(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    if "old.weight" in state:
        state[f"{prefix}up.weight"] = state.pop("old.weight")


def test_state_dict() -> None:
    model = Stateful()
    fused: Any = convgap.fuse(model).model
    assert fused is not model
    state = model.state_dict()
    assert list(fused.state_dict()) == list(state)
    assert "again.weight" in state
    assert "_extra_state" in state
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in fused.named_buffers()] == [n for n, _ in model.named_buffers()]
    assert fused.up is fused.again
    assert fused.heads[0].weight is fused.heads[1].weight is model.heads[0].weight
    assert fused.helper() == "kept"
    changed = {k: v if k == "_extra_state" else v + 1 for k, v in state.items()} | {"_extra_state": 9}
    changed["old.weight"] = changed.pop("up.weight")
    fused.load_state_dict(changed)
    assert (fused.steps, model.steps) == (9, 5)
    assert fused.up.weight is model.up.weight
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-5)
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    model.load_state_dict(torch.load(file))


def test_what_is_put_on_the_layer_afterwards_counts() -> None:
    changes: dict[str, Callable[[Any], Any]] = {
        "hook": lambda up: up.register_forward_hook(lambda m, a, out: out.relu()),
        "pre-hook": lambda up: up.register_forward_pre_hook(lambda m, a: (a[0] + 1,)),
        "prune": lambda up: prune.l1_unstructured(up, "weight", 0.5),
        "weight_norm": parametrizations.weight_norm,
        "spectral_norm": parametrizations.spectral_norm,
        "weight_norm by hooks": nn.utils.weight_norm,
    }
    for change in changes.values():
        model = make(KEPT["dropout"]).eval()
        fused: Any = convgap.fuse(copy.deepcopy(model)).model
        for some in (model, fused):
            torch.manual_seed(1)
            with warnings.catch_warnings(action="ignore"):
                change(some.up)
        for got, expected in zip(outcome(fused), outcome(model), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ],
)
def test_norms_elsewhere_in_the_model(change: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, 1)
    with warnings.catch_warnings(action="ignore"):
        change(layer)
    model = nn.Sequential(layer, nn.ConvTranspose2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    model(data())  # the hooks leave a weight behind that has a history
    fusion = convgap.fuse(model)
    assert [found.name for found in fusion.replaced] == ["1"]
    for training in (True, False):
        twin = copy.deepcopy(model.state_dict())
        got = [g.clone() for g in outcome(fusion.model.train(training))]
        model.load_state_dict(twin)
        for a, b in zip(got, outcome(model.train(training)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_hooks_on_the_model_and_around_the_layer() -> None:
    seen: list[Any] = []
    model = make(KEPT["scaled by gain"])
    model.register_forward_hook(lambda m, a, out: seen.append(type(out)))
    model.pool.register_forward_pre_hook(lambda m, a: (a[0] * 2,))
    fused = convgap.fuse(model).model
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)
    assert seen == [Tensor, Tensor]


def test_lazy_uncopied_compiled_and_scripted_models_are_left() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(3, 1), nn.ConvTranspose2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    locked: Any = make(KEPT["dropout"])
    locked.lock = threading.Lock()
    compiled = nn.Sequential(torch.compile(make(KEPT["dropout"]), backend="eager"), nn.Identity())  # pyright: ignore
    for model, why in (
        (lazy, "call it once before"),
        (locked, "the model cannot be copied"),
        (compiled, "fuse it before"),
    ):
        fusion = convgap.fuse(model)
        assert fusion.model is model
        assert why in str(fusion)
    lazy(data())
    assert len(convgap.fuse(lazy).replaced) == 1


def test_a_forward_that_belongs_to_another_object_is_left() -> None:
    model: Any = make(KEPT["dropout"]).eval()
    model.forward = lambda x: model.up(x).mean((2, 3))
    fusion = convgap.fuse(model)
    torch.testing.assert_close(fusion.model(data()), model(data()), rtol=1e-5, atol=1e-6)
    assert fusion.left
    assert not fusion.replaced


def test_a_write_that_no_trace_showed_is_an_error_and_no_wrong_answer() -> None:
    def ahead(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.calls:
            x.zero_()
        return y.mean((2, 3))

    model: Any = make(ahead)
    fused: Any = convgap.fuse(model).model
    fused.calls = 1
    with pytest.raises(RuntimeError, match="was changed in place before its output was used"):
        fused(data())


class Functional(nn.Module):
    """The convolution as a function, and a layer beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 4, 3, 3))
        self.up = nn.ConvTranspose2d(3, 4, 3)
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise KeyError("broken")
        out = F.conv_transpose2d(x, self.weight, stride=2).mean((2, 3)) * 2 + self.up(x).relu().mean((2, 3))
        return out if self.training else out + torch.conv_transpose2d(x, self.weight).sum()


def test_the_function_in_a_forward() -> None:
    model = Functional()
    fusion = convgap.fuse(model)
    assert [found.name for found in fusion.replaced] == ["conv_transpose2d"]
    fused: Any = fusion.model
    for training in (True, False):
        for got, expected in zip(outcome(fused.train(training)), outcome(model.train(training)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    # The forward's end, however it comes, is the end of what waits.
    fused.broken = True
    with pytest.raises(KeyError):
        fused(data())
    assert type(F.conv_transpose2d(data(), model.weight)) is Tensor
    again = pickle.loads(pickle.dumps(fused))
    again.broken = False
    torch.testing.assert_close(again(data()), model(data()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["compile", "dynamic", "strict export", "export", "jit.trace", "fx", "functional"])
def test_ways_to_run_a_fused_model(how: str) -> None:
    for name in ("scaled by gain", "other_way", "asked"):
        model = make(KEPT[name]).eval()
        fused = convgap.fuse(model).model
        x = data()
        torch._dynamo.reset()
        if how == "compile":
            run: Any = torch.compile(fused, fullgraph=True, backend="aot_eager")
        elif how == "dynamic":
            run = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
        elif how.endswith("export"):
            program = torch.export.export(fused, (x,), strict=how == "strict export")
            assert ("convgap.chain" in str(program.graph)) == (name == "scaled by gain")
            file = io.BytesIO()
            torch.export.save(program, file)
            file.seek(0)
            run = torch.export.load(file).module()
        elif how == "jit.trace":
            run = torch.jit.trace(fused, (x,))
        elif how == "fx":
            run = torch.fx.symbolic_trace(fused, {"mask": None}) if name != "asked" else fused
        else:
            state = {k: v.clone() for k, v in fused.state_dict().items()}
            run = partial(lambda fused, state, x: torch.func.functional_call(fused, state, (x,)), fused, state)

        torch.testing.assert_close(run(x), model(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run(data(1)), model(data(1)), rtol=1e-5, atol=1e-6)


def test_vmap_grad_inference_mode_meta_and_unbatched() -> None:
    model = make(KEPT["scaled by gain"])
    fused = convgap.fuse(model).model
    x = torch.stack([data(0), data(1)])
    with warnings.catch_warnings(action="ignore"):
        torch.testing.assert_close(torch.func.vmap(fused)(x), torch.func.vmap(model)(x), rtol=1e-5, atol=1e-6)
    grads = [torch.func.grad(lambda x, m=m: m(x).sum())(data()) for m in (fused, model)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)
    with torch.inference_mode():
        torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused(data()[0]), model(data()[0]), rtol=1e-5, atol=1e-6)
    meta = copy.deepcopy(fused).to("meta")
    assert meta(data().to("meta")).shape == (2, 4, 1, 1)
    for wrong in (data()[:, :2], data().double(), data()[0, 0]):
        errors = []
        for some in (fused, model):
            with pytest.raises(RuntimeError) as caught:
                some(wrong)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]


def test_copies_pickles_and_replicas(device: torch.device) -> None:
    # On the device: nn.DataParallel takes the model there, and the layers' parameters with it.
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device)
    x = data().to(device)
    fused = convgap.fuse(model).model
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for some in (
        copy.deepcopy(fused),
        copy.copy(fused),
        pickle.loads(pickle.dumps(fused)),
        torch.load(file, weights_only=False),
        nn.DataParallel(fused),
        convgap.fuse(fused).model,
    ):
        with eager.ieee_float32():
            torch.testing.assert_close(some(x), model(x), rtol=1e-5, atol=1e-6)
        # `explain` sees what its own thread launches, and DataParallel has a thread for each of several GPUs.
        if not isinstance(some, nn.DataParallel) or torch.cuda.device_count() < 2:
            steps = convgap.explain(some.eval().requires_grad_(False), x).steps
            assert [step.operator for step in steps] == ["chain"]
            some.requires_grad_(True)
    assert type(model[0]) is nn.ConvTranspose2d


def test_sequential_subclasses_and_containers_with_methods() -> None:
    class Head(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

        def classes(self) -> int:
            return 4

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Head(nn.ConvTranspose2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)))
    fused: Any = convgap.fuse(model).model
    assert type(fused[1]) is Head
    assert fused[1].classes() == 4
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)
    assert fused[1:](data()).shape == (2, 4, 1, 1)


def test_layers_that_no_forward_calls_are_reported() -> None:
    model = make(KEPT["dropout"])
    model.spare = nn.ConvTranspose2d(2, 2, 2)
    fusion = convgap.fuse(model)
    assert [left.name for left in fusion.left] == ["spare"]
