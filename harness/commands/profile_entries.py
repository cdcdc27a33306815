"""`bench.py profile`: what Nsight Compute counts for each row, and a short reading of it by stated rules.

ncu is run on a process of its own (harness/machine/profile_target.py) and its CSV is read here. Clocks are left as
they are.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from harness.cases.catalogue import Case
from harness.cases.spelling import spell
from harness.console import progress
from harness.entries.entry import choose
from harness.errors import UsageError
from harness.files import add_outputs, check_outputs, write_outputs
from harness.options import add_case_options, chosen_cases
from harness.show import tables
from runtime.names import ROOT, importable

SUMMARY = "Nsight Compute's figures for each row, with a reading in words; needs ncu and a GPU"
ROWS = ("triton", "cupy", "triton-tail", "cupy-tail", "inductor", "baseline")
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

    row: str
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py profile`."""
    add_case_options(parser)
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Print one table per case; 1 if a row could not be profiled."""
    ncu = require()
    check_outputs(args, "profile")
    try:
        rows = [peer.name for peer in choose(args.backends or list(ROWS), gpu=True)]
    except ValueError as error:
        raise UsageError(str(error)) from None
    cases = chosen_cases(args, ("headline",), gpu=True)
    found: dict[str, list[Profile]] = {}
    failed: list[str] = []
    with progress(Console(stderr=True), len(cases) * len(rows)) as advance:
        for case in cases:
            found[case.name] = []
            for row in rows:
                try:
                    found[case.name] += profile(ncu, case, row)
                except ProfileError as error:
                    failed.append(f"{case.name}, {row}: {error}")
                advance(f"{case.name}, {row}")
    device = torch.cuda.get_device_name()
    text = render(found, device, failed)
    kernels = {name: [asdict(item) for item in items] for name, items in found.items()}
    write_outputs(args, "profile", text, {"device": device, "kernels": kernels, "failed": failed})
    return int(bool(failed))


class ProfileError(RuntimeError):
    """A row gave no figures; the message says why."""


def require() -> str:
    """Path of ncu. UsageError if it, or a GPU, is missing."""
    if not torch.cuda.is_available():
        raise UsageError("profiling needs a GPU, and torch sees none")
    ncu = shutil.which("ncu")
    if ncu is None:
        raise UsageError("profiling needs ncu (Nsight Compute) on the PATH, and there is none")
    return ncu


def command(ncu: str, case: Case, row: str) -> list[str]:
    """ncu on one call: raw CSV, clocks untouched, caches empty before each pass over a kernel."""
    return [
        ncu,
        *("--csv", "--page", "raw", "--metrics", ",".join(METRICS.values())),
        *("--clock-control", "none", "--cache-control", "all", "--profile-from-start", "off"),
        # Compilers run in processes of their own, which ncu would slow down for nothing.
        *("--target-processes", "application-only"),
        *(
            sys.executable,
            "-m",
            importable("harness.machine.profile_target"),
            spell(case.problem),
            case.dtype,
            case.layout,
            row,
        ),
    ]


def profile(ncu: str, case: Case, row: str) -> list[Profile]:
    """Kernels of one call of a row, in order. ProfileError with ncu's own words if there are none."""
    try:
        done = subprocess.run(
            command(ncu, case, row), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProfileError(f"no answer in {LIMIT_S} s") from None
    found = read_csv(done.stdout, row)
    if not found:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "ERR" in line or "Error" in line]
        raise ProfileError(" ".join((said or ["ncu counted nothing"])[-1].split()))
    return found


def read_csv(text: str, row: str) -> list[Profile]:
    """Kernels of `ncu --csv --page raw`: names, units, then a line per kernel; other lines are passed by.

    A figure that is missing or "n/a" is None.
    """
    lines = text.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith('"ID"')]
    if not starts:
        return []
    table = list(
        csv.reader(io.StringIO("\n".join(line for line in lines[starts[0] :] if line.startswith('"'))))
    )
    names, units, *kernels = table
    unit_of = dict(zip(names, units, strict=False))
    found = []
    for kernel in kernels:
        values = dict(zip(names, kernel, strict=False))
        figures = {
            field: _figure(values.get(name), unit_of.get(name, ""), field) for field, name in METRICS.items()
        }
        found.append(Profile(row, values.get("Kernel Name", "").split("(")[0], **figures))
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


# --- reading ---

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


def render(found: dict[str, list[Profile]], device: str, failed: Iterable[str]) -> str:
    """One table per case, with the baseline's row of the RTX 4090 below where it is the same problem."""
    out = io.StringIO()
    console = tables.console(out)
    console.print(
        f"Measured with Nsight Compute on {device}, clocks as they were, caches empty at the start of each kernel.",
        soft_wrap=True,
    )
    for case, items in found.items():
        console.print()
        console.print(case)
        rows = [*items, BASELINE_4090] if case in ("chain/headline", "tail/headline") else items
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        headers = (
            "row",
            "us",
            "sm %",
            "dram %",
            "warps %",
            "L2 hit %",
            "grid",
            "regs",
            "MB read",
            "MB written",
        )
        for at, header in enumerate(headers):
            table.add_column(header, justify="left" if at < 1 else "right", no_wrap=True)
        for item in rows:
            table.add_row(
                item.row,
                *(tables.number(v) for v in (item.duration, item.sm, item.dram, item.warps, item.l2_hit)),
                *(tables.NONE if v is None else f"{v:.0f}" for v in (item.grid, item.registers)),
                *(tables.NONE if v is None else tables.number(v / 1e6) for v in (item.read, item.written)),
            )
        console.print(table)
        for item in rows:
            console.print(f"  {item.row}, {item.kernel}: {reading(item)}", soft_wrap=True)
    console.print()
    for line in failed:
        console.print(f"not profiled: {line}", soft_wrap=True)
    return out.getvalue()
