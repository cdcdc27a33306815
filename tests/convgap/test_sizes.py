"""Sizes are no part of compiled code: random sizes through a model with three heads, forward and backward."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from importlib import import_module
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convgap
from convgap import fast
from convgap.probe import kernel_set
from reference.problem import Chain, Tail
from runtime import refused
from tests.usable import require

GPU = torch.cuda.is_available()
COUNT = 200 if GPU else 3

HEADS: tuple[dict[str, Any], ...] = (
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "groups": 2},
)


class Model(nn.Module):
    """Three heads of different kinds on one input."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            convgap.ConvTranspose2dMultiplyGAP(4, 6, multiplier=0.5, backend=backend, **head) for head in HEADS
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], 1)

    def literal(self, x: Tensor) -> Tensor:
        """The same with torch's own convolution, product and mean."""
        return torch.cat([0.5 * head.conv_transpose(x).mean((2, 3), keepdim=True) for head in self.heads], 1)  # pyright: ignore


def sizes(count: int) -> list[tuple[int, int, int]]:
    rng = Random(11)
    return [(rng.randint(1, 4), rng.randint(3, 40), rng.randint(3, 40)) for _ in range(count)]


MOST_OF_ALL = 120
"""Kinds that steps of any sizes from 3 to 40 meet: 117 of Triton's, 45 of CUDA C++ after 3,000 sizes, with the probe's.
A kind for each size would be 3,000 after 200 sizes."""


@pytest.mark.parametrize("backend", convgap.BACKENDS)
def test_a_model_takes_whatever_sizes_come(backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    require(backend, device)
    torch.manual_seed(0)
    model = Model(backend).to(device)
    right = deepcopy(model).double()
    kinds = met(monkeypatch)
    before = compiled(backend)
    for n, h, w in sizes(COUNT):
        x = torch.randn(n, 4, h, w, device=device, requires_grad=True)
        expected = step(right.literal, x.detach().double().requires_grad_(), right)
        for ours, theirs in zip(step(model, x, model), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5)
    assert bool(kinds) == (backend != "torch")
    assert len(kinds) <= MOST_OF_ALL
    # Whoever meets a new kind waits for the compiler, and nobody else.
    assert compiled(backend) - before <= len(kinds)


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_few_kinds_for_all_sizes(backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps at 200 sizes, without what the kernels would compute."""
    require(backend, device)
    model = Model(backend).to(device)
    step(model, torch.randn(1, 4, 9, 9, device=device, requires_grad=True), model)  # the probe
    monkeypatch.setattr(import_module(f"{backend}_impl.launch").Launch, "__call__", lambda *_: None)
    kinds = met(monkeypatch)
    with fast.off():
        for n, h, w in sizes(200):
            step(model, torch.randn(n, 4, h, w, device=device, requires_grad=True), model)
    assert 0 < len(kinds) <= MOST_OF_ALL


def step(function: Any, x: Tensor, of: Model) -> tuple[Tensor, ...]:
    """Output and gradients of one training step."""
    out = function(x)
    return out, *torch.autograd.grad(out.sin().sum(), [x, *of.parameters()])


def met(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Kinds of launches that are made from here on: each is asked for among those that failed before."""
    kinds, check = set[Any](), refused.check

    def noted(launch: Any, device: torch.device) -> None:
        kinds.add(launch.kind)
        check(launch, device)

    monkeypatch.setattr(refused, "check", noted)
    return kinds


def compiled(backend: str) -> int:
    """Kinds of launches that a compiler was asked for in this process."""
    if not GPU or backend == "torch":
        return 0
    launch: Any = import_module(f"{backend}_impl.launch")
    return len(launch._kernels) if backend == "triton" else launch._compiled.cache_info().misses


MOST = 40
"""Kinds of one kernel for one head, over all sizes: tiles are powers of two, accesses are as wide as rows allow."""


@pytest.mark.parametrize("name", ["triton", "cupy"])
def test_kinds_of_calls_are_few(name: str, device: torch.device) -> None:
    """1,000 sizes and batches of one head and a tail, forward and backward."""
    require(name, device)
    kernels: Any = kernel_set(name)
    rng, kinds = Random(5), set()
    for _ in range(1000):
        n, h, w = rng.randint(1, 65), rng.randint(3, 300), rng.randint(3, 300)
        stride = 4 * h * w, h * w, w, 1
        where = stride, torch.float32, 0
        problem = Chain(n, 4, 6, h, w, (3, 3), (2, 2), (1, 1), (1, 1))
        one = kernels.prepare_band_sums_contract(problem, *where, False)
        kinds |= {
            prepared.launch.kind
            for prepared in (
                kernels.prepare_multiply_gap(Tail(n, 4, h, w), *where, False), *([one] if one else []),
                kernels.prepare_band_sums(problem, *where), kernels.prepare_contract(problem, torch.float32, False),
                kernels.prepare_expand(problem, torch.float32), kernels.prepare_weight_grad(problem, torch.float32),
                kernels.prepare_band_fill(problem, stride, torch.float32),
            )
        }  # fmt: skip
    counts = Counter(getattr(kind.kernel, "__name__", kind.kernel) for kind in kinds)
    assert max(counts.values()) <= MOST, counts
