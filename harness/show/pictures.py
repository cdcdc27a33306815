"""What the pictures of a record look like: overview, speed-up, roofline, and a panel for every case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.entries.entry import is_product
from harness.records.history import Line
from harness.records.record import CaseRecord, Result, Run
from harness.show.tables import commit_of, first_mode
from harness.show.text import label, number
from harness.timing.intervals import Summary

LOG_FROM = 5  # slowest over floor from which a linear axis would squeeze the fast entries together
HANDFUL = 6  # cases of the speed-up picture
NAMED_BELOW = 0.8  # share of the ceiling under which the roofline names a point

# One colour per entry in every plot, from Paul Tol's "muted" scheme: told apart by colour-blind readers.
COLOURS = {
    "triton": "#332288",
    "cupy": "#117733",
    "torch": "#88CCEE",
    "triton-tail": "#8877CC",
    "cupy-tail": "#66AA77",
    "eager-ieee": "#CC6677",
    "eager-tf32": "#AA4499",
    "inductor": "#DDCC77",
    "inductor-max": "#999933",
    "baseline": "#882255",
    "cub": "#44AA99",
}
OTHER = "#888888"

ON_DARK = {
    "triton": "#A79BFF",
    "cupy": "#5FD08A",
    "triton-tail": "#C9BFFF",
    "eager-tf32": "#E07FD0",
    "baseline": "#D988A8",
}
"""Brighter shades of those that a dark page would swallow."""

DRAWN = {
    "Triton": ("triton",),
    "CUDA": ("cupy",),
    "plain torch": ("torch",),
    "torch.compile, the best": ("inductor", "inductor-max"),
    "eager torch": ("eager-tf32", "eager-ieee"),
    "baseline schedule": ("baseline",),
}
"""What the overview draws: a name, and the entries of which the fastest counts."""


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Any, Any]:
    """Figure with its axes as an array; no pyplot, so no state outlives the call and no display is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _colour(entry: str) -> str:
    from matplotlib import rcParams

    bright = ON_DARK if rcParams["text.color"] == "white" else {}
    return bright.get(entry) or COLOURS.get(entry, OTHER)


def _log_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis (axes.xaxis or axes.yaxis) at 1, 2, 5 in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _timed(case: CaseRecord, mode: str) -> list[tuple[Result, Summary]]:
    """Results with samples, fastest first."""
    found = [(result, summary) for result in case.results if (summary := result.summary(mode))]
    return sorted(found, key=lambda pair: pair[1].median)


def _caption(run: Run) -> str:
    versions = run.environment.versions
    parts = [run.environment.gpu or "no GPU"]
    parts += [f"{name} {versions[name]}" for name in ("torch", "triton", "cupy") if name in versions]
    return ", ".join([*parts, run.environment.date[:10]])


def _grid(run: Run, mode: str) -> list[CaseRecord]:
    return [case for case in run.cases if _timed(case, mode)]


def time_plot(run: Run) -> Any:
    """Median and p20..p80 of every entry, one panel per case, the floor as a line."""
    mode = first_mode(run)
    cases = _grid(run, mode)
    columns = min(2, len(cases))
    rows = -(-len(cases) // columns)
    most = max(len(case.results) for case in cases)
    figure, axes = _figure(columns, rows, 6.2 * columns, (0.9 + 0.26 * most) * rows + 0.4)
    figure.suptitle(f"Time per call, {mode} L2\n{_caption(run)}", fontsize=10)
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    for axis, case in zip(axes.flat, cases, strict=False):
        timed = _timed(case, mode)
        floor = case.floor_us.get(mode)
        for place, (result, s) in enumerate(timed):
            colour = _colour(result.entry)
            axis.plot([floor or timed[0][1].median, s.median], [place, place], color=colour, lw=1, alpha=0.4)
            axis.plot([s.p20, s.p80], [place, place], color=colour, lw=3)
            axis.plot(s.median, place, "o", ms=5, color=colour)
            axis.annotate(
                f"{s.median:.4g}", (s.p80, place), (7, 0), textcoords="offset points", va="center", fontsize=8
            )
        if floor:
            axis.axvline(floor, color="C7", lw=1, ls="--")
            axis.set_title(f"{label(case)}   floor {floor:.4g} us", fontsize=9, loc="left")
        else:
            axis.set_title(label(case), fontsize=9, loc="left")
        axis.set_yticks(range(len(timed)), [result.entry for result, _ in timed])
        axis.set_ylim(len(timed) - 0.5, -0.5)
        low, high = floor or timed[0][1].p20, max(s.p80 for _, s in timed)
        if high > LOG_FROM * low:
            axis.set_xscale("log")
            _log_ticks(axis.xaxis)
            axis.set_xlim(low / 1.1, 1.6 * high)
            axis.set_xlabel("us per call (log scale)")
        else:
            axis.set_xlim(low - 0.05 * high, 1.1 * high)
            axis.set_xlabel("us per call")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def overview_plot(run: Run) -> Any:
    """Every case on a line of its own, in two columns: medians over the floor, on a logarithmic axis."""
    mode = first_mode(run)
    cases = _grid(run, mode)
    half = -(-len(cases) // 2)
    figure, axes = _figure(2 if len(cases) > 1 else 1, 1, 10.6, min(8.0, 1.6 + 0.19 * half))
    figure.suptitle(
        f"Time over the floor (what reading the same bytes takes), {mode} L2: left is fast\n{_caption(run)}"
    )
    for axis, part in zip(axes[0], (cases[:half], cases[half:]), strict=False):
        for place, case in enumerate(part):
            times = {result.entry: s.median for result, s in _timed(case, mode)}
            floor = case.floor_us.get(mode) or min(times.values())
            for name, entries in reversed(DRAWN.items()):
                found = [times[entry] / floor for entry in entries if entry in times]
                if found:
                    axis.plot(
                        min(found),
                        place,
                        "o",
                        ms=4.5,
                        color=_colour(entries[0]),
                        label=name if not place else None,
                    )
        axis.axvline(1, color="C7", lw=1, ls="--")
        axis.set_xscale("log")
        _log_ticks(axis.xaxis)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_yticks(range(len(part)), [label(case) for case in part], fontsize=7)
        axis.set_ylim(len(part) - 0.5, -0.5)
        axis.grid(axis="y", lw=0.3, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    names = {text: dot for axis in axes[0] for dot, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(names.values())[::-1],
        list(names)[::-1],
        loc="outside lower center",
        ncols=len(DRAWN),
        fontsize=8,
        frameon=False,
    )
    return figure


def _handful(run: Run, mode: str) -> list[CaseRecord]:
    """The first case, and cases from the least gained to the most by the fastest of the product."""
    gains = []
    for case in _grid(run, mode):
        own = next((result for result, _ in _timed(case, mode) if is_product(result.entry)), None)
        gain = case.speed_up(own, mode) if own else None
        if gain:
            gains.append((gain[0], case.name, case))
    first, *rest = gains or [None]
    rest.sort(key=lambda gain: gain[:2])
    step = max(1.0, (len(rest) - 1) / (HANDFUL - 2))
    chosen = [rest[round(i * step)] for i in range(min(HANDFUL - 1, len(rest)))]
    return [gain[2] for gain in (first, *chosen) if gain]


def speed_up_plot(run: Run) -> Any:
    """Speed-up over the reference with its 95 % interval, for a handful of cases."""
    mode = first_mode(run)
    cases = _handful(run, mode)
    columns = min(2, max(1, len(cases)))
    rows = max(1, -(-len(cases) // columns))
    figure, axes = _figure(columns, rows, 5.3 * columns, 2.4 * rows + 0.4)
    figure.suptitle(f"Times faster than eager torch, {mode} L2, with 95 % intervals\n{_caption(run)}")
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    for axis, case in zip(axes.flat, cases, strict=False):
        shown = [(result, gain) for result, _ in _timed(case, mode) if (gain := case.speed_up(result, mode))]
        for place, (result, (middle, interval)) in enumerate(shown):
            spread = [[max(0.0, middle - interval.low)], [max(0.0, interval.high - middle)]]
            colour = _colour(result.entry)
            axis.errorbar(middle, place, xerr=spread, fmt="o", ms=4, lw=1.5, capsize=2, color=colour)
            axis.annotate(
                f"{number(middle)}x",
                (interval.high, place),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axis.set_yticks(range(len(shown)), [result.entry for result, _ in shown], fontsize=7)
        axis.set_ylim(len(shown) - 0.5, -0.5)
        axis.set_xscale("log")
        _log_ticks(axis.xaxis)
        axis.set_xlim(right=1.8 * max(gain[1].high for _, gain in shown))
        axis.axvline(1, color="C7", lw=1, ls="--")
        axis.set_title(f"{label(case)}   over {case.reference}", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def roofline_plot(run: Run) -> Any:
    """Rate of compulsory bytes against their number; a name where the product is far below the ceiling."""
    mode = first_mode(run)
    cases = _grid(run, mode)
    figure, axes = _figure(1, 1, 8.0, 5.0)
    axis = axes[0][0]
    figure.suptitle(f"Compulsory bytes per second, {mode} L2\n{_caption(run)}")
    labelled: set[str] = set()
    for case in cases:
        timed = _timed(case, mode)
        size = case.compulsory_bytes / 1e6
        for name, entries in DRAWN.items():
            found = [s.median for result, s in timed if result.entry in entries]
            if found:
                new = None if name in labelled else name
                labelled.add(name)
                axis.scatter(
                    size,
                    size * 1e3 / min(found),
                    s=20,
                    color=_colour(entries[0]),
                    label=new,
                    alpha=0.85,
                    lw=0,
                )
        own = min((s.median for result, s in timed if is_product(result.entry)), default=None)
        floor = case.floor_us.get(mode)
        if own and floor and floor < NAMED_BELOW * own:
            axis.annotate(case.name, (size, size * 1e3 / own), (5, -2), textcoords="offset points", fontsize=7)
    ceiling = sorted(
        (c.compulsory_bytes / 1e6, c.compulsory_bytes / f / 1e3) for c in cases if (f := c.floor_us.get(mode))
    )
    if ceiling:
        axis.plot(*zip(*ceiling, strict=True), color="C7", lw=1, ls="--", label="measured read ceiling")
    if run.card and run.card.bandwidth:
        axis.axhline(run.card.bandwidth, color="C7", lw=1, label=f"datasheet, {run.card.bandwidth:.0f} GB/s")
    axis.set_xscale("log")
    axis.set_yscale("log")
    _log_ticks(axis.xaxis)
    _log_ticks(axis.yaxis)
    axis.set_xlabel("compulsory bytes, MB")
    axis.set_ylabel("GB/s")
    axis.grid(which="both", lw=0.3, alpha=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return figure


def history_plot(runs: Sequence[Run], lines: Sequence[Line]) -> Any:
    """Each case's median of the fastest of the product, over that of the first record that timed it."""
    figure, axes = _figure(1, 1, 10.0, 5.0)
    axis = axes[0][0]
    mode = first_mode(runs[-1])
    figure.suptitle(f"Time of the fastest of the product over the oldest record's, {mode} L2\n{_caption(runs[-1])}")
    for case in dict.fromkeys(line.case for line in lines):
        own = [line.medians for line in lines if (line.case, line.mode) == (case, mode) and is_product(line.entry)]
        best = [min((us for us in each if us is not None), default=None) for each in zip(*own, strict=True)]
        timed = [(i, us) for i, us in enumerate(best) if us is not None]
        if len(timed) > 1:
            places, times = zip(*timed, strict=True)
            axis.plot(places, [us / times[0] for us in times], "o-", lw=1, ms=3, label=case)
    axis.axhline(1, color="C7", lw=1, ls="--")
    axis.set_xticks(range(len(runs)), [commit_of(run) for run in runs], fontsize=8)
    axis.set_ylabel("time, oldest = 1")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=6, frameon=False)
    return figure


COMPACT = {"overview": overview_plot, "speed-up": speed_up_plot, "roofline": roofline_plot}
"""What --plot draws, by name."""

ALL = COMPACT | {"time": time_plot}
"""What --plot-all draws: a panel for every case, too."""
