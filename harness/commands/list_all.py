"""`bench.py list`: the cases with their sizes and reasons, the entries, the commands."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from harness.cases.case import Case
from harness.cases.catalogue import SETS
from harness.cases.spelling import spell
from harness.commands import COMMANDS
from harness.console import console
from harness.entries.entry import ENTRIES, Entry
from harness.options import add_operator, chosen_operator
from harness.show.text import print_lines, section
from runtime.names import importable

SUMMARY = "list the cases, the entries and the commands"
PARTS = ("cases", "entries", "commands")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py list`."""
    add_operator(parser)
    parser.add_argument("part", nargs="?", choices=PARTS, help="only this part (default: all three)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Print what there is; 0."""
    operator = chosen_operator(args)
    sets, table = (operator.cases, operator.entries()) if operator else (SETS, ENTRIES)
    found = {"cases": partial(_cases, sets), "entries": partial(_entries, table), "commands": _commands}
    parts = {part: found[part]() for part in PARTS if args.part in (None, part)}
    if args.json:
        print(json.dumps(parts, indent=1))
        return 0
    out = console()
    for part, lines in parts.items():
        section(out, f"{len(lines)} {part}")
        # The last column, a sentence, stands alone under the others of a case.
        widths = [max(map(len, column)) for column in zip(*(line.values() for line in lines), strict=True)]
        for line in lines:
            *cells, sentence = line.values()
            text = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
            print_lines(out, [f"  {text}", f"      {sentence}"] if part == "cases" else [f"  {text}  {sentence}"])
    return 0


def _cases(sets: Mapping[str, tuple[Case, ...]]) -> list[dict[str, str]]:
    return [
        {
            "case": case.name,
            "set": name,
            "shape": spell(case.problem),
            "dtype": case.dtype,
            "layout": case.layout,
            "reason": case.reason,
        }
        for name, cases in sets.items()
        for case in cases
    ]


def _entries(table: Mapping[str, Entry]) -> list[dict[str, Any]]:
    return [{"entry": entry.name, "what": entry.about} for entry in table.values()]


def _commands() -> list[dict[str, str]]:
    return [{"command": name, "what": import_module(importable(module)).SUMMARY} for name, module in COMMANDS.items()]
