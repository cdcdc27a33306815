"""Records as tables. Measures nothing, decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.entries.entry import is_product
from harness.records.differences import Change
from harness.records.history import Line
from harness.records.record import CaseRecord, Result, Run
from harness.show.text import (
    NONE,
    error_text,
    gain_text,
    label,
    new_table,
    number,
    print_lines,
    section,
    size_text,
)
from harness.timing.intervals import summarise

MODES = {"cold": "clean cold", "dirty": "dirty cold", "unflushed": "unflushed", "warm": "warm"}
"""What the L2 is before a sample, by mode."""

VERDICTS = {"slower": "red", "broken": "red", "faster": "green", "repaired": "green", "ambiguous": "yellow"}
"""Colours of the verdicts that a reader looks for."""


def case_heading(case: CaseRecord) -> list[str]:
    """What the case is, and the floors its entries are held against."""
    floors = [f"{number(us)} us measured {mode}" for mode, us in case.floor_us.items() if us is not None]
    if case.datasheet_us is not None:
        floors.append(f"{number(case.datasheet_us)} us by datasheet")
    if case.rtx4090_us is not None:
        floors.append(f"{number(case.rtx4090_us)} us on an RTX 4090")
    lines = [
        f"{case.name}  ({case.shape}, {case.dtype}, {case.layout})",
        f"  {size_text(case.compulsory_bytes)} MB compulsory"
        + (f", working set {number(case.working_set_over_l2, 2)} x L2" if case.working_set_over_l2 is not None else ""),
    ]
    lines += [f"  floor {', '.join(floors)}"] if floors else []
    return lines + ([f"  speed-up over {case.reference}"] if case.reference else [])


def case_table(case: CaseRecord) -> Table:
    """Entries of one timed case: the first mode in full, the median and the share of the floor for the others.

    Past two modes the column p20..p80 is left out, to stay within 100 columns.
    """
    modes = list(dict.fromkeys(mode for result in case.results for mode in result.samples))
    spread = len(modes) < 3
    headers = ["entry"]
    for mode in modes:
        headers += [f"{mode} us", "floor"]
        if mode == modes[0]:
            headers += ["p20..p80"] * spread + ["GB/s", "speed-up"]
    table = new_table([*headers, "host", "MB+", "error"])
    for result in case.results:
        cells = [result.entry]
        for mode in modes:
            summary = result.summary(mode)
            cells += [number(summary.median), share(case, mode, summary.median)] if summary else [NONE, NONE]
            if mode == modes[0]:
                cells += _first_cells(case, result, mode)[not spread :]
        host = number(summarise(result.host_us).median) if result.host_us else NONE
        style = "red" if result.status == "wrong" else "dim" if result.status == "unavailable" else None
        table.add_row(*cells, host, size_text(result.extra_bytes), error_text(result.error), style=style)
    return table


def _first_cells(case: CaseRecord, result: Result, mode: str) -> list[str]:
    """p20..p80, GB/s and speed-up."""
    summary = result.summary(mode)
    if summary is None:
        return [NONE] * 3
    rate = case.compulsory_bytes / summary.median / 1e3
    gain = "1" if result.entry == case.reference else gain_text(case.speed_up(result, mode))
    return [f"{number(summary.p20)}..{number(summary.p80)}", number(rate), gain]


def first_mode(run: Run) -> str:
    """The mode that tables and pictures show: the first that was measured, "cold" where none was."""
    return next((mode for case in run.cases for result in case.results for mode in result.samples), "cold")


def share(case: CaseRecord, mode: str, us: float) -> str:
    """Floor over time in percent."""
    floor = case.floor_us.get(mode)
    if floor is None:
        return NONE
    percent = 100 * floor / us
    return f"{percent:.0f}%" if percent >= 1 else "<1%"


def case_notes(case: CaseRecord) -> list[str]:
    """Why an answer is missing or wrong, what is odd about one, and what disturbed the case."""
    lines = [f"  {result.entry}: {result.status}: {result.reason}" for result in case.results if result.reason]
    lines += [f"  {result.entry}: {note}" for result in case.results for note in result.notes]
    return lines + [f"  ! {flag}" for flag in case.flags]


def first_call_table(case: CaseRecord) -> Table | None:
    """Seconds of the first call in a fresh process, by state of the disk cache; None if not measured."""
    rows = [result for result in case.results if result.first_call_s]
    if not rows:
        return None
    states = list(dict.fromkeys(state for result in rows for state in result.first_call_s))
    table = new_table(["first call", *(f"{state}, s" for state in states)])
    for result in rows:
        table.add_row(result.entry, *(number(result.first_call_s.get(state)) for state in states))
    return table


def provenance(run: Run) -> list[str]:
    """What ran under each name, and why it did not where it did not; once per distinct answer."""
    what: dict[str, dict[str, None]] = {}
    for case in run.cases:
        for result in case.results:
            if result.what:
                what.setdefault(result.entry, {})[result.what] = None
    lines = [f"  {name}: {'; '.join(answers)}" for name, answers in what.items()]
    why_not: dict[tuple[str, str], int] = {}
    for case in run.cases:
        for result in case.results:
            if result.status == "unavailable":
                why_not[result.entry, result.reason] = why_not.get((result.entry, result.reason), 0) + 1
    cases = len(run.cases)
    lines += [f"  {name}: not on {n} of {cases} cases: {why}" for (name, why), n in why_not.items()]
    return lines


def environment_lines(run: Run) -> list[str]:
    """The machine, the versions, the ceilings."""
    env = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    lines = [
        f"{env.gpu or 'no GPU'}" + (f" (sm_{env.capability}, driver {env.driver}, CUDA {env.cuda})" if env.gpu else "")
    ]
    lines.append(f"Python {env.python}, {versions}; {env.date}" + (f"; commit {env.commit}" if env.commit else ""))
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
        lines.append(f"measured, {MODES[run.ceilings[0].mode]}, 512 MiB moved: {', '.join(rates)}")
    if "plan" in run.settings:
        lines.append(f"launch constants by the plan {run.settings['plan']}")
    if "missing" in run.settings:
        lines.append(f"missing: {run.settings['missing']}")
    return lines


def print_timed(run: Run, out: Console) -> None:
    """The whole report of a timed run."""
    print_lines(out, environment_lines(run))
    for case in run.cases:
        print_case(case, out)
    print_summary(run, out)


def print_summary(run: Run, out: Console) -> None:
    """What comes after the cases of a timed run."""
    section(out, "Summary: the fastest of the product on each case, and who is faster still")
    out.print(summary_table(run))
    print_provenance(run, out)


def print_provenance(run: Run, out: Console) -> None:
    """What ran under each name."""
    section(out, "What ran")
    print_lines(out, provenance(run))


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
    """One line per case: the fastest entry of the product against its floor and the reference, and any faster one."""
    mode = first_mode(run)
    table = new_table(["case", "fastest", f"{mode} us", "floor us", "floor", "speed-up", "over", "faster still"], 2)
    for case in run.cases:
        timed = [(s.median, result) for result in case.results if (s := result.summary(mode))]
        timed.sort(key=lambda pair: pair[0])
        own = next((pair for pair in timed if is_product(pair[1].entry)), None)
        first = timed[0][1].entry if timed and timed[0] != own else NONE
        if own is None:
            table.add_row(label(case), *[NONE] * 6, first)
            continue
        us, result = own
        gain = case.speed_up(result, mode)
        floor = number(case.floor_us.get(mode))
        cells = [number(us), floor, share(case, mode, us), gain_text(gain), case.reference or NONE, first]
        table.add_row(label(case), result.entry, *cells)
    return table


def commit_of(run: Run) -> str:
    """Name of a record's column: the commit it is of, or its day."""
    return run.environment.commit[:9] or run.environment.date[:10]


def history_table(runs: Sequence[Run], lines: Sequence[Line]) -> Table:
    """Medians in us, a column for each record, and what the newest changed."""
    table = new_table(["case", "entry", "mode", *map(commit_of, runs), "last step"], left=3)
    for line in lines:
        verdict = line.last.verdict if line.last else NONE
        cells = [number(us) for us in line.medians]
        table.add_row(line.case, line.entry, line.mode, *cells, Text(verdict, style=VERDICTS.get(verdict, "")))
    return table


def diff_table(changes: Sequence[Change]) -> Table:
    """One line per result of both records."""
    table = new_table(["case", "entry", "mode", "verdict", "old us", "new us", "new/old, 95 %"], left=4)
    for change in changes:
        ratio = NONE
        if change.ratio.low == change.ratio.low:
            ratio = f"[{change.ratio.low:.3f}, {change.ratio.high:.3f}]"
        old, new = (NONE if us != us else number(us, 4) for us in (change.old_us, change.new_us))
        verdict = Text(change.verdict, style=VERDICTS.get(change.verdict, ""))
        table.add_row(change.case, change.entry, change.mode, verdict, old, new, ratio)
    return table
