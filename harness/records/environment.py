"""Where the numbers of a run come from: the machine, the versions, the commit."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from harness.records.record import Environment
from harness.timing.telemetry import Telemetry

PACKAGES = {
    "torch": ("torch",),
    "triton": ("triton",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "numpy": ("numpy",),
}


def environment(device: torch.device, telemetry: Telemetry | None) -> Environment:
    """Everything about this process that the numbers may depend on."""
    found = Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        commit=_commit(),
        platform=platform.platform(),
        python=platform.python_version(),
        versions={name: version for name, names in PACKAGES.items() if (version := _version(names))},
    )
    if device.type == "cuda":
        found.gpu = torch.cuda.get_device_name(device)
        found.capability = "".join(map(str, torch.cuda.get_device_capability(device)))
        found.driver = telemetry.driver() if telemetry else None
        found.cuda = torch.version.cuda
    return found


def _version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _commit() -> str:
    """Commit of this source tree, marked if files differ from it; "" outside a git checkout."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
