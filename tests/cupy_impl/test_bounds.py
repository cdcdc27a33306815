"""No wide access reaches beyond a tensor of the launch, whatever its length: the interpreter asks of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import convgap
from harness.mutants.interpose import interposed
from harness.mutants.source import Source, run_of
from tests.usable import require

# Weights of an input plane end within an access of 16 bytes, and begin within one in every plane but the first: taps
# times outputs are odd. The last one is for kernels whose taps no thread holds.
KERNELS = ((3, 5, 3), (5, 1, 1), (2, 7, 5), (2, 3, 7))


def call(c_in: int, c_out: int, taps: int, dtype: torch.dtype, device: torch.device, **where: Any) -> Any:
    generator = torch.Generator().manual_seed(c_out)
    x, weight = (
        torch.rand(shape, generator=generator).to(device, dtype)
        for shape in ((2, c_in, 41, 37), (c_in, c_out, taps, taps))
    )
    return convgap.conv_transpose2d_multiply_gap(x, weight, multiplier=0.5, stride=2, **where)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", KERNELS, ids=str)
def test_weights_of_any_length(sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    require("cupy", device)
    got = call(*sizes, dtype, device, backend="cupy")
    right = call(*sizes, torch.float64, device, backend="torch")
    # Inputs are rounded to the dtype, and so is the answer: some units of its last place.
    near = {torch.float16: 4e-3, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(got.double(), right, rtol=near, atol=near)


def test_an_access_beyond_the_weight_is_seen() -> None:
    """The mistake that was there: whole accesses up to the end, and past it."""
    cpu = torch.device("cpu")
    require("cupy", cpu)
    wrong = Source(r"i >= 0 && i \+ WIDE <= count", "i >= 0")
    with interposed(run_of("cupy", wrong)), pytest.raises(RuntimeError, match="copy_begin of 16 bytes"):
        call(3, 5, 3, torch.float32, cpu, backend="cupy")
