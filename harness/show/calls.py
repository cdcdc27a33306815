"""Kinds of call as tables: medians, and ratios to eager torch and to torch.mean with their intervals."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.table import Table

from harness.console import console
from harness.records.record import Run
from harness.show.tables import environment_lines
from harness.show.text import NONE, new_table, number, print_lines, section
from harness.timing.calls import BASES, CALLS, FIRST, CallTimes
from harness.timing.intervals import ratio_of_medians, summarise

CALL_HEADS = ("entry", "us", "p20..p80", "rounds", *(f"/ {base}, 95 %" for base in BASES))


def call_lines(times: CallTimes) -> Iterator[tuple[str, ...]]:
    """One line per entry of one kind of call on one problem. A ratio below 1 is faster than what it is to."""
    for entry, samples in times.samples.items():
        s = summarise(samples)
        ratios = (_ratio(times, entry, base) for base in BASES)
        yield entry, number(s.median), f"{number(s.p20)}..{number(s.p80)}", str(s.count), *ratios


def call_table(times: CallTimes) -> Table:
    """The lines as a table."""
    table = new_table(CALL_HEADS)
    for line in call_lines(times):
        table.add_row(*line)
    return table


def _ratio(times: CallTimes, entry: str, base: str) -> str:
    """Median over the base's median, and its interval; without an interval where there is one round."""
    mine, its = times.samples[entry], times.samples.get(base)
    if not its or entry == base:
        return NONE
    middle = number(summarise(mine).median / summarise(its).median)
    if len(mine) < 2 or len(mine) != len(its):
        return middle
    interval = ratio_of_medians(mine, its, paired=True)
    return f"{middle} [{number(interval.low)}, {number(interval.high)}]"


def call_text(run: Run) -> str:
    """The tables as text, kind by kind."""
    text = io.StringIO()
    out = console(text)
    print_lines(out, environment_lines(run))
    if run.environment.gpu is None:
        print_lines(out, ["no GPU: only what torch itself runs is timed; launches and interpreted kernels are not"])
    for kind in dict.fromkeys(times.call for times in run.calls):
        section(out, f"{kind}: {CALLS[kind]}" + (", one sample" if kind in FIRST else ""))
        for times in (times for times in run.calls if times.call == kind):
            print_lines(out, ["", f"{times.shape}, {times.dtype}"])
            out.print(call_table(times))
            print_lines(out, (f"  {name}: {why}" for name, why in times.missing.items()))
    return text.getvalue()
