"""Where the numbers of a run come from: the machine, the versions, the commit."""

from __future__ import annotations

import platform
import re
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
from runtime.names import ROOT

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
        command=command_of(sys.argv),
        commit=commit_of(),
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


def command_of(words: Sequence[str]) -> str:
    """The command line of a process. Of its own path, and of absolute paths, the names: folders of one machine tell
    nobody anything elsewhere."""
    own, *rest = words
    return shlex.join([Path(own).name, *(re.sub(r"^(--[\w-]+=)?/(?:.*/)?(?=[^/])", r"\1", word) for word in rest)])


def _version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def commit_of(root: Path = ROOT) -> str:
    """Commit of the source tree at `root`, marked "+changes" if a file of the source differs from it.

    "" where there is none: an installed package, whatever checkout is around it. Files that git does not track are no
    change, for every run leaves some; nor are documents and tests, which no measured number depends on.
    """
    source = (".", ":!docs", ":!tests", ":!*.md")
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")) != root.resolve():
            return ""
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *source)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+changes" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()
