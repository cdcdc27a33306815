"""What Nsight Compute counts for one call of an entry, and a short reading of it by stated rules.

ncu is run on a process of its own (harness/machine/profile_target.py) and its CSV is read here. Clocks are left as
they are.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import dataclass

import torch

from harness.cases.case import Case
from harness.cases.spelling import arguments
from harness.entries.entry import Unavailable
from harness.errors import UsageError
from harness.machine.profile_target import REFUSED
from runtime.names import ROOT, module_command

LIMIT_S = 600

METRICS = {
    "duration": "gpu__time_duration.sum",
    "sm": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "grid": "launch__grid_size",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_hit": "lts__t_sector_hit_rate.pct",
    "registers": "launch__registers_per_thread",
    "block": "launch__block_size",
    "read": "dram__bytes_read.sum",
    "written": "dram__bytes_write.sum",
    "waves": "launch__waves_per_multiprocessor",
}
"""ncu's names. Achieved occupancy is `warps`: the share of an SM's warps that were there, on average."""

_TO_US = {
    "nsecond": 1e-3,
    "ns": 1e-3,
    "usecond": 1.0,
    "us": 1.0,
    "msecond": 1e3,
    "ms": 1e3,
    "second": 1e6,
    "s": 1e6,
}
_TO_BYTES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass
class Profile:
    """One kernel. duration in us, read and written in bytes of DRAM traffic, the rest percent or counts.

    None where ncu gave no figure.
    """

    entry: str
    kernel: str
    duration: float | None = None
    sm: float | None = None
    grid: float | None = None
    warps: float | None = None
    dram: float | None = None
    l2_hit: float | None = None
    registers: float | None = None
    block: float | None = None
    read: float | None = None
    written: float | None = None
    waves: float | None = None


BASELINE_4090 = Profile(
    "baseline on RTX 4090", "multiply_gap_kernel", sm=3.78, grid=32, warps=8.33, dram=88.71, l2_hit=30.34
)
"""As given with the problem, for the headline's convolution output; its duration was not."""


class ProfileError(RuntimeError):
    """An entry gave no figures; the message says why."""


def require() -> str:
    """Path of ncu. UsageError if it, or a GPU, is missing."""
    if not torch.cuda.is_available():
        raise UsageError("profiling needs a GPU, and torch sees none")
    ncu = shutil.which("ncu")
    if ncu is None:
        raise UsageError("profiling needs ncu (Nsight Compute) on the PATH, and there is none")
    return ncu


def command(ncu: str, case: Case, entry: str) -> list[str]:
    """ncu on one call: raw CSV, clocks untouched, caches empty before each pass over a kernel."""
    return [
        ncu,
        *("--csv", "--page", "raw", "--metrics", ",".join(METRICS.values())),
        *("--clock-control", "none", "--cache-control", "all", "--profile-from-start", "off"),
        # Compilers run in processes of their own, which ncu would slow down for nothing.
        *("--target-processes", "application-only"),
        *module_command("harness.machine.profile_target"),
        *arguments(case, entry),
    ]


def profile(ncu: str, case: Case, entry: str) -> list[Profile]:
    """Kernels of one call of an entry, in order.

    Raises Unavailable where the entry has nothing to do with the case, ProfileError with ncu's own words if it counted
    nothing.
    """
    try:
        done = subprocess.run(
            command(ncu, case, entry), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProfileError(f"no answer in {LIMIT_S} s") from None
    if refused := re.search(rf"^{REFUSED}(.*)$", done.stdout, re.MULTILINE):
        raise Unavailable(refused[1])
    found = read_csv(done.stdout, entry)
    if not found:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "ERR" in line or "Error" in line]
        raise ProfileError(" ".join((said or ["ncu counted nothing"])[-1].split()))
    return found


def read_csv(text: str, entry: str) -> list[Profile]:
    """Kernels of `ncu --csv --page raw`: names, units, then a line per kernel; other lines are passed by.

    A figure that is missing or "n/a" is None.
    """
    lines = text.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith('"ID"')]
    if not starts:
        return []
    table = list(csv.reader(io.StringIO("\n".join(line for line in lines[starts[0] :] if line.startswith('"')))))
    names, units, *kernels = table
    unit_of = dict(zip(names, units, strict=False))
    found = []
    for kernel in kernels:
        values = dict(zip(names, kernel, strict=False))
        figures = {field: _figure(values.get(name), unit_of.get(name, ""), field) for field, name in METRICS.items()}
        found.append(Profile(entry, values.get("Kernel Name", "").split("(")[0], **figures))
    return found


def _figure(text: str | None, unit: str, field: str) -> float | None:
    try:
        value = float((text or "").replace(",", ""))
    except ValueError:
        return None
    table = {"duration": _TO_US, "read": _TO_BYTES, "written": _TO_BYTES}.get(field)
    if table is None:
        return value
    if unit not in table:
        raise ProfileError(f"ncu gave {METRICS[field]} in {unit!r}, expected one of {', '.join(table)}")
    return value * table[unit]


BUSY = 80.0
"""Percent of a unit's peak from which it is what limits a kernel: the last fifth is lost to starting and ending."""

FEW_WARPS = 25.0
"""Percent of an SM's warps below which latency cannot be hidden by switching to another one."""


def reading(item: Profile) -> str:
    """What limits the kernel, in words. docs/rtx4090.md states the rules; the first that applies is used."""
    dram, sm, warps = item.dram, item.sm, item.warps
    if dram is None:
        return "no reading: ncu gave no DRAM throughput"
    few = warps is not None and warps < FEW_WARPS
    if dram >= BUSY:
        words = f"memory-bound at {dram:.0f} % of DRAM"
        return words + (f", with {warps:.0f} % of the warps: wide loads keep it fed" if few else "")
    if sm is not None and sm >= BUSY:
        return f"compute-bound at {sm:.0f} % of the SMs, DRAM at {dram:.0f} %"
    if item.waves is not None and item.waves < 1:
        return f"latency-bound at {dram:.0f} % of DRAM: the grid fills {item.waves:.2f} of the card"
    if few:
        return f"latency-bound at {dram:.0f} % of DRAM: {warps:.0f} % of the warps are there"
    if item.l2_hit is not None and item.l2_hit >= BUSY:
        return f"served by the L2 ({item.l2_hit:.0f} % hits), DRAM at {dram:.0f} %"
    return f"latency-bound at {dram:.0f} % of DRAM: neither memory nor the SMs are busy"
