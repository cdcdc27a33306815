"""`bench.py show`: a saved record again, as tables, a page, plots or a line per result."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.console import console
from harness.files import require_writable, write_whole
from harness.records.as_csv import to_csv
from harness.records.as_json import RecordError, load
from harness.show import cross_check, plots, tables
from harness.show.calls import call_text
from harness.show.markdown import markdown
from harness.show.page import record_page
from harness.show.text import print_lines

SUMMARY = "show a saved record again: tables, or a page, plots, CSV"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py show`."""
    parser.add_argument("record", type=Path, help="JSON record, as --json wrote it (also compressed, .json.gz)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs nothing else")
    plots.add_plot_options(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line per case, entry and mode")
    parser.add_argument(
        "--markdown", action="store_true", help="print the summary as a Markdown table, and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Show the record; 0. UsageError if it is none, or if a file cannot be written."""
    found = load(args.record)
    if not found.cases and not found.calls:
        raise RecordError(f"{args.record}: holds no case")
    wanted = [path for path in (args.html, args.csv) if path]
    drawn = plots.files_of(args)
    require_writable(args, "html", "csv", plot=drawn)
    if args.markdown:
        print(markdown(found), end="")
    elif not wanted and not drawn:
        out = console()
        if found.cases:
            tables.print_timed(found, out)
            cross_check.print_check(found, out)
        if found.calls:
            print(call_text(found), end="")
    if args.html:
        write_whole(args.html, record_page(found))
    if args.csv:
        write_whole(args.csv, to_csv(found))
    wanted += plots.draw(found, args)
    if wanted and not args.markdown:
        print_lines(console(), [f"wrote {path}" for path in wanted])
    return 0
