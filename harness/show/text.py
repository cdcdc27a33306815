"""The pieces of what is shown: figures as a person reads them, lines, and the one kind of table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import isfinite

from rich import box
from rich.console import Console
from rich.table import Table

from harness.records.record import CaseRecord
from harness.timing.intervals import Interval

NONE = "-"


def new_table(headers: Iterable[str], left: int = 1) -> Table:
    """Table whose first `left` columns are words and the others numbers."""
    table = Table(
        box=box.SIMPLE_HEAD if sys.stdout.isatty() else None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left else "right", no_wrap=True)
    return table


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent, for a figure a person compares by eye."""
    if value is None or not isfinite(value):
        return NONE if value is None else str(value)
    if value == 0:
        return "0"
    size = abs(value)
    places = max(0, digits - 1 - _exponent(size))
    return f"{value:.{places}f}"


def _exponent(size: float) -> int:
    return int(f"{size:e}".partition("e")[2])


def size_text(count: int | None) -> str:
    """Bytes in MB (10^6), the unit that goes with GB/s."""
    return NONE if count is None else number(count / 1e6)


def error_text(error: float | None) -> str:
    """Error in units of the budget."""
    if error is None:
        return NONE
    return f"{error:.2g}" if error < 100 else f"{error:.1e}"


def gain_text(gain: tuple[float, Interval] | None) -> str:
    """Speed-up, and how far the further end of its interval lies from it."""
    if gain is None:
        return NONE
    middle, interval = gain
    reach = max(interval.high - middle, middle - interval.low) / middle
    return f"{number(middle)} ±{100 * reach:.1f}%"


def label(case: CaseRecord) -> str:
    """Name of the case, with an unusual dtype or layout that the name does not tell."""
    odd = [text for text, usual in ((case.dtype, "float32"), (case.layout, "contiguous")) if text != usual]
    return ", ".join([case.name, *(text for text in odd if text not in case.name)])


def section(out: Console, title: str) -> None:
    """A blank line and a heading."""
    out.print()
    out.print(title, style="bold", soft_wrap=True)


def print_lines(out: Console, lines: Iterable[str]) -> None:
    """Lines of prose, never broken by the table's width when piped."""
    for line in lines:
        out.print(line, soft_wrap=True)
