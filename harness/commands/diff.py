"""`bench.py diff`: two records side by side."""

from __future__ import annotations

import argparse
from collections import Counter
from math import inf
from pathlib import Path

from harness.console import console
from harness.errors import UsageError
from harness.records.as_json import load
from harness.records.differences import EFFECT, compare, require_comparable, require_overlap
from harness.show.tables import diff_table

SUMMARY = "compare two records: faster, slower, same or ambiguous"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py diff`."""
    parser.add_argument("old", type=Path, help="JSON record to compare with")
    parser.add_argument("new", type=Path, help="JSON record to judge")
    parser.add_argument(
        "--allow-different-gpu", action="store_true", help="compare records of two kinds of GPU"
    )
    parser.add_argument(
        "--effect",
        type=float,
        default=100 * EFFECT,
        metavar="PERCENT",
        help="smallest change that matters (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the verdicts; 0 without a regression, 1 with one. UsageError if they cannot be compared."""
    if not 0 < args.effect < inf:
        raise UsageError(f"--effect: expected a positive number of percent, got {args.effect}")
    old, new = load(args.old), load(args.new)
    require_comparable(old, new, allow_different_gpu=args.allow_different_gpu)
    changes = compare(old, new, args.effect / 100)
    require_overlap(changes)
    out = console()
    out.print(diff_table(changes))
    counts = Counter(change.verdict for change in changes)
    out.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(any(change.regression for change in changes))
