"""The wheel: one name in the top level, every file in it, and it works beside files that have its folders' names."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

# The build backend itself, called as pip calls it but with what is installed: nothing is downloaded.
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"

# Runs the real kernel source, which only the data files bring.
PROGRAM = """
import subprocess, sys, torch, convgap
from convgap.cupy_impl import interpret, launch
from convgap.runtime.names import ROOT, importable
assert convgap.__file__.startswith(sys.argv[1]), convgap.__file__
reasons = {status.name: status.reason for status in convgap.status("cpu")}
backends = ["torch"] if interpret.unavailable() else ["torch", "cupy"]
for backend in backends:
    out = convgap.multiply_gap(torch.ones(2, 3, 4, 5), 2.0, backend=backend)
    assert out.flatten().tolist() == [2.0] * 6
    x, weight = torch.ones(1, 2, 3, 3), torch.ones(2, 1, 1, 1)
    assert convgap.conv_transpose2d_multiply_gap(x, weight, backend=backend).item() == 2.0
assert "multiply_gap" in launch.device_source(launch.Code("multiply_gap", ()))
print(*backends, reasons)
# Commands start fresh processes of a module by its name: that process imports the same files.
code = f"import {importable('harness')} as harness; print(harness.__file__)"
done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
assert done.stdout.startswith(sys.argv[1]), done.stdout
"""

# What the script `convgap` does that an installer makes of the wheel's entry point.
SCRIPT = """
import sys
from importlib.metadata import entry_points
(command,) = [p for p in entry_points(group="console_scripts") if p.name == "convgap"]
sys.exit(command.load()(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its traces beside the sources."""
    pytest.importorskip("setuptools", reason="setuptools builds the wheel, and it is not installed")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    # What an earlier build left there is not part of this one.
    (source / "build" / "lib" / "reference").mkdir(parents=True)
    (source / "build" / "lib" / "reference" / "__init__.py").write_text("")
    built = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(built)], check=False, capture_output=True, text=True, cwd=source
    )
    assert done.returncode == 0, done.stderr
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder of scripts with a file for each name of this project's folders; to import one ends the process."""
    for name in {*FOLDERS, "tests", "bench"} - {"convgap"}:
        (tmp_path / f"{name}.py").write_text(f"import os\nprint('{name}.py was imported')\nos._exit(9)\n")
    return tmp_path


def run(program: str, *arguments: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A script in `cwd`, as python3 runs it: its own folder comes first on the path."""
    script = cwd / "script.py"
    script.write_text(program)
    left_out = ("CONVGAP_BACKEND", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in left_out} | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, str(script), *arguments], check=False, capture_output=True, text=True, cwd=cwd, env=environment
    )  # fmt: skip


def test_every_file_is_in_the_wheel_and_the_top_level_has_one_name(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(ROOT).as_posix()
        for name in FOLDERS
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyd")
    }
    assert inside == {name if name.startswith("convgap/") else f"convgap/{name}" for name in sources}
    # Without these the CUDA C++ kernels are not there, and a user's type checker does not look.
    kernels = {"kernels.cu", "device.cuh", "interpret/device.h", "interpret/fibers.h", "interpret/fibers.cpp"}
    assert inside >= {f"convgap/cupy_impl/{name}" for name in kernels} | {"convgap/py.typed"}


def test_licence_and_the_one_name_are_in_the_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = {name.partition(".dist-info/")[2]: name for name in archive.namelist()}
    assert "licenses/LICENSE" in metadata
    assert archive.read(metadata["top_level.txt"]).split() == [b"convgap"]


def test_works_beside_files_with_its_folders_names(site: Path, beside: Path) -> None:
    done = run(PROGRAM, str(site), site=site, cwd=beside)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[0] == "torch"
    assert "No module named" not in done.stdout


def test_the_command_line_works_beside_files_with_its_folders_names(site: Path, beside: Path) -> None:
    words = ["check", "--shape", "tail:1,2,3,4", "--backends", "eager-ieee,torch,cupy,triton"]
    done = run(SCRIPT, *words, site=site, cwd=beside)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was imported" not in done.stdout and "No module named" not in done.stdout


def rewritten(source: str) -> str:
    """setup.py's own function on one text, for folders `reference` and `harness`."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "rewritten"]
    names: dict = {"ast": ast, "re": re, "ROOT": "convgap", "MOVED": {"reference", "harness"}}
    exec(compile(ast.Module([function], []), "setup.py", "exec"), names)
    return names["rewritten"](source, "file.py")


def test_imports_are_rewritten_wherever_they_stand() -> None:
    source = (
        "from reference.problem import (\n    Chain,\n)\nimport harness.cli as cli\nimport os, re\n"
        "def f():\n    from reference import oracle; from referenced import x\n    '''from reference import y'''\n"
    )
    assert rewritten(source) == (
        "from convgap.reference.problem import (\n    Chain,\n)\nimport convgap.harness.cli as cli\nimport os, re\n"
        "def f():\n    from convgap.reference import oracle; from referenced import x\n"
        "    '''from reference import y'''\n"
    )


@pytest.mark.parametrize("source", ["import reference.problem", "import reference", "import os, harness as h"])
def test_an_import_that_cannot_be_moved_stops_the_build(source: str) -> None:
    with pytest.raises(SyntaxError, match=r"file\.py:1: write"):
        rewritten(source)
