"""convgap.fuse keeps what a trace would fix or drop: modes, contexts, randomness, attributes, state, hooks, dtypes."""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_leaves

import convgap


class Model(nn.Module):
    """A layer, what else models have, and a forward that each test gives: `forward(self, x)`."""

    def __init__(self, ahead: Callable[..., Any]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3, 2, 1, 1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("whole", torch.tensor([2, 3, 4, 5]).reshape(4, 1, 1))
        self.register_buffer("mask", torch.tensor([True, False, True, True]).reshape(4, 1, 1))
        self.register_buffer("wide", torch.rand(4, 1, 1, dtype=torch.float64))
        self.register_buffer("zero_dim", torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("batch", torch.rand(2, 1, 1, 1))
        self.last: Any = None
        self.calls = 0
        self.factor: Any = 0.5
        self.ahead = ahead

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.ahead(self, x) if mask is None else self.ahead(self, x, mask)


@torch.no_grad()
def without_gradient(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3))


def under_no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.up(x)
    return (y * self.gain).mean((2, 3))


def partly_no_grad(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    with torch.no_grad():
        return y.mean((2, 3)) + x.sum()


def under_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (self.up(x) * 0.5).mean((2, 3))


def convolution_under_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = self.up(x)
    return (y * 0.5).mean((2, 3))


def without_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.pool(self.up(x.float()))


def dropout(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.up(x).mean((2, 3)), 0.5, self.training)


def dropout_before(self: Any, x: Tensor) -> Tensor:
    return self.up(F.dropout(x, 0.5, self.training)).mean((2, 3))


def dropout_between(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.up(x), 0.5, self.training).mean((2, 3))


def auxiliary(self: Any, x: Tensor) -> Any:
    y = self.up(x)
    pooled = y.mean((2, 3))
    return (pooled, y) if self.training else pooled


def other_way(self: Any, x: Tensor) -> Any:
    y = self.up(x)
    if not self.training:
        y = y.relu()
    return y.mean((2, 3))


def unpooled(self: Any, x: Tensor) -> Any:
    y = self.up(x)
    return y.mean((2, 3)) if self.training else {"y": [y]}


def randomly(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3)) * torch.rand(4) + random.random() + float(np.random.rand())


def random_scale(self: Any, x: Tensor) -> Tensor:
    return (self.up(x) * random.uniform(0.5, 1.5)).mean((2, 3))


def writes(self: Any, x: Tensor) -> Tensor:
    self.last = x * 2
    self.calls += 1
    return (self.up(x) * self.calls).mean((2, 3))


def keeps_output(self: Any, x: Tensor) -> Tensor:
    self.last = self.up(x)
    return self.last.mean((2, 3))


def optional(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    out = (self.up(x) * self.factor).mean((2, 3))
    return out if mask is None else out * mask


def normed(self: Any, x: Tensor) -> Tensor:
    return self.up(self.norm(x)).mean((2, 3))


def constants(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3)) + torch.arange(4.0)


def twice(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3)) + self.up(-x).relu().mean((2, 3))


def in_place_before(self: Any, x: Tensor) -> Tensor:
    x = self.relu(x - 0.5)
    return self.up(x).mean((2, 3))


@torch.no_grad()
def in_place_between(self: Any, x: Tensor) -> Tensor:
    x = x + 0
    y = self.up(x)
    self.relu(x.sub_(0.5))
    return y.mean((2, 3)) + x.sum()


def in_place_after(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    out = self.pool(y)
    out += 1
    return out


def asked(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    if isinstance(y, Tensor) and torch.is_tensor(x) and self.calls == 0:
        assert y.shape[1] == 4 and y.dim() == y.ndim == 4 and y.size(0) == len(x)
        return (y * 0.5).mean((2, 3))
    return x


def numpy_scale(self: Any, x: Tensor) -> Tensor:
    return (np.float32(0.5) * self.up(x)).mean((2, 3))


def times_itself(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    y *= 0.5
    y /= 3
    y *= self.whole
    return y.mean((2, 3))


def times_itself_seen(self: Any, x: Tensor) -> Tensor:
    y = z = self.up(x)
    w = y * 3
    y *= 0.5
    return y.mean((2, 3)) + z.mean((2, 3)) + w.mean((2, 3))


def times_itself_wider(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    y *= self.wide
    return y.mean((2, 3))


def by_name(self: Any, x: Tensor) -> Tensor:
    return torch.mean(input=self.up(x).mul(2).div(3), dim=(2, 3))


def scaled_by(name: str) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.pool(getattr(self, name) * self.up(x))

    return forward


SCALES = ("gain", "whole", "mask", "wide", "zero_dim", "batch")
KEPT: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        without_gradient, under_no_grad, partly_no_grad, under_autocast, convolution_under_autocast, without_autocast,
        dropout, dropout_before, dropout_between, auxiliary, other_way, unpooled, randomly, random_scale, writes,
        keeps_output, optional, normed, constants, twice, in_place_before, in_place_between, in_place_after, asked,
        numpy_scale, times_itself, times_itself_seen, times_itself_wider, by_name,
    )
} | {f"scaled by {name}": scaled_by(name) for name in SCALES}  # fmt: skip


def make(ahead: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return Model(ahead)


def data(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def leaves(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def outcome(model: nn.Module, *more: Any) -> list[Tensor]:
    """Outputs, gradients and what the generators draw next."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    x = data().requires_grad_()
    out = leaves(model(x, *more))
    assert all(type(leaf) is Tensor for leaf in out)
    result = [leaf.detach() for leaf in out]
    ends = [leaf for leaf in out if leaf.requires_grad]
    if ends:
        wanted = [x, *model.parameters()]
        total: Any = sum(end.float().square().sum() for end in ends)
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        result += [torch.zeros_like(w) if g is None else g for g, w in zip(grads, wanted, strict=True)]
    return [
        *result,
        torch.tensor(len(ends)),
        torch.rand(2),
        torch.tensor([random.random(), np.random.rand()]),
    ]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", KEPT)
def test_the_same_in_both_modes_and_under_autocast(
    name: str, training: bool, dtype: torch.dtype | None
) -> None:
    model = make(KEPT[name])
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    drawn = torch.random.get_rng_state(), random.getstate()
    fused = convgap.fuse(model).model
    assert torch.equal(torch.random.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    for some in (fused, twin):
        some.train(training)
    for _ in range(2):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            results = outcome(fused), outcome(twin)
        for got, expected in zip(*results, strict=True):
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            lax = dtype is not None or "autocast" in name
            # bfloat16 rounds each step to 8 bits in eager, the operator rounds once.
            torch.testing.assert_close(got, expected, rtol=0.05 if lax else 2e-5, atol=0.05 if lax else 2e-6)


@pytest.mark.parametrize("name", KEPT)
def test_the_old_model_stays_as_it_was(name: str) -> None:
    model = make(KEPT[name])
    model.ahead = name  # a local function cannot be pickled
    before = pickle.dumps(model)
    model.ahead = KEPT[name]
    convgap.fuse(model)
    assert model.last is None
    assert model.calls == 0
    assert model.training
    assert type(model.up) is nn.ConvTranspose2d
    model.ahead = name
    assert pickle.dumps(model) == before


FUSED = [
    "under_autocast", "without_autocast", "dropout", "dropout_before", "randomly", "writes", "optional",
    "normed", "constants", "twice", "in_place_before", "in_place_after", "times_itself", "by_name", "scaled by gain",
    "scaled by whole",
    "scaled by mask", "scaled by zero_dim", "without_gradient",
]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_these_are_fused_all_the_same(name: str) -> None:
    fusion = convgap.fuse(make(KEPT[name]))
    assert [found.name for found in fusion.replaced] == ["up"]
    with torch.no_grad():
        steps = convgap.explain(fusion.model.eval(), data()).steps
    assert [step.operator for step in steps] == ["chain"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("in_place_between", "sub_(0.5) may write to its input before its output is used"),
        ("dropout_between", "dropout() follows"),
        ("scaled by wide", "it is multiplied by wide, which makes torch.float64 of its torch.float32"),
        ("scaled by batch", "it is multiplied by batch (2, 1, 1, 1), which has a batch of its own"),
        ("auxiliary", "its result is used 2 times before any pool"),
    ],
)
def test_left_with_its_reason(name: str, why: str) -> None:
    model = make(KEPT[name])
    fusion = convgap.fuse(model)
    assert fusion.model is model
    assert [left.name for left in fusion.left] == ["up"]
    assert why in fusion.left[0].why


def test_optional_arguments_and_attributes_count_when_it_runs() -> None:
    model = make(optional)
    fused: Any = convgap.fuse(model).model
    mask = torch.rand(2, 4)
    torch.testing.assert_close(fused(data(), mask), model(data(), mask), rtol=1e-5, atol=1e-6)
    fused.factor = model.factor = 3.0
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)
    fused.factor = model.factor = torch.rand(2, 4, 1, 1)
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)
    fused.factor = model.factor = torch.rand(2, 4, 8, 10)
    torch.testing.assert_close(fused(data()), model(data()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "factor",
    [
        torch.rand(4, 1, 1, dtype=torch.float64), torch.rand(3, 2, 4, 1, 1), 1e39, 1e-40, float("inf"), True, 2j,
        np.float64(0.5), 0, torch.tensor(2), torch.rand(4, 1, 1).to(torch.complex64),
    ],
    ids=str,
)  # fmt: skip
def test_any_factor_gives_the_dtype_and_shape_of_the_steps(factor: Any) -> None:
    model = make(optional)
    fused: Any = convgap.fuse(model).model
    fused.factor = model.factor = factor
    got, expected = fused(data()), model(data())
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("scale", ["channels", "batch"])
def test_scales_that_make_the_output_larger(scale: str) -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 1, 3)
            self.register_buffer(
                "scale", torch.rand(4, 1, 1) if scale == "channels" else torch.rand(3, 1, 1, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            return (self.up(x) * self.scale).mean((2, 3))

    model = Wider()
    fusion = convgap.fuse(model)
    assert "more channels" in fusion.left[0].why or "a batch of its own" in fusion.left[0].why
    x = data()[:1]
    torch.testing.assert_close(fusion.model(x), model(x))


def test_what_is_read_is_the_forward_in_the_mode_it_is_in() -> None:
    model = make(KEPT["auxiliary"])
    fused: Any = convgap.fuse(model.eval()).model
    assert fused is not model
    with torch.no_grad():
        assert [s.operator for s in convgap.explain(fused, data()).steps] == ["chain"]
    pooled, y = fused.train()(data())
    assert type(y) is Tensor
    torch.testing.assert_close(y.mean((2, 3)), pooled, rtol=1e-5, atol=1e-6)


def test_eval_of_the_new_model_leaves_the_old_in_training() -> None:
    model = make(normed)
    fused: Any = convgap.fuse(model).model.eval()
    assert model.norm.training
    assert not fused.norm.training
    assert fused.norm.weight is model.norm.weight
    model.eval()
    fused.train()
    assert not model.norm.training


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


@pytest.mark.parametrize(
    "how", ["compile", "dynamic", "strict export", "export", "jit.trace", "fx", "functional"]
)
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
            run = partial(
                lambda fused, state, x: torch.func.functional_call(fused, state, (x,)), fused, state
            )

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


def test_copies_pickles_and_replicas() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
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
        torch.testing.assert_close(some(data()), model(data()), rtol=1e-5, atol=1e-6)
        assert [s.operator for s in convgap.explain(some.eval().requires_grad_(False), data()).steps] == [
            "chain"
        ]
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
