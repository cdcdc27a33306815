"""The operators as torch sees them: schemas, shapes for tracing, transforms, autocast, what is saved."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import convgap
from convgap.selection import status_of
from reference import eager

ops = torch.ops.convgap
N, CI, CO, H, W, KH, KW = 2, 3, 2, 5, 4, 3, 2
# Unequal along the two axes, so that a swap shows.
BANDS = [2, 1], [1, 0], [1, 0], [1, 1]
"""Stride, padding, output padding, dilation."""
RB, CB = 2, 1
"""Distinct bands: the first row of the kernel is cropped, the other two are not, nor are its columns."""
OPTIONS: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0)}

LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "permuted": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda t: torch.cat((t, t), 3)[..., : t.shape[3]],
    "empty": lambda t: t[:0],
}


def calls(layout: str, backend: str, device: torch.device, grad: bool = False) -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator, its 4-D input laid out as `layout`."""

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(device).requires_grad_(grad)

    generator = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](random(N, CI, H, W).detach()).requires_grad_(grad)
    n = x.shape[0]
    weight, bias, multiplier = random(CI, CO, KH, KW), random(CO), random(n, CO, 1, 1)
    sums, gradient = random(n, CI, RB, CB), random(n, CO, 1, 1)
    fixed = 0.5, (H, W)
    return {
        "chain": (x, weight, bias, multiplier, 0.5, *BANDS, 1, backend),
        "chain without bias": (x, weight, None, None, 0.5, *BANDS, 1, backend),
        "multiply_gap": (x, None, 0.5, backend),
        "multiply_gap by a tensor": (x, random(n, CI, 1, 1), 0.5, backend),
        "plane_sums": (x, backend),
        "band_sums": (x, (KH, KW), *BANDS, backend),
        "contract": (sums, weight, bias, multiplier, *fixed, *BANDS, 1, backend),
        "expand": (gradient, weight, *fixed, *BANDS, 1, backend),
        "weight_grad": (gradient, sums, *fixed, (KH, KW), *BANDS, 1, torch.float32, backend),
        "band_fill": (sums, (H, W), (KH, KW), *BANDS, torch.float32, False, backend),
        "band_fill channels_last": (sums, (H, W), (KH, KW), *BANDS, torch.float32, True, backend),
    }


def named(name: str) -> Any:
    return getattr(ops, name.split()[0]).default


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str, device: torch.device) -> None:
    # The derivatives' own operators take small contiguous tensors: once is enough.
    for name, arguments in calls(layout, "torch", device, grad=True).items():
        if layout in ("contiguous", "empty") or isinstance(arguments[1], str) or arguments[0].shape[2] == H:
            torch.library.opcheck(named(name), arguments)


@pytest.mark.parametrize("backend", convgap.BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_shapes_and_strides_are_exact(backend: str, layout: str, device: torch.device) -> None:
    status = status_of(backend, device)
    if not status.usable:
        pytest.skip(f"{backend} is not usable here: {status.reason}")
    for name, arguments in calls(layout, backend, device).items():
        real = named(name)(*arguments)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = named(name)(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
        assert (fake.shape, fake.stride(), fake.dtype, fake.device) == (
            real.shape, real.stride(), real.dtype, real.device,
        ), name  # fmt: skip


def test_meta_tensors() -> None:
    x, weight = torch.empty(7, CI, H, W, device="meta"), torch.empty(CI, CO, KH, KW, device="meta")
    out = convgap.conv_transpose2d_multiply_gap(x, weight, **OPTIONS)
    assert out.is_meta
    assert out.shape == (7, CO, 1, 1)


def loss(x: Tensor, weight: Tensor) -> Tensor:
    """A scalar that is not linear in anything."""
    return convgap.conv_transpose2d_multiply_gap(x, weight, multiplier=0.5, **OPTIONS).sin().sum()


def expected_loss(x: Tensor, weight: Tensor) -> Tensor:
    return eager.conv_transpose2d_multiply_gap(x, weight, multiplier=0.5, **OPTIONS).sin().sum()


@pytest.fixture
def data(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (4, CI, H, W), (CI, CO, KH, KW)
    x, weight = (torch.rand(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes)
    return x, weight


def test_func_grad_and_its_grad(data: tuple[Tensor, Tensor]) -> None:
    # float64: two right answers differ by a few units of 1e-16.
    for argnum in (0, 1):
        got = torch.func.grad(loss, argnum)(*data)
        torch.testing.assert_close(got, torch.func.grad(expected_loss, argnum)(*data), rtol=1e-12, atol=1e-14)

    def mixed(function: Any) -> Tensor:
        return torch.func.grad(lambda w: torch.func.grad(function, 0)(data[0], w).cos().sum())(data[1])

    torch.testing.assert_close(mixed(loss), mixed(expected_loss), rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_loops_and_per_sample_gradients_are_right(data: tuple[Tensor, Tensor]) -> None:
    x, weight = data
    got = torch.func.vmap(lambda one: loss(one, weight))(x[:, None])
    torch.testing.assert_close(got, torch.stack([loss(one[None], weight) for one in x]), rtol=1e-12, atol=0)
    got = torch.func.vmap(torch.func.grad(loss, 1), (0, None))(x[:, None], weight)
    expected = torch.stack([torch.func.grad(expected_loss, 1)(one[None], weight) for one in x])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("grad_mode", [True, False])
def test_forward_mode_derivatives_are_refused(data: tuple[Tensor, Tensor], grad_mode: bool) -> None:
    x, weight = data
    with torch.set_grad_enabled(grad_mode), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="jvp"):
            loss(dual, weight)
        with pytest.raises(NotImplementedError, match="jvp"):
            convgap.multiply_gap(dual, 0.5)
        # Nothing is refused that has no tangent.
        assert loss(x, weight) == loss(*data)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(lambda x: loss(x, weight), (x,), (x,))


def test_flop_counter_counts_what_is_done() -> None:
    x, weight = torch.rand(N, CI, H, W), torch.rand(CI, CO, KH, KW)
    # Weights of taps with equal bands are added first.
    products, reads = 2 * N * CI * CO * RB * CB, N * CI * H * W
    with FlopCounterMode(display=False) as counter:
        convgap.conv_transpose2d_multiply_gap(x, weight, **OPTIONS)
    assert counter.get_total_flops() == reads + products
    with FlopCounterMode(display=False) as counter:
        out = convgap.conv_transpose2d_multiply_gap(x.requires_grad_(), weight.requires_grad_(), **OPTIONS)
        out.sum().backward()
    # Forward, then expand and weight_grad, and band_fill.
    assert counter.get_total_flops() == (reads + products) + 2 * products + reads
    with FlopCounterMode(display=False) as counter:
        convgap.multiply_gap(x.detach(), 2.0)
    assert counter.get_total_flops() == reads


@pytest.mark.parametrize("strategy", ["collapsed", "tail"])
def test_autocast_casts_like_the_convolution(strategy: str, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.rand(shape, generator=generator).to(device) for shape in ((N, CI, H, W), (CI, CO, KH, KW), (CO,))
    )
    options: dict[str, Any] = OPTIONS | {"strategy": strategy}
    low = torch.bfloat16
    with torch.autocast(device.type, low):
        y = F.conv_transpose2d(x, weight, bias, **OPTIONS)
        got = convgap.conv_transpose2d_multiply_gap(x, weight, bias, **options)
        mixed = convgap.conv_transpose2d_multiply_gap(x.to(low), weight, bias, **options)
        doubles = convgap.conv_transpose2d_multiply_gap(x.double(), weight.double(), **options)
        assert convgap.multiply_gap(x, 0.5).dtype == (x * 0.5).mean((2, 3)).dtype
    assert got.dtype == y.dtype == low
    assert doubles.dtype == torch.float64
    expected = convgap.conv_transpose2d_multiply_gap(x.to(low), weight.to(low), bias.to(low), **options)
    assert torch.equal(got, expected)
    assert torch.equal(mixed, expected)
    with pytest.raises(TypeError, match="weight: expected x's dtype"):
        convgap.conv_transpose2d_multiply_gap(x.to(low), weight, **options)


def test_autocast_gradients_reach_the_float32_parameters(device: torch.device) -> None:
    module = convgap.ConvTranspose2dMultiplyGAP(CI, CO, 3, 2, 1, 1, 0.5).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        module(torch.rand(N, CI, H, W, device=device)).sum().backward()
    gradient = module.conv_transpose.weight.grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("strategy", ["collapsed", "tail"])
def test_nothing_of_the_size_of_y_is_saved(strategy: str, device: torch.device) -> None:
    x = torch.rand(2, 3, 8, 8, device=device, requires_grad=True)
    weight = torch.rand(3, 16, 3, 3, device=device, requires_grad=True)
    bias = torch.rand(16, device=device, requires_grad=True)
    multiplier = torch.rand(16, 1, 1, device=device, requires_grad=True)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = convgap.conv_transpose2d_multiply_gap(x, weight, bias, multiplier=multiplier, stride=2, strategy=strategy)
    out.sum().backward()
    assert saved
    assert max(saved) <= max(x.numel(), weight.numel())  # y has 2 * 16 * 17 * 17


@pytest.mark.parametrize(
    ("wanted", "backward"),
    [
        ("x", {"expand", "band_fill"}),
        ("weight", {"weight_grad"}),
        ("bias", set()),
        ("multiplier", {"contract"}),
    ],
)
def test_only_the_gradients_asked_for_are_computed(wanted: str, backward: set[str], device: torch.device) -> None:
    tensors = {
        "x": torch.rand(N, CI, H, W), "weight": torch.rand(CI, CO, KH, KW), "bias": torch.rand(CO),
        "multiplier": torch.rand(CO, 1, 1),
    }  # fmt: skip
    tensors = {name: tensor.to(device).requires_grad_(name == wanted) for name, tensor in tensors.items()}
    done = convgap.warmup(convgap.conv_transpose2d_multiply_gap, **tensors, **OPTIONS)
    assert [step.operator for step in done.steps[:2]] == ["band_sums", "contract"]
    assert {step.operator for step in done.steps[2:]} == backward
    assert all(tensor.grad is None for tensor in tensors.values())


def test_fx_sees_one_call() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return convgap.multiply_gap(x, 2.0) + convgap.conv_transpose2d_multiply_gap(x, weight).sum()

    traced = fx.symbolic_trace(Model())
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert convgap.multiply_gap in targets
    assert convgap.conv_transpose2d_multiply_gap in targets
    x, weight = torch.rand(N, CI, H, W), torch.rand(CI, CO, KH, KW)
    assert torch.equal(traced(x, weight), Model()(x, weight))


def test_module_deepcopy_and_pickle() -> None:
    module = convgap.ConvTranspose2dMultiplyGAP(
        CI, CO, 3, 2, multiplier=torch.nn.Parameter(torch.tensor(0.5)), backend="torch"
    )
    x = torch.rand(N, CI, H, W)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
        assert list(twin.state_dict()) == list(module.state_dict())
        assert twin.conv_transpose.weight is not module.conv_transpose.weight
        assert repr(twin) == repr(module)


def test_explanation() -> None:
    x, weight = torch.rand(N, CI, H, W), torch.rand(CI, CO, KH, KW)
    (step,) = convgap.explain(convgap.conv_transpose2d_multiply_gap, x, weight, backend="torch").steps
    assert (step.operator, step.backend, step.kernels) == ("chain", "torch", ())
    assert "backend='torch' was asked for" in step.chosen
    (step,) = convgap.explain(convgap.multiply_gap, x, 0.5).steps
    assert "'auto' is plain torch on cpu" in step.chosen
    assert str(convgap.explain(torch.add, x, x)) == "no operator of convgap was called"


def test_explain_without_data() -> None:
    # Whatever the backend: nothing is launched, so nothing is said of one.
    with FakeTensorMode():
        fake = torch.ones(2, 3, 4, 5)
    for x in (torch.ones(2, 3, 4, 5, device="meta"), fake):
        for backend in ("auto", "triton"):
            (step,) = convgap.explain(convgap.multiply_gap, x, 0.5, backend=backend).steps
            assert (step.backend, step.how, step.kernels) == ("none", "shapes only", ())
            assert str(step) == (
                f"multiply_gap -> none, shapes only, on {x.device}; its tensors have no data, so only the result's"
                " shape was worked out"
            )


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_explanation_names_the_kernels(backend: str, device: torch.device) -> None:
    status = status_of(backend, device)
    if not status.usable:
        pytest.skip(f"{backend} is not usable here: {status.reason}")
    x, small, large = (torch.rand(s, device=device) for s in ((1, 1, 32, 32), (1, 1, 2, 2), (1, 64, 3, 3)))
    paths = {}
    for name, weight in (("small", small), ("large", large)):
        (step,) = convgap.explain(convgap.conv_transpose2d_multiply_gap, x, weight, backend=backend).steps
        paths[name] = step.kernels
        assert (step.backend, step.how) == (backend, status.how)
        assert step.path
    assert paths == {"small": ("band_sums_contract",), "large": ("band_sums", "contract")}
    (step,) = convgap.explain(convgap.multiply_gap, x, 0.5, backend=backend).steps
    assert step.kernels[0].startswith("multiply_gap")


FORK = """
import multiprocessing, torch, convgap

def in_a_child(queue, x):
    queue.put(convgap.multiply_gap(x, 0.5).tolist())

x = torch.rand(2, 3, 4, 5)
expected = convgap.multiply_gap(x, 0.5).tolist()
context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=in_a_child, args=(queue, x))
child.start()
assert queue.get(timeout=60) == expected
child.join()
"""


def test_fork_after_use_on_the_cpu() -> None:
    # Without a device to be seen: a forked child cannot use CUDA, which tests/convgap/test_streams.py is about.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", FORK], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
