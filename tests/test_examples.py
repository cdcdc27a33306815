"""The examples run, and say what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cupy_impl.interpret import unavailable

ROOT = Path(__file__).parents[1]


def output(name: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train() -> None:
    last = output("train.py").splitlines()[-1]
    assert last.startswith("largest difference ")
    assert float(last.split()[-1]) < 1e-12


def test_fuse_model() -> None:
    lines = output("fuse_model.py").splitlines()
    assert lines[:3] == [
        "replaced presence: conv_transpose2d -> scale -> adaptive_avg_pool2d",
        "replaced style: conv_transpose2d -> scale -> mean",
        "left decoder.0: ReLU() follows, not a scale or a pool to 1 x 1",
    ]
    assert float(lines[3].split()[-1]) < 1e-12
    assert [line.split(" ->")[0] for line in lines[4:]] == ["chain", "chain"]


def test_fallback() -> None:
    reason = unavailable()
    if reason:
        pytest.skip(f"the CUDA C++ interpreter is the next backend here, and cannot run: {reason}")
    lines = output("fallback.py").splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("warned: convgap: skipping backend 'triton'")
    assert lines[0].endswith("Triton is not installed")
    assert lines[1] == "right answer: True"
    assert lines[2].startswith("chain -> cupy")
    assert lines[3].startswith("by name: backend 'triton' is not usable")
