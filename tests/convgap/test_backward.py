"""Gradients of every backend: against the oracle's, against finite differences, and only where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import convgap
from convgap import fast
from convgap.selection import BACKENDS
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import Inputs, make_inputs
from harness.entries.gradients import depth, output_gradient
from harness.numerics.budget import compare
from harness.numerics.truth import truth_gradients
from reference.problem import Chain
from runtime import call as calls
from tests.usable import require

GPU = torch.cuda.is_available()
# Ordinary; axes that differ; cropped to rows that no tap sees; no band; groups; a channel each; one
# multiplier a channel; Inf where it is cropped; no sample; many samples; sums in slices, by each way to fold; a
# row that is read as a column; the tail.
NAMES = (
    "chain/edge/7x7", "chain/edge/rectangular", "chain/edge/crop-deep", "chain/edge/no-band", "chain/edge/groups3",
    "chain/edge/depthwise-multiplier", "chain/edge/multiplier-tensor", "chain/edge/nonfinite-cropped",
    "chain/edge/nobias", "chain/edge/kernel-over-input", "chain/edge/batch0", "chain/edge/rgb",
    "chain/edge/sliced-samples", "chain/edge/latent", "chain/edge/k5-channels", "chain/edge/k7-channels",
    "chain/edge/long-row", "tail/edge/7x7",
    "tail/edge/multiplier-tensor", "tail/edge/batch0",
)  # fmt: skip
DTYPED = ("chain/edge/rectangular", "chain/edge/multiplier-tensor", "tail/edge/multiplier-tensor")


def check(
    backend: str,
    case: Case,
    dtype: str,
    device: torch.device,
    layout: str = "contiguous",
    change: Callable[[Inputs], None] = lambda inputs: None,
    wanted: Container[str] = ("x", "weight", "bias", "multiplier", "y"),
) -> None:
    require(backend, device)
    made = make_inputs(case, device, dtype, layout)
    change(made)
    inputs, leaves = made.tracked()
    out = inputs.call(convgap, backend=backend)
    grad = output_gradient(case.problem, inputs.x)
    true = truth_gradients(case.problem, inputs, grad)
    chain = depth(backend, case.problem, inputs.x)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad)
    for (name, leaf), got in zip(leaves.items(), gradients, strict=True):
        if name not in wanted:
            continue
        t = true[name]
        # The multiplier's gradient may pass through an output of the inputs' dtype.
        stores = 2 if name == "multiplier" else 1
        result = compare(
            got, t.expected, t.magnitude, dtype, chain, floor=t.floor, reference_depth=t.depth, stores=stores
        )
        assert result.passed, (name, result.message)
        assert got.shape == leaf.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("poisoned")
def test_case(backend: str, name: str, device: torch.device) -> None:
    (case,) = select([name])
    check(backend, case, "float32", device)


def without_fold(inputs: Inputs) -> None:
    """Weights that no sum of taps may stand for: Inf in one tap, and taps that overflow together, not alone."""
    assert inputs.weight is not None
    assert isinstance(inputs.multiplier, Tensor)
    inputs.weight[0, 0, 0, 0] = torch.inf
    inputs.weight[1, 1] = 2e38
    inputs.multiplier.mul_(1e-3)  # of what is multiplied with the weights


# Folded in the end; in registers, to one band and to four; by programs of one band; large kernels.
FOLDED = [
    Chain(3, 3, 4, 4, 4, (4, 4), (2, 2), (1, 1)), Chain(3, 3, 4, 3, 3, (2, 2), (2, 2)),
    Chain(3, 3, 4, 4, 4, (4, 4), (3, 3), (1, 1), (1, 1)), Chain(3, 3, 4, 4, 4, (3, 3), (2, 2), (1, 1), (1, 1)),
    Chain(3, 3, 4, 4, 4, (5, 5), (2, 2), (2, 2), (1, 1)), Chain(3, 3, 4, 4, 4, (7, 7), (2, 2), (3, 3)),
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("problem", FOLDED, ids=lambda problem: f"k{problem.kernel[0]}s{problem.stride[0]}")
def test_taps_that_must_not_be_added(backend: str, problem: Chain, device: torch.device) -> None:
    case = Case("taps", problem, "", values="normal", multiplier=None)
    # The others have no sums of weights, but products of weights with x, which overflow by themselves.
    check(backend, case, "float32", device, change=without_fold, wanted=("x",))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", DTYPED)
def test_dtype(backend: str, name: str, dtype: str, device: torch.device) -> None:
    (case,) = select([name])
    check(backend, case, dtype, device)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "cropped", "expanded"])
def test_layout(backend: str, layout: str, device: torch.device) -> None:
    (case,) = select(["chain/edge/rectangular"])
    check(backend, case, "float32", device, layout)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_x_keeps_channels_last(backend: str, device: torch.device) -> None:
    require(backend, device)
    (case,) = select(["chain/edge/rectangular"])
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs, _ = make_inputs(case, device).tracked()
        x = inputs.x.detach().contiguous(memory_format=layout).requires_grad_()
        replace(inputs, x=x).call(convgap, backend=backend).sum().backward()
        assert x.grad is not None
        assert x.grad.is_contiguous(memory_format=layout)


# gradcheck's fast mode tries one random direction instead of every element: minutes less in Triton's interpreter.


def tiny(backend: str, device: torch.device) -> tuple[Any, list[Tensor]]:
    """The smallest chain with a cropped border, two groups and a multiplier for each output, in float64."""

    def call(x: Tensor, weight: Tensor, bias: Tensor, multiplier: Tensor) -> Tensor:
        return convgap.conv_transpose2d_multiply_gap(
            x, weight, bias, multiplier=multiplier, stride=(2, 1), padding=1, output_padding=(1, 0), groups=2,
            backend=backend,
        )  # fmt: skip

    generator = torch.Generator().manual_seed(5)
    shapes = ((1, 2, 2, 3), (2, 1, 3, 2), (2,), (2, 1, 1))
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).to(device) for s in shapes]
    return call, [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_derivative(backend: str, device: torch.device) -> None:
    require(backend, device)
    call, leaves = tiny(backend, device)
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(call, leaves, fast_mode=backend == "triton" and not GPU)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative(backend: str, device: torch.device) -> None:
    require(backend, device)
    call, leaves = tiny(backend, device)
    torch.manual_seed(0)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


# The tail has its own test; of an empty batch and of what is not finite no difference can be taken.
# Those of many samples or channels differ in how sums are cut, which no difference shows, and take long.
DERIVED = [
    n
    for n in NAMES[: NAMES.index("chain/edge/sliced-samples")]
    if n not in ("chain/edge/batch0", "chain/edge/nonfinite-cropped")
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DERIVED)
def test_derivatives_of_a_case(backend: str, name: str, device: torch.device) -> None:
    require(backend, device)
    (case,) = select([name])
    # One sample: the edge is in the sizes of a plane.
    case = replace(case, problem=replace(case.problem, n=1))
    inputs, leaves = make_inputs(case, device, "float64").tracked()

    def call(*values: Tensor) -> Tensor:
        changed = replace(inputs, **dict(zip(leaves, values, strict=True)))
        return changed.call(convgap, backend=backend)

    torch.manual_seed(0)
    assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=True)
    # The same kernels once more: in Triton's interpreter `tiny` alone has second derivatives.
    if GPU or backend != "triton":
        assert torch.autograd.gradgradcheck(call, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_the_tail(backend: str, device: torch.device) -> None:
    require(backend, device)
    generator = torch.Generator().manual_seed(5)
    y, multiplier = (
        torch.randn(s, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for s in ((2, 2, 2, 3), (2, 1, 1))
    )

    def call(*leaves: Tensor) -> Tensor:
        return convgap.multiply_gap(*leaves, backend=backend)

    torch.manual_seed(0)
    assert torch.autograd.gradcheck(call, (y, multiplier))
    assert torch.autograd.gradgradcheck(call, (y, multiplier), fast_mode=True)


@pytest.mark.parametrize("backend", ["triton", "cupy"])
@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ((), set()),
        (("x",), {"expand", "band_fill"}),
        (("weight",), {"weight_grad"}),
        (("bias",), set()),
        (("x", "weight", "bias"), {"expand", "band_fill", "weight_grad"}),
    ],
    ids=lambda value: "+".join(sorted(value)) or "none",
)
def test_only_what_is_wanted_is_computed(
    backend: str,
    wanted: tuple[str, ...],
    steps: set[str],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require(backend, device)
    (case,) = select(["chain/edge/7x7"])
    inputs = make_inputs(case, device)
    for name in wanted:
        getattr(inputs, name).requires_grad_()
    ran: set[str] = set()

    def spy(name: str) -> Any:
        real = getattr(calls, name)

        def step(*arguments: Any) -> Any:
            ran.add(name)
            return real(*arguments)

        return step

    for name in ("expand", "band_fill", "weight_grad"):
        monkeypatch.setattr(calls, name, spy(name))
    with fast.off():
        out = inputs.call(convgap, backend=backend)
        assert out.requires_grad == bool(wanted)
        if wanted:
            out.sum().backward()
    assert ran == steps
    for name in ("x", "weight", "bias"):
        assert (getattr(inputs, name).grad is not None) == (name in wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strategy_tail_has_the_same_gradients(backend: str, device: torch.device) -> None:
    require(backend, device)
    (case,) = select(["chain/edge/rectangular"])
    found = []
    for strategy in ("collapsed", "tail"):
        inputs, leaves = make_inputs(case, device, "float64").tracked()
        out = inputs.call(convgap, backend=backend, strategy=strategy)
        found.append(torch.autograd.grad(out.sum(), list(leaves.values())))
    for collapsed, tail in zip(*found, strict=True):
        torch.testing.assert_close(collapsed, tail, rtol=1e-12, atol=1e-14)


def test_gradient_of_an_expanded_gradient(device: torch.device) -> None:
    # sum().backward() hands in a gradient with stride 0.
    for backend in BACKENDS:
        require(backend, device)
        y = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(2)).to(device).requires_grad_()
        convgap.multiply_gap(y, 2.0, backend=backend).sum().backward()
        assert y.grad is not None
        torch.testing.assert_close(y.grad, torch.full_like(y, 0.1))


@pytest.mark.parametrize("multiplier", [0.5, 1e30, "tensor"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "groups", "kernel"), [(1, 1, 3), (2, 1, 3), (1, 2, 3), (2, 2, 1), (1, 1, 1), (0, 1, 2)])
@pytest.mark.parametrize("backend", BACKENDS if GPU else ["cupy", "torch"])  # interpreted Triton is slow
def test_a_result_may_be_written_to(
    backend: str, n: int, groups: int, kernel: int, bias: bool, multiplier: Any, device: torch.device
) -> None:
    # As the result of a mean may. A view that left an operator with a derivative might not.
    require(backend, device)
    x = torch.rand(n, 4, 3, 2, device=device)
    weight = torch.rand(4, 3, kernel, kernel, device=device, requires_grad=True)
    given: dict[str, Any] = {"backend": backend, "groups": groups, "multiplier": multiplier}
    if multiplier == "tensor":
        given["multiplier"] = torch.rand(1, 1, 1, device=device)
    if bias:
        given["bias"] = torch.rand(3 * groups, device=device)
    results = []
    for in_place in (True, False):
        out = convgap.conv_transpose2d_multiply_gap(x, weight, **given)
        pooled = convgap.multiply_gap(x * weight.sum(), given["multiplier"], backend=backend)
        if in_place:
            assert not out._is_view()
            out += 1
            pooled *= 2
        else:
            out, pooled = out + 1, pooled * 2
        results.append([out, pooled, *torch.autograd.grad(out.sum() + pooled.sum(), [weight])])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
