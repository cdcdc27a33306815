"""`bench.py diff`: two records side by side, or a row of them from the oldest to the newest."""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import pairwise
from math import inf
from pathlib import Path

from harness.console import console
from harness.errors import UsageError
from harness.files import require_writable
from harness.records.as_json import load
from harness.records.differences import EFFECT, compare, require_comparable, require_overlap
from harness.records.history import history
from harness.show import plots
from harness.show.pictures import history_plot
from harness.show.tables import diff_table, history_table
from harness.show.text import print_lines

SUMMARY = "compare two records: faster, slower, same or ambiguous; with more, their history"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py diff`."""
    parser.add_argument("old", type=Path, help="JSON record to compare with")
    parser.add_argument("new", type=Path, nargs="+", help="JSON record to judge; of several, oldest first, the last")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="with three records or more: draw their history, .png or .svg",
    )
    parser.add_argument("--allow-different-gpu", action="store_true", help="compare records of two kinds of GPU")
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
    runs = [load(path) for path in (args.old, *args.new)]
    for old, new in pairwise(runs):
        require_comparable(old, new, allow_different_gpu=args.allow_different_gpu)
    if args.plot:
        if len(runs) < 3:
            raise UsageError("--plot: expected three records or more, for two there is the table")
        plots.require_matplotlib()
        require_writable(args, "plot")
    changes = compare(runs[-2], runs[-1], args.effect / 100)
    require_overlap(changes)
    out = console()
    if len(runs) > 2:
        lines = history(runs, args.effect / 100)
        out.print(history_table(runs, lines))
        if args.plot:
            plots.save_figure(lambda: history_plot(runs, lines), args.plot)
            print_lines(out, [f"wrote {args.plot}"])
    else:
        out.print(diff_table(changes))
    counts = Counter(change.verdict for change in changes)
    out.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(any(change.regression for change in changes))
