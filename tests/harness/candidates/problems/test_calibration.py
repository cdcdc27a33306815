"""Every honest answer to the known problems is within the estimated budget, and every fault outside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from harness.candidates.problems import calibration
from harness.candidates.problems.faults import FAULTS

SEED = 11
COMPILES = shutil.which("g++") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WITHOUT = {
    "TF32": {"elementwise", "softmax", "layer_norm", "batch_norm", "reduction", "pooling", "loss"},
    "float16 accumulator": {"elementwise"},
    "two samples swapped": {"loss"},
    "no bias": {"softmax", "product", "reduction", "pooling", "loss", "attention"},
    "divisor off by one": {"elementwise", "softmax", "product", "convolution", "mlp"},
}
"""Problems that leave no room for a fault: no product, no sum, no samples, no bias, no divisor."""
ONLY = {
    "epsilon beside the root": {"layer_norm", "batch_norm"},
    "no ReLU": {"elementwise", "convolution", "mlp"},
}


def test_there_are_twelve_problems() -> None:
    assert len(calibration.KNOWN) == 12


@pytest.mark.parametrize("path", calibration.KNOWN, ids=lambda path: path.stem)
def test_right_and_wrong(path: Path) -> None:
    row = calibration.row(path, SEED, compiled=COMPILES, device=DEVICE)
    assert set(row.honest) == {"eager", "torch.compile"} if COMPILES else {"eager"}
    # Half of the budget, so that a kernel may sum in a worse order than the framework.
    assert all(error < 0.5 for error in row.honest.values()), row.honest
    expected = {
        name
        for name in FAULTS
        if path.stem not in WITHOUT.get(name, ()) and (name not in ONLY or path.stem in ONLY[name])
    }
    assert set(row.faults) == expected
    assert all(error > 1 for error in row.faults.values()), row.faults
    assert row.sound


def test_a_comparison_with_a_tolerance_accepts_what_the_estimate_refuses() -> None:
    row = calibration.row(next(p for p in calibration.KNOWN if p.stem == "layer_norm"), SEED, compiled=False)
    assert {"epsilon beside the root", "divisor off by one", "float16 accumulator"} <= set(row.loose)


def test_the_derived_budget_of_the_chain_is_the_wider_one() -> None:
    """It holds for the worst signs of all roundings; the other for what random ones add up to."""
    path = next(p for p in calibration.KNOWN if p.stem == calibration.CHAIN)
    row = calibration.row(path, SEED, compiled=False)
    assert row.derived is not None
    # A depth of 600 additions: n against sqrt(n), and 10 root mean squares.
    assert 10 < row.derived[0] < row.derived[1] < 1000
