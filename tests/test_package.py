"""The wheel: every package and data file is in it, nothing else, and it works on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("convgap", "cupy_impl", "harness", "reference", "runtime", "torch_impl", "triton_impl")
DATA = {
    "cupy_impl/kernels.cu",
    "cupy_impl/device.cuh",
    "cupy_impl/interpret/device.h",
    "cupy_impl/interpret/fibers.h",
    "cupy_impl/interpret/fibers.cpp",
}

# The build backend itself, called as pip calls it but with what is installed: nothing is downloaded.
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"

# Runs the real kernel source, which only the data files bring.
PROGRAM = """
import os, sys, torch, convgap
from cupy_impl import interpret, launch
assert convgap.__file__.startswith(sys.argv[1]), convgap.__file__
backends = ["torch"] if interpret.unavailable() else ["torch", "cupy"]
for backend in backends:
    out = convgap.multiply_gap(torch.ones(2, 3, 4, 5), 2.0, backend=backend)
    assert out.flatten().tolist() == [2.0] * 6
assert "multiply_gap" in launch.device_source(launch.Specialization("multiply_gap", ()))
print(*backends)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its traces beside the sources."""
    pytest.importorskip("setuptools", reason="setuptools builds the wheel, and it is not installed")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(built)], check=False, capture_output=True, text=True, cwd=source
    )
    assert done.returncode == 0, done.stderr
    (found,) = built.glob("*.whl")
    return found


def test_every_source_and_data_file_is_in_the_wheel(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == sources
    assert inside >= DATA


def test_licence_is_in_the_wheel(wheel: Path) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {k: v for k, v in os.environ.items() if k not in ("CONVGAP_BACKEND", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(site)], check=False, capture_output=True, text=True,
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "torch"
