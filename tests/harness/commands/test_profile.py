"""Nsight Compute's CSV and the reading of a row, on figures made up for it; no GPU needed."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.cases.catalogue import select
from harness.cases.spelling import case_and_entry
from harness.cli import main
from harness.commands import profile_entries
from harness.machine import ncu
from harness.machine.ncu import BASELINE_4090, METRICS, Profile, ProfileError, read_csv, reading

NAMES = ["ID", "Process ID", "Kernel Name", *METRICS.values(), "another metric"]
UNITS = ["", "", "", "usecond", "%", "", "%", "%", "%", "register/thread", "", "Mbyte", "Kbyte", "", ""]


def text(*kernels: list[str], units: list[str] = UNITS) -> str:
    lines = [NAMES, units, *kernels]
    quoted = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    return f"==PROF== Connected to process 7\nsome words of the program\n{quoted}\n==PROF== Disconnected\n"


KERNEL = [
    *("0", "7", "multiply_gap(float *, int)"),
    *("120.5", "12.3", "1,024", "45.6", "91.2", "0.1", "72", "128", "536.9", "8.2", "9.1", "x"),
]


def test_reads_names_units_and_thousands() -> None:
    (found,) = read_csv(text(KERNEL), "triton")
    assert (found.entry, found.kernel, found.duration, found.grid) == ("triton", "multiply_gap", 120.5, 1024)
    assert (found.read, found.written, found.dram) == (536.9e6, 8.2e3, 91.2)


def test_units_are_converted_and_unknown_ones_refused() -> None:
    units = ["msecond" if unit == "usecond" else unit for unit in UNITS]
    (found,) = read_csv(text(KERNEL, units=units), "triton")
    assert found.duration == 120_500
    with pytest.raises(ProfileError, match="fortnight"):
        read_csv(text(KERNEL, units=["fortnight" if u == "usecond" else u for u in UNITS]), "triton")


def test_one_profile_per_kernel_and_none_without_any() -> None:
    second = ["1", "7", "contract(float *)", *KERNEL[3:]]
    assert [found.kernel for found in read_csv(text(KERNEL, second), "cupy")] == ["multiply_gap", "contract"]
    assert read_csv("==ERROR== permission\n", "cupy") == []


def test_missing_figures_are_none() -> None:
    (found,) = read_csv(text([*KERNEL[:3], "n/a", *KERNEL[4:]]), "triton")
    assert found.duration is None and found.sm == 12.3


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"dram": 91.0, "warps": 60.0, "sm": 20.0}, "memory-bound at 91 %"),
        ({"dram": 79.9, "warps": 60.0, "sm": 20.0}, "latency-bound at 80 % of DRAM: neither"),
        ({"dram": 40.0, "warps": 60.0, "sm": 85.0}, "compute-bound at 85 %"),
        ({"dram": 40.0, "warps": 8.0, "sm": 5.0}, "latency-bound at 40 % of DRAM: 8 % of the warps"),
        ({"dram": 40.0, "warps": 60.0, "sm": 5.0, "waves": 0.1}, "the grid fills 0.10 of the card"),
        ({"dram": 5.0, "warps": 60.0, "sm": 30.0, "l2_hit": 95.0}, "served by the L2"),
        ({}, "no reading"),
    ],
)
def test_reading(figures: dict[str, Any], words: str) -> None:
    assert words in reading(Profile("row", "kernel", **figures))


def test_reading_of_the_baseline_on_the_4090() -> None:
    assert reading(BASELINE_4090) == "memory-bound at 89 % of DRAM, with 8 % of the warps: wide loads keep it fed"


def test_table_holds_the_4090_row_and_the_failures() -> None:
    found = {"tail/headline": read_csv(text(KERNEL), "triton")}
    shown = profile_entries.render(found, "a card", ["not profiled: tail/headline, cub: no permission"])
    assert "baseline on RTX 4090" in shown and "88.7" in shown and "120" in shown
    assert "not profiled: tail/headline, cub: no permission" in shown


def test_command_never_touches_the_clocks() -> None:
    (case,) = select(("tail/headline",))
    words = ncu.command("ncu", case, "triton")
    assert words[words.index("--clock-control") + 1] == "none"
    case_words = words[words.index("-m") + 2 :]
    assert case_and_entry(case_words) == (replace(case, reason="", twin=None), "triton")


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["profile"]) == 2
    assert "needs a GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ncu.shutil, "which", lambda name: None)
    assert main(["profile"]) == 2
    assert "needs ncu" in capsys.readouterr().err


def test_ncu_that_counts_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(stdout="==ERROR== ERR_NVGPUCTRPERM - no permission\n", stderr="", returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
    (case,) = select(("tail/headline",))
    with pytest.raises(ProfileError, match="ERR_NVGPUCTRPERM"):
        ncu.profile("ncu", case, "triton")
