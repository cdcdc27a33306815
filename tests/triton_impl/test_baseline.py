"""The baseline schedule, which the lab compares with: right on the GPU, or interpreted where there is none."""

from __future__ import annotations

import pytest
import torch

from harness.cli import main


def interpreted() -> bool:
    try:
        from triton_impl.baseline import multiply_gap_kernel
    except ImportError:
        return False
    return type(multiply_gap_kernel).__name__ == "InterpretedFunction"


@pytest.mark.skipif(
    not (interpreted() or torch.cuda.is_available()), reason="Triton runs neither on a GPU nor interpreted"
)
@pytest.mark.parametrize(
    "shape",
    [
        "tail:2,70,9,60",  # a ragged second block of channels and a ragged second step of positions
        "tail:1,3,1,1",
        "tail:1,65,16,16",  # the plane size whose variant never compiled
        "chain:2,3,66,5,4,k3,s2,p1,op1",
    ],
)
# No bfloat16: Triton's interpreter cuts float32 down to it where hardware rounds.
@pytest.mark.parametrize("options", ["float32/contiguous", "float16/sliced", "float64/channels_last"])
def test_the_baseline_schedule_is_right(shape: str, options: str) -> None:
    dtype, layout = options.split("/")
    assert main(["check", "--shape", shape, "--backends", "baseline", "--dtype", dtype, "--layout", layout]) == 0
