"""A record as a Markdown table: one line a case, the fastest of every kind of entry in microseconds."""

from __future__ import annotations

from harness.records.record import Run
from harness.show.pictures import DRAWN
from harness.show.tables import first_mode
from harness.show.text import NONE, label, number


def markdown(run: Run) -> str:
    """Medians in us of the first mode that was measured, the floor first; the fastest is bold."""
    mode = first_mode(run)
    lines = [f"| case | floor | {' | '.join(DRAWN)} |", "|---|" + "---|" * (len(DRAWN) + 1)]
    for case in run.cases:
        times = {result.entry: s.median for result in case.results if (s := result.summary(mode))}
        found = [min((times[entry] for entry in entries if entry in times), default=None) for entries in DRAWN.values()]
        best = min((us for us in found if us is not None), default=None)
        cells = [NONE if us is None else f"**{number(us)}**" if us == best else number(us) for us in found]
        lines.append(f"| {label(case)} | {number(case.floor_us.get(mode))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
