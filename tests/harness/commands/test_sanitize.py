"""The sanitizers' command: that its driver reaches every kernel, that it says why it cannot run, and it itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.cli import main
from harness.commands import sanitize
from harness.errors import UsageError
from harness.mutants.interpose import kernels
from tests.usable import TRITON, require


@pytest.mark.parametrize("backend", [TRITON, "cupy"])
def test_driver_reaches_every_kernel(backend: str, device: torch.device) -> None:
    require(backend, device)
    assert sanitize.drive([backend], device.type) == set(kernels())


@pytest.mark.parametrize("tool", sanitize.TOOLS)
def test_command_line(tool: str) -> None:
    words = sanitize.command(tool, "/bin/compute-sanitizer", ["cupy"])
    assert words[words.index("--tool") + 1] == tool
    assert words[words.index("--error-exitcode") + 1] == str(sanitize.FOUND)
    assert words[-2:] == ["--backends", "cupy"]
    assert sanitize.environment()["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def fake(folder: Path, script: str) -> list[str]:
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return [str(tool)]


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("echo launched contract", 0, "clean"),
        # Nothing launched is nothing looked at.
        ("echo nothing", 1, "exit code 0"),
        ("echo launched; exit 86", 1, "findings"),
        ("exit 3", 1, "exit code 3"),
    ],
)
def test_verdict(script: str, code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize._one("memcheck", fake(tmp_path, script), tmp_path / "logs") == code
    assert says in capsys.readouterr().out
    assert (tmp_path / "logs" / "memcheck.log").exists()


def test_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert main(["sanitize"]) == 2
    error = capsys.readouterr().err
    assert "compute-sanitizer" in error
    assert error.count("\n") == 1
    assert main(["sanitize", "--tools", "memchek"]) == 2
    assert "memchek" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="not on PATH nor in /usr/local/cuda/bin"):
        sanitize.find()


def test_nothing_is_found() -> None:
    try:
        sanitize.find()
    except UsageError as reason:
        pytest.skip(str(reason))
    root = Path(sanitize.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "harness.commands.sanitize", "--tools", "memcheck"],
        check=False, cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
