"""Kinds of call as tables: medians, and ratios to eager torch and to torch.mean with their intervals."""

from __future__ import annotations

from rich.table import Table

from harness.show.text import NONE, new_table, number
from harness.timing.calls import BASES, CallTimes
from harness.timing.intervals import ratio_of_medians, summarise


def call_table(times: CallTimes) -> Table:
    """One line per entry of one kind of call on one problem. A ratio below 1 is faster than what it is to."""
    table = new_table(["entry", "us", "p20..p80", "rounds", *(f"/ {base}, 95 %" for base in BASES)])
    for entry, samples in times.samples.items():
        s = summarise(samples)
        ratios = [_ratio(times, entry, base) for base in BASES]
        table.add_row(entry, number(s.median), f"{number(s.p20)}..{number(s.p80)}", str(s.count), *ratios)
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
