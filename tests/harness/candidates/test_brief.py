"""The brief names the card, the rules, the code and its counters, and asks for what the judge's strict rules accept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.candidates import brief, cards, rules
from harness.cli import main


def test_brief_of_a_file(tmp_path: Path) -> None:
    code, profile, out = tmp_path / "code.py", tmp_path / "profile.json", tmp_path / "brief.txt"
    code.write_text("# my kernel\n")
    item = {"entry": "baseline", "kernel": "multiply_gap_kernel", "sm": 3.78, "grid": 32, "dram": None}
    profile.write_text(json.dumps({"kernels": {"tail/headline": [item]}}))
    arguments = ["--card", "4090", "--code", str(code), "--profile", str(profile), "--output", str(out)]
    assert main(["brief", *arguments]) == 0
    text = out.read_text()
    assert "RTX 4090" in text and "1008 GB/s" in text and "# my kernel" in text
    start = text.index("# Nsight Compute\n") + len("# Nsight Compute\n")
    figures = json.loads(text[start : text.index("\n\n# Task")])
    assert figures == {
        "multiply_gap_kernel": {
            "sm__throughput.avg.pct_of_peak_sustained_elapsed": 3.78,
            "launch__grid_size": 32,
        }
    }
    for name in rules.PARAMETERS:
        assert name in text
    assert all(f"tl.{name}" in text for name in rules.FORBIDDEN)


def test_every_stage_and_card() -> None:
    for stage in brief.STAGES:
        for card in cards.CARDS.values():
            text = brief.text(card, stage=stage, code="x", counters={})
            assert card.name in text and brief.STAGES[stage][0] in text and "not measured" in text


def test_card_by_torch_name() -> None:
    assert cards.of("NVIDIA GeForce RTX 4090") == "4090"
    assert cards.of("another") is None


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"kernels": {"a": [{"entry": "b"}]}}'])
def test_a_profile_without_figures_is_bad_usage(content: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(content)
    code = tmp_path / "code.py"
    code.write_text("")
    assert main(["brief", "--code", str(code), "--profile", str(profile)]) == 2
