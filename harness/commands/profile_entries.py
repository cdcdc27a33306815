"""`bench.py profile`: what Nsight Compute counts for each entry, and a short reading of it by stated rules."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from dataclasses import asdict

import torch
from rich.console import Console

from harness.console import console, progress
from harness.entries.entry import Unavailable
from harness.files import add_outputs, check_outputs, write_outputs
from harness.machine.ncu import BASELINE_4090, Profile, ProfileError, profile, reading, require
from harness.options import add_case_options, chosen_cases, chosen_entries
from harness.show.text import NONE, new_table, number, print_lines

SUMMARY = "Nsight Compute's figures for each entry, with a reading in words; needs ncu and a GPU"
DEFAULT = ["triton", "cupy", "triton-tail", "cupy-tail", "inductor", "baseline"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py profile`."""
    add_case_options(parser)
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Print one table per case; 1 if an entry that applies could not be profiled."""
    ncu = require()
    check_outputs(args, "profile")
    args.backends = args.backends or DEFAULT
    names = [entry.name for entry in chosen_entries(args, gpu=True)]
    cases = chosen_cases(args, ("headline",), gpu=True)
    found: dict[str, list[Profile]] = {}
    failed: list[str] = []
    unavailable: list[str] = []
    with progress(Console(stderr=True), len(cases) * len(names)) as advance:
        for case in cases:
            found[case.name] = []
            for name in names:
                try:
                    found[case.name] += profile(ncu, case, name)
                except Unavailable as reason:
                    unavailable.append(f"{case.name}, {name}: {reason}")
                except ProfileError as error:
                    failed.append(f"{case.name}, {name}: {error}")
                advance(f"{case.name}, {name}")
    device = torch.cuda.get_device_name()
    others = [f"unavailable: {line}" for line in unavailable] + [f"not profiled: {line}" for line in failed]
    kernels = {name: [asdict(item) for item in items] for name, items in found.items()}
    document = {"device": device, "kernels": kernels, "failed": failed, "unavailable": unavailable}
    write_outputs(args, "profile", render(found, device, others), document)
    return int(bool(failed))


def render(found: dict[str, list[Profile]], device: str, others: Iterable[str]) -> str:
    """One table per case, with the baseline on the RTX 4090 below where it is the same problem."""
    out = io.StringIO()
    shown = console(out)
    shown.print(
        f"Measured with Nsight Compute on {device}, clocks as they were, caches empty at the start of each kernel.",
        soft_wrap=True,
    )
    for case, items in found.items():
        shown.print()
        shown.print(case)
        rows = [*items, BASELINE_4090] if case in ("chain/headline", "tail/headline") else items
        headers = (
            "entry",
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
        table = new_table(headers)
        for item in rows:
            table.add_row(
                item.entry,
                *(number(v) for v in (item.duration, item.sm, item.dram, item.warps, item.l2_hit)),
                *(NONE if v is None else f"{v:.0f}" for v in (item.grid, item.registers)),
                *(NONE if v is None else number(v / 1e6) for v in (item.read, item.written)),
            )
        shown.print(table)
        for item in rows:
            shown.print(f"  {item.entry}, {item.kernel}: {reading(item)}", soft_wrap=True)
    shown.print()
    print_lines(shown, others)
    return out.getvalue()
