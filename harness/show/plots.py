"""Records as plots: time against the floor, speed-up with intervals, a roofline. Needs matplotlib."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import write_whole
from harness.records.record import CaseRecord, Result, Run
from harness.show.text import label
from harness.timing.intervals import Summary

FORMATS = (".png", ".svg")
DPI = 150
LOG_FROM = 5  # slowest over floor from which a linear axis would squeeze the fast entries together
EXTRA = "plots need matplotlib: install the extra 'plot', e.g. uv run --extra plot bench.py ..."

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


class PlotError(UsageError):
    """Plots cannot be drawn or have no place to go; the message says why in one line."""


def targets(prefix: str) -> list[tuple[str, Path]]:
    """(plot, file) pairs for --plot: a directory or a prefix, both formats, unless a suffix picks one."""
    path = Path(prefix)
    if path.suffix and path.suffix not in FORMATS:
        raise PlotError(f"--plot {prefix}: expected .png or .svg, a directory, or a name without a suffix")
    suffixes = [path.suffix] if path.suffix else list(FORMATS)
    stem = path.with_suffix("")
    place = (
        (lambda plot: path / plot) if path.is_dir() else (lambda plot: stem.with_name(f"{stem.name}-{plot}"))
    )
    return [(plot, place(plot).with_suffix(suffix)) for plot in DRAWERS for suffix in suffixes]


def require_matplotlib() -> None:
    """PlotError unless matplotlib can be imported."""
    try:
        # Its extension modules too: after much else is loaded they do not always load.
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PlotError(EXTRA) from None


def save(run: Run, prefix: str) -> list[Path]:
    """Draw every plot of the run; returns the files written. PlotError without matplotlib or timed entries."""
    require_matplotlib()
    from matplotlib import rc_context

    if not any(result.samples for case in run.cases for result in case.results):
        raise PlotError("--plot: the run holds no timed entry to draw")
    written = []
    # Text stays text in SVG, and nothing in it changes from run to run but the data.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "convgap", "font.size": 9}):
        for plot, path in targets(prefix):
            figure = DRAWERS[plot](run)
            buffer = io.BytesIO()
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(buffer, format=path.suffix[1:], dpi=DPI, metadata=metadata)
            write_whole(path, buffer.getvalue())
            written.append(path)
    return written


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Any, Any]:
    """Figure with its axes as an array; no pyplot, so no state outlives the call and no display is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _log_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis (axes.xaxis or axes.yaxis) at 1, 2, 5 in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _mode(run: Run) -> str:
    return next(mode for case in run.cases for result in case.results for mode in result.samples)


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
    mode = _mode(run)
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
            colour = COLOURS.get(result.entry, OTHER)
            axis.plot([floor or timed[0][1].median, s.median], [place, place], color=colour, lw=1, alpha=0.4)
            axis.plot([s.p20, s.p80], [place, place], color=colour, lw=3)
            axis.plot(s.median, place, "o", ms=5, color=colour)
            axis.annotate(
                f"{s.median:.4g}", (s.p80, place), (7, 0), textcoords="offset points", va="center", fontsize=8
            )
        if floor:
            axis.axvline(floor, color="black", lw=1, ls="--")
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


def speed_up_plot(run: Run) -> Any:
    """Speed-up over the reference with its 95 % interval, one line per case and entry."""
    mode = _mode(run)
    cases = [case for case in _grid(run, mode) if case.reference]
    lines = sum(len(_timed(case, mode)) + 1 for case in cases)
    figure, axes = _figure(1, 1, 8.0, max(2.0, 0.19 * lines + 1.0))
    axis = axes[0][0]
    figure.suptitle(f"Speed-up over eager, {mode} L2, 95 % interval\n{_caption(run)}", fontsize=10)
    place, ticks, labels, right = 0, [], [], 1.0
    for case in cases:
        axis.annotate(
            f"{label(case)}   over {case.reference}",
            (0, place),
            (4, 0),
            ("axes fraction", "data"),
            "offset points",
            va="center",
            fontsize=8,
            weight="bold",
        )
        axis.axhline(place - 0.5, color="grey", lw=0.4)
        place += 1
        for result, _ in _timed(case, mode):
            gain = case.speed_up(result, mode)
            if gain is None:
                continue
            middle, interval = gain
            spread = [[max(0.0, middle - interval.low)], [max(0.0, interval.high - middle)]]
            colour = COLOURS.get(result.entry, OTHER)
            axis.errorbar(middle, place, xerr=spread, fmt="o", ms=4, lw=1.5, capsize=2, color=colour)
            axis.annotate(
                f"{middle:.3g}x",
                (interval.high, place),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
            right = max(right, interval.high)
            ticks.append(place)
            labels.append(result.entry)
            place += 1
    axis.set_yticks(ticks, labels, fontsize=7)
    axis.set_ylim(place - 0.3, -0.8)
    axis.set_xscale("log")
    _log_ticks(axis.xaxis)
    axis.set_xlim(right=1.5 * right)
    axis.axvline(1, color="black", lw=1, ls="--")
    axis.set_xlabel("times faster (log scale)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def roofline_plot(run: Run) -> Any:
    """Rate of compulsory bytes against their number, under the datasheet and the measured ceiling."""
    mode = _mode(run)
    figure, axes = _figure(1, 1, 7.6, 5.0)
    axis = axes[0][0]
    figure.suptitle(f"Compulsory bytes per second, {mode} L2\n{_caption(run)}", fontsize=10)
    cases = _grid(run, mode)
    drawn: set[str] = set()
    for case in cases:
        for result, s in _timed(case, mode):
            label = result.entry if result.entry not in drawn else None
            drawn.add(result.entry)
            colour = COLOURS.get(result.entry, OTHER)
            size = case.compulsory_bytes / 1e6
            axis.scatter(
                size,
                case.compulsory_bytes / s.median / 1e3,
                s=22,
                color=colour,
                label=label,
                alpha=0.85,
                lw=0,
            )
    ceiling = sorted(
        (c.compulsory_bytes / 1e6, c.compulsory_bytes / f / 1e3) for c in cases if (f := c.floor_us.get(mode))
    )
    if ceiling:
        axis.plot(*zip(*ceiling, strict=True), color="black", lw=1, ls="--", label="measured read ceiling")
    if run.card and run.card.bandwidth:
        axis.axhline(
            run.card.bandwidth, color="black", lw=1, label=f"datasheet, {run.card.bandwidth:.0f} GB/s"
        )
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


DRAWERS = {"time": time_plot, "speed-up": speed_up_plot, "roofline": roofline_plot}
