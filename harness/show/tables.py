"""Records as tables. Measures nothing, decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import IO, TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.records.record import CaseRecord, Row, Run
from harness.timing.intervals import Interval, summarise

if TYPE_CHECKING:
    from harness.commands.diff import Change

WIDTH = 100  # columns when the output is not a terminal
NONE = "-"


def console(file: IO[str] | None = None) -> Console:
    """Console on `file` (standard output): colour on a terminal, bare text of 100 columns anywhere else."""
    out = file or sys.stdout
    terminal = out.isatty()
    width = None if terminal else WIDTH
    return Console(file=out, width=width, force_terminal=terminal, highlight=False, markup=False)


def _table(headers: Iterable[str], left: int = 1) -> Table:
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


def case_heading(case: CaseRecord) -> list[str]:
    """What the case is, and the floors its rows are held against."""
    floors = [f"{number(us)} us measured {mode}" for mode, us in case.floor_us.items() if us is not None]
    if case.datasheet_us is not None:
        floors.append(f"{number(case.datasheet_us)} us by datasheet")
    if case.rtx4090_us is not None:
        floors.append(f"{number(case.rtx4090_us)} us on an RTX 4090")
    lines = [
        f"{case.name}  ({case.shape}, {case.dtype}, {case.layout})",
        f"  {size_text(case.compulsory_bytes)} MB compulsory"
        + (
            f", working set {number(case.working_set_over_l2, 2)} x L2"
            if case.working_set_over_l2 is not None
            else ""
        ),
    ]
    lines += [f"  floor {', '.join(floors)}"] if floors else []
    return lines + ([f"  speed-up over {case.reference}"] if case.reference else [])


def case_table(case: CaseRecord) -> Table:
    """Rows of one timed case: the first mode in full, the median and the share of the floor for the others.

    Past two modes the column p20..p80 is left out, to stay within 100 columns.
    """
    modes = list(dict.fromkeys(mode for row in case.rows for mode in row.samples))
    spread = len(modes) < 3
    headers = ["backend"]
    for mode in modes:
        headers += [f"{mode} us", "floor"]
        if mode == modes[0]:
            headers += ["p20..p80"] * spread + ["GB/s", "speed-up"]
    table = _table([*headers, "host", "MB+", "error"])
    for row in case.rows:
        cells = [row.backend]
        for mode in modes:
            summary = row.summary(mode)
            cells += [number(summary.median), _share(case, mode, summary.median)] if summary else [NONE, NONE]
            if mode == modes[0]:
                cells += _first_cells(case, row, mode)[not spread :]
        host = number(summarise(row.host_us).median) if row.host_us else NONE
        style = "red" if row.status == "wrong" else "dim" if row.status == "unavailable" else None
        table.add_row(*cells, host, size_text(row.extra_bytes), error_text(row.error), style=style)
    return table


def _first_cells(case: CaseRecord, row: Row, mode: str) -> list[str]:
    """p20..p80, GB/s and speed-up."""
    summary = row.summary(mode)
    if summary is None:
        return [NONE] * 3
    rate = case.compulsory_bytes / summary.median / 1e3
    gain = "1" if row.backend == case.reference else gain_text(case.speed_up(row, mode))
    return [f"{number(summary.p20)}..{number(summary.p80)}", number(rate), gain]


def _share(case: CaseRecord, mode: str, us: float) -> str:
    floor = case.floor_us.get(mode)
    if floor is None:
        return NONE
    share = 100 * floor / us
    return f"{share:.0f}%" if share >= 1 else "<1%"


def case_notes(case: CaseRecord) -> list[str]:
    """Why a row is missing or wrong, what is odd about one, and what disturbed the case."""
    lines = [f"  {row.backend}: {row.status}: {row.reason}" for row in case.rows if row.reason]
    lines += [f"  {row.backend}: {note}" for row in case.rows for note in row.notes]
    return lines + [f"  ! {flag}" for flag in case.flags]


def failures(case: CaseRecord) -> list[str]:
    """One line per row whose answer was wrong."""
    return [
        f"  {case.name}: {row.backend}: wrong: {row.reason}" for row in case.rows if row.status == "wrong"
    ]


def first_call_table(case: CaseRecord) -> Table | None:
    """Seconds of the first call in a fresh process, by state of the disk cache; None if not measured."""
    rows = [row for row in case.rows if row.first_call_s]
    if not rows:
        return None
    states = list(dict.fromkeys(state for row in rows for state in row.first_call_s))
    table = _table(["first call", *(f"{state}, s" for state in states)])
    for row in rows:
        table.add_row(row.backend, *(number(row.first_call_s.get(state)) for state in states))
    return table


def label(case: CaseRecord) -> str:
    """Name of the case, with an unusual dtype or layout that the name does not tell."""
    odd = [text for text, usual in ((case.dtype, "float32"), (case.layout, "contiguous")) if text != usual]
    return ", ".join([case.name, *(text for text in odd if text not in case.name)])


def check_tables(run: Run) -> list[Table]:
    """Worst error of each backend on each case, in units of its budget; "!" fails. One table or more."""
    interpreted = {
        row.backend for case in run.cases for row in case.rows if row.what.startswith("interpreter")
    }
    headers = {name: f"{name} (interpreter)" if name in interpreted else name for name in _backends(run)}
    names = [label(case) for case in run.cases]
    tables = []
    for group in _groups(headers, max(map(len, names), default=0)):
        table = _table(["case", *(headers[name] for name in group)])
        for name, case in zip(names, run.cases, strict=True):
            table.add_row(name, *(_error_cell(case.row(backend)) for backend in group))
        tables.append(table)
    return tables


def _error_cell(row: Row | None) -> Text:
    text = NONE if row is None or row.error is None else error_text(row.error)
    if row is None or row.status != "wrong":
        return Text(text)
    return Text(f"{'none' if row.error is None else text} !", style="red")


def pairwise_tables(run: Run) -> list[Table]:
    """Largest difference between each two backends over all cases, in units of the sum of their budgets."""
    backends = [name for name in _backends(run) if any(name in case.pairwise for case in run.cases)]
    tables = []
    for group in _groups({name: name for name in backends}, max(map(len, backends), default=0)):
        table = _table(["", *group])
        for a in backends:
            table.add_row(a, *(_pair_cell(run, a, b) for b in group))
        tables.append(table)
    return tables


def _pair_cell(run: Run, a: str, b: str) -> str:
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


def _backends(run: Run) -> list[str]:
    return list(dict.fromkeys(row.backend for case in run.cases for row in case.rows))


def provenance(run: Run) -> list[str]:
    """What ran under each name, and why it did not where it did not; once per distinct answer."""
    what: dict[str, dict[str, None]] = {}
    for case in run.cases:
        for row in case.rows:
            if row.what:
                what.setdefault(row.backend, {})[row.what] = None
    lines = [f"  {name}: {'; '.join(answers)}" for name, answers in what.items()]
    why_not: dict[tuple[str, str], int] = {}
    for case in run.cases:
        for row in case.rows:
            if row.status == "unavailable":
                why_not[row.backend, row.reason] = why_not.get((row.backend, row.reason), 0) + 1
    cases = len(run.cases)
    lines += [f"  {name}: not on {n} of {cases} cases: {why}" for (name, why), n in why_not.items()]
    return lines


def environment_lines(run: Run) -> list[str]:
    """The machine, the versions, the ceilings."""
    env = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    lines = [
        f"{env.gpu or 'no GPU'}"
        + (f" (sm_{env.capability}, driver {env.driver}, CUDA {env.cuda})" if env.gpu else "")
    ]
    lines.append(
        f"Python {env.python}, {versions}; {env.date}" + (f"; commit {env.commit}" if env.commit else "")
    )
    if run.card and run.card.bandwidth:
        lines.append(
            f"{number(run.card.bandwidth)} GB/s by {run.card.source}, "
            f"L2 {run.card.l2_bytes / 2**20:.0f} MiB, {run.card.sms} SMs"
        )
    if run.ceilings:
        rates = [
            f"{c.kind} {number(c.us)} us" if c.kind == "empty" else f"{c.kind} {number(c.gb_per_s)} GB/s"
            for c in run.ceilings
        ]
        lines.append(f"measured, clean cold, 512 MiB moved: {', '.join(rates)}")
    return lines


def print_timed(run: Run, out: Console) -> None:
    """The whole report of a timed run."""
    print_lines(out, environment_lines(run))
    for case in run.cases:
        print_case(case, out)
    print_summary(run, out)


def print_summary(run: Run, out: Console) -> None:
    """What comes after the cases of a timed run."""
    section(out, "Summary: the fastest row of each case")
    out.print(summary_table(run))
    print_provenance(run, out)


def print_provenance(run: Run, out: Console) -> None:
    """What ran under each name."""
    section(out, "What ran")
    print_lines(out, provenance(run))


def print_check(run: Run, out: Console) -> None:
    """The numerical part: errors of each backend on each case, then every pair of backends."""
    section(out, "Worst error against float64, in units of the budget (up to 1 passes)")
    for table in check_tables(run):
        out.print(table)
    print_lines(out, [line for case in run.cases for line in failures(case)])
    section(out, "Worst difference between two backends over all cases, in units of the sum of their budgets")
    for table in pairwise_tables(run):
        out.print(table)


def section(out: Console, title: str) -> None:
    """A blank line and a heading."""
    out.print()
    out.print(title, style="bold", soft_wrap=True)


def print_lines(out: Console, lines: Iterable[str]) -> None:
    """Lines of prose, never broken by the table's width when piped."""
    for line in lines:
        out.print(line, soft_wrap=True)


def print_case(case: CaseRecord, out: Console) -> None:
    """One timed case: heading, table, notes."""
    heading, *rest = case_heading(case)
    section(out, heading)
    print_lines(out, rest)
    out.print(case_table(case))
    if (first := first_call_table(case)) is not None:
        out.print(first)
    print_lines(out, case_notes(case))


def summary_table(run: Run) -> Table:
    """One line per case: the fastest product backend against its floor and the reference."""
    mode = next((mode for case in run.cases for row in case.rows for mode in row.samples), "cold")
    table = _table(["case", "fastest", f"{mode} us", "floor us", "floor", "speed-up", "over"], 2)
    for case in run.cases:
        timed = [(s.median, row) for row in case.rows if (s := row.summary(mode))]
        if not timed:
            table.add_row(label(case), *[NONE] * 6)
            continue
        us, row = min(timed, key=lambda pair: pair[0])
        gain = case.speed_up(row, mode)
        floor = number(case.floor_us.get(mode))
        cells = [number(us), floor, _share(case, mode, us), gain_text(gain), case.reference or NONE]
        table.add_row(label(case), row.backend, *cells)
    return table


def diff_table(changes: Sequence[Change]) -> Table:
    """One line per row of both records."""
    table = _table(["case", "backend", "mode", "verdict", "old us", "new us", "new/old, 95 %"], left=4)
    style = {"slower": "red", "broken": "red", "faster": "green", "repaired": "green", "ambiguous": "yellow"}
    for change in changes:
        ratio = NONE
        if change.ratio.low == change.ratio.low:
            ratio = f"[{change.ratio.low:.3f}, {change.ratio.high:.3f}]"
        old, new = (NONE if us != us else number(us, 4) for us in (change.old_us, change.new_us))
        verdict = Text(change.verdict, style=style.get(change.verdict, ""))
        table.add_row(change.case, change.backend, change.mode, verdict, old, new, ratio)
    return table
