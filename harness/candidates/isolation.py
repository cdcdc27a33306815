"""How far a candidate's process is cut off from this system: the strongest way in which what it needs still works.

CUDA does not start, or does not work, in every way that a system has to cut a process off. So each way is tried once,
in a process that does what a candidate's does: start CUDA, be cut off, launch something new.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.candidates import inside

ROOT = Path(inside.__file__).parents[inside.__name__.count(".") + 1]
ALONE = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
ITSELF, ALL_PROCESSES = "/proc/self", "/proc"
PROBE_S = 120.0
"""Seconds that a process may take to start CUDA."""

PROBE = """
import sys; sys.path.insert(0, {root!r})
from {inside}.sandbox import restrict
from pathlib import Path
if {gpu}:
    import torch
    torch.zeros(1, device="cuda")
print(restrict(Path.cwd(), 1 << 30, {writable!r}))
if {gpu}:
    square = torch.rand(2048, 2048, device="cuda")
    (square @ square).sort().values.sum().item()
"""


@dataclass(frozen=True)
class Isolation:
    """prefix: a command that starts another without network or sight of other processes; empty where there is none.

    writable: what it may write to beside its own folder and devices; None: whatever the system lets it.
    confined: whether the system keeps it to that.
    """

    prefix: tuple[str, ...] = ()
    writable: tuple[str, ...] | None = None
    confined: bool = False

    def __str__(self) -> str:
        apart = "a process of its own, "
        if self.prefix:
            apart += "without network or sight of other processes"
        else:
            apart += "which this system does not let be cut off from network and other processes"
        if self.confined:
            return f"{apart}; it writes to its own folder and devices only"
        return f"{apart}; nothing keeps it from writing where its user may"


@cache
def strongest(gpu: bool) -> Isolation:
    """The first of `ways` in which a process starts, with CUDA if `gpu`; where none does, a process and no more."""
    return next(filter(None, (works(way, gpu) for way in ways())), Isolation())


def ways() -> Iterator[Isolation]:
    """From the strongest to the weakest."""
    prefixes: list[tuple[str, ...]] = [()]
    if shutil.which(ALONE[0]):
        users = ("--user", "--map-current-user") if os.geteuid() else ()
        prefixes.insert(0, (ALONE[0], *users, *ALONE[1:]))
    for prefix in prefixes:
        for writable in ((), (ITSELF,), (ALL_PROCESSES,), None):
            yield Isolation(prefix, writable)


def works(way: Isolation, gpu: bool) -> Isolation | None:
    """The way, with what the system made of it; None if the process does not start in it."""
    code = PROBE.format(root=str(ROOT), inside=inside.__name__, writable=way.writable, gpu=gpu)
    with tempfile.TemporaryDirectory(prefix="judged-", ignore_cleanup_errors=True) as folder:
        try:
            done = subprocess.run(
                [*way.prefix, sys.executable, "-I", "-c", code],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=PROBE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    if done.returncode:
        return None
    return Isolation(way.prefix, way.writable, done.stdout.strip() == "True")
