"""torch.compile and torch.export: one graph, one compilation for every batch size, the same answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convgap

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def model(device: torch.device, trained_multiplier: bool = False, strategy: str = "collapsed") -> nn.Module:
    torch.manual_seed(0)
    multiplier = nn.Parameter(torch.tensor(0.5)) if trained_multiplier else 0.5
    fused = convgap.ConvTranspose2dMultiplyGAP(3, 4, 3, 2, 1, 1, multiplier, strategy=strategy)
    return nn.Sequential(fused, nn.Flatten()).to(device)


def gradients(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = function(x)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("strategy", ["collapsed", "tail"])
@pytest.mark.parametrize("trained_multiplier", [False, True])
def test_one_graph_for_every_batch_size(device: torch.device, trained_multiplier: bool, strategy: str) -> None:
    # aot_eager traces, differentiates and partitions as Inductor does, without a compiler behind it.
    module = model(device, trained_multiplier, strategy)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (2, 3, 7, 16):
            x = torch.rand(n, 3, 6, 5, device=device)
            for got, expected in zip(gradients(compiled, module, x), gradients(module, module, x), strict=True):
                torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor(device: torch.device, mode: str) -> None:
    module = model(device)
    compiled = torch.compile(module, fullgraph=True, mode=mode)
    x = torch.rand(3, 3, 6, 5, device=device)
    convgap.warmup(module, x)
    with torch.no_grad():
        for _ in range(4):  # with reduce-overhead the later ones are replays of a CUDA graph
            x.uniform_()
            torch.testing.assert_close(compiled(x), module(x))


def test_channels_last_and_unbatched(device: torch.device) -> None:
    module = model(device)[0]  # pyright: ignore[reportIndexIssue]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.rand(3, 3, 6, 5, device=device).contiguous(memory_format=torch.channels_last)
    for got, expected in zip(gradients(compiled, module, x), gradients(module, module, x), strict=True):
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()
    torch.testing.assert_close(compiled(x[0]), module(x[0]))


def test_export_loads_in_a_process_of_its_own(device: torch.device, tmp_path: Path) -> None:
    module = model(device)
    x = torch.rand(2, 3, 6, 5, device=device)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert "convgap.chain" in exported.graph_module.code
    torch.export.save(exported, tmp_path / "model.pt2")
    x = torch.rand(5, 3, 6, 5, device=device)  # another batch size than the example's
    torch.save((x, module(x).detach()), tmp_path / "data.pt")
    program = (
        "import sys, torch, convgap\n"
        "module = torch.export.load(sys.argv[1] + '/model.pt2').module()\n"
        "x, expected = torch.load(sys.argv[1] + '/data.pt')\n"
        "torch.testing.assert_close(module(x).detach(), expected)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)


class Scaled(nn.Module):
    """Both functions with one multiplier, which `make` gives."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make
        self.weight = nn.Parameter(torch.rand(3, 2, 3, 3))

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        multiplier = self.make(s)
        chain = convgap.conv_transpose2d_multiply_gap(x, self.weight, multiplier=multiplier)
        return convgap.multiply_gap(x, multiplier), chain


NUMBERS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "item": (lambda s: s.item(), 0.75),
    "item of an integer": (lambda s: s.item(), 3),
    "product with an item": (lambda s: 2 * s.item(), 0.75),
    "NumPy float": (lambda s: np.float32(0.75), 0.0),
    "NumPy integer": (lambda s: np.int64(3), 0.0),
    "NumPy arithmetic": (lambda s: np.sqrt(np.float64(2.0)), 0.0),
}


@pytest.mark.parametrize("how", ["compile", "dynamic", "strict export", "export"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_known_only_when_it_runs(name: str, how: str, device: torch.device) -> None:
    make, number = NUMBERS[name]
    torch.manual_seed(0)
    module = Scaled(make).to(device)
    x, s = torch.rand(2, 3, 4, 5).to(device), torch.tensor(number)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        if how == "compile":
            compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
        elif how == "dynamic":
            compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
        else:
            compiled = torch.export.export(module, (x, s), strict=how == "strict export").module()
        for scale in (s, s + 1):
            for got, expected in zip(compiled(x, scale), module(x, scale), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
        if how in ("compile", "dynamic"):
            (grad,) = torch.autograd.grad(compiled(x, s)[1].sum(), [module.weight])
            (expected,) = torch.autograd.grad(module(x, s)[1].sum(), [module.weight])
            torch.testing.assert_close(grad, expected, rtol=1e-6, atol=0)


def test_a_bool_is_no_number_in_compiled_code_either() -> None:
    def scaled(x: Tensor) -> Tensor:
        wrong: Any = np.bool_(True)
        return convgap.multiply_gap(x, wrong)

    with pytest.raises(Exception, match="multiplier: expected a number"):
        torch.compile(scaled, backend="eager")(torch.rand(2, 3, 4, 5))
