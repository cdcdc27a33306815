"""An evaluation as KernelBench does it: Model and ModelNew, one seed, five random inputs; error in budget units.

Sizes are the problem's shapes of today and of old, and shapes that it never had; without a GPU the same kernels
on small planes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.candidates import export
from harness.candidates.answers import judge, right
from harness.cases.case import shrink
from harness.cases.inputs import Inputs
from reference.problem import Chain
from tests.harness.candidates.test_export import load

pytest.importorskip("triton", reason="the exported file is made of the Triton kernels")

GPU = torch.cuda.is_available()
TRIALS = 5
SEED = 42

_X2 = (3, 3), (2, 2), (1, 1), (1, 1)
PROBLEMS = {
    "today": Chain(16, 64, 128, 128, 128, *_X2),
    "old": Chain(128, 3, 16, 32, 32, *_X2),
    "never: kernel 4": Chain(8, 32, 48, 30, 50, (4, 4), (2, 2), (1, 1)),
    "never: kernel 5, stride 3": Chain(4, 6, 10, 56, 40, (5, 5), (3, 3), (2, 2), (1, 1)),
    "never: stride 1": Chain(4, 3, 64, 100, 100, (3, 3), (1, 1), (1, 1)),
}


class Model(nn.Module):
    """The problem as it is stated: step by step."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        output_padding: Any,
        multiplier: float,
    ) -> None:
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
        )
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_transpose(x)
        x = x * self.multiplier
        x = torch.mean(x, dim=[2, 3], keepdim=True)
        return torch.mean(x, dim=[2, 3], keepdim=True)


def arguments(problem: Chain) -> tuple[Any, ...]:
    return (
        *(problem.c_in, problem.c_out, problem.kernel),
        *(problem.stride, problem.padding, problem.output_padding, 0.5),
    )


def sized(problem: Chain) -> Chain:
    """The problem itself on a GPU, else at a size for the interpreter."""
    small = problem if GPU else shrink(problem)
    assert isinstance(small, Chain)
    return small


@pytest.mark.parametrize("strategy", export.STRATEGIES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_model_new_against_model(
    name: str, strategy: str, tmp_path: Path, device: torch.device, record_property: Any
) -> None:
    problem = sized(PROBLEMS[name])
    module: Any = load(export.source(strategy), tmp_path)
    models = []
    for kind in (Model, module.ModelNew):
        torch.manual_seed(SEED)
        models.append(kind(*arguments(problem)).to(device).eval())
    model, new = models
    for key, value in model.state_dict().items():
        assert torch.equal(value, new.state_dict()[key]), "weights are equal by construction"

    conv = model.conv_transpose
    worst = 0.0
    # The truth at the full size takes seconds each: one channel more or less says nothing new there.
    for trial in range(TRIALS):
        torch.manual_seed(SEED + trial)
        x = torch.rand(problem.in_shape).to(device)
        with torch.no_grad():
            out = new(x)
        sizes = {"stride": conv.stride, "padding": conv.padding, "output_padding": conv.output_padding}
        inputs = Inputs(x, conv.weight.detach(), conv.bias.detach(), 0.5, sizes | {"groups": 1, "dilation": 1})
        verdict = judge(out.cpu(), problem, inputs, right(problem, inputs), tf32=GPU and strategy == "tail")
        assert verdict.passed, f"trial {trial}: {verdict.message}"
        worst = max(worst, verdict.worst)
    record_property("error_over_budget", worst)
    if GPU:
        record_property("speed_up", speed_up(model, new, torch.rand(problem.in_shape).to(device)))


def speed_up(model: nn.Module, new: nn.Module, x: Tensor) -> float:
    """Device time of the model over that of the new one, cold, both in CUDA graphs."""
    from harness.timing.session import Stop, capture, interleave, stopwatch

    scratch = torch.rand(64 << 20, device=x.device)  # 256 MiB: more than twice any L2 that there is
    with torch.no_grad():
        replays = {name: capture(lambda m=m: m(x))[0] for name, m in (("model", model), ("new", new))}
        meters = {name: stopwatch(replay, lambda: scratch.sum()) for name, replay in replays.items()}
        samples = interleave(meters, Stop(width=0.02, min_rounds=20, max_rounds=60, budget_s=3.0)).samples
    middle = {name: sorted(values)[len(values) // 2] for name, values in samples.items()}
    return middle["model"] / middle["new"]


def test_a_model_of_another_batch_size_and_seed(tmp_path: Path, device: torch.device) -> None:
    """One model, several input sizes in a row: what is kept from call to call must not mix them up."""
    problem = sized(PROBLEMS["never: kernel 4"])
    module: Any = load(export.source(), tmp_path)
    new = module.ModelNew(*arguments(problem)).to(device)
    literal = Model(*arguments(problem)).to(device).double()
    literal.load_state_dict(new.state_dict())
    for n, h in ((1, problem.h), (3, problem.h), (2, problem.h + 1), (1, problem.h)):
        x = torch.rand(replace(problem, n=n, h=h).in_shape).to(device)
        torch.testing.assert_close(new(x).double(), literal(x.double()).detach(), rtol=0, atol=1e-6)
