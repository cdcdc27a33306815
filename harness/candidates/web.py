"""Verdicts as one page for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.candidates.page import lines
from harness.candidates.verdict import Verdict
from harness.show.page import fill
from harness.show.text import NONE, error_text, number


def judge_page(found: Sequence[Verdict]) -> str:
    """Verdicts: a table, then each with its page and its checks."""
    return fill("judge.html", title="Judged", verdicts=[_verdict(i, verdict) for i, verdict in enumerate(found)])


def _verdict(place: int, verdict: Verdict) -> dict[str, Any]:
    own = verdict.timing.get("rows", {}).get("candidate")
    return {
        "anchor": f"file-{place}",
        "file": verdict.file,
        "form": verdict.form,
        "verdict": verdict.verdict,
        "reasons": verdict.reasons,
        "us": own["us"] if own else "",
        "us_text": number(own["us"]) if own else NONE,
        "interval": f"{number(own['low'], 4)} to {number(own['high'], 4)}" if own else NONE,
        "worst": "" if verdict.worst is None else verdict.worst,
        "worst_text": error_text(verdict.worst),
        "page": "\n".join(lines(verdict)),
        "checks": [
            {"name": c.name, "passed": c.passed, "worst": error_text(c.worst), "message": c.message}
            for c in verdict.checks
        ],
    }
