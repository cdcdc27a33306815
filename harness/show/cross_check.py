"""The numerical part of a record: the error of each entry on each case, and every pair of entries."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console import WIDTH
from harness.records.record import CaseRecord, Result, Run
from harness.show.text import NONE, error_text, label, new_table, print_lines, section


def print_check(run: Run, out: Console) -> None:
    """The numerical part: errors of each entry on each case, then every pair of entries."""
    section(out, "Worst error against float64, in units of the budget (up to 1 passes)")
    for table in check_tables(run):
        out.print(table)
    print_lines(out, [line for case in run.cases for line in failures(case)])
    section(out, "Worst difference between two entries over all cases, in units of the sum of their budgets")
    for table in pairwise_tables(run):
        out.print(table)


def failures(case: CaseRecord) -> list[str]:
    """One line per result whose answer was wrong."""
    return [
        f"  {case.name}: {result.entry}: wrong: {result.reason}" for result in case.results if result.status == "wrong"
    ]


def check_tables(run: Run) -> list[Table]:
    """Worst error of each entry on each case, in units of its budget; "!" fails. One table or more."""
    interpreted = {
        result.entry for case in run.cases for result in case.results if result.what.startswith("interpreter")
    }
    headers = {name: f"{name} (interpreter)" if name in interpreted else name for name in _entries(run)}
    names = [label(case) for case in run.cases]
    tables = []
    for group in _groups(headers, max(map(len, names), default=0)):
        table = new_table(["case", *(headers[name] for name in group)])
        for name, case in zip(names, run.cases, strict=True):
            table.add_row(name, *(_error_cell(case.result(entry)) for entry in group))
        tables.append(table)
    return tables


def _error_cell(result: Result | None) -> Text:
    text = NONE if result is None or result.error is None else error_text(result.error)
    if result is None or result.status != "wrong":
        return Text(text)
    return Text(f"{'none' if result.error is None else text} !", style="red")


def pairwise_tables(run: Run) -> list[Table]:
    """Largest difference between each two entries over all cases, in units of the sum of their budgets."""
    entries = [name for name in _entries(run) if any(name in case.pairwise for case in run.cases)]
    tables = []
    for group in _groups({name: name for name in entries}, max(map(len, entries), default=0)):
        table = new_table(["", *group])
        for a in entries:
            table.add_row(a, *(pair_text(run, a, b) for b in group))
        tables.append(table)
    return tables


def pair_text(run: Run, a: str, b: str) -> str:
    """Largest difference between two entries over all cases, in units of the sum of their budgets."""
    found = [case.pairwise[a][b] for case in run.cases if b in case.pairwise.get(a, {})]
    return error_text(max(found, key=_nan_last)) if found and a != b else NONE


def _groups(headers: Mapping[str, str], first: int) -> list[list[str]]:
    """Names in groups whose columns fit beside a first column of that width; no column is under 9 wide."""
    groups: list[list[str]] = []
    room = 0
    for name, header in headers.items():
        width = max(9, len(header)) + 1
        if width > room:
            groups.append([])
            room = WIDTH - first - 1
        groups[-1].append(name)
        room -= width
    return groups


def _nan_last(value: float) -> tuple[bool, float]:
    return value != value, value


def _entries(run: Run) -> list[str]:
    return list(dict.fromkeys(result.entry for case in run.cases for result in case.results))
