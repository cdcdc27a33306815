"""Pictures of a record as files. Needs matplotlib; harness/show/pictures.py says what is drawn."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import write_whole
from harness.options import refuse
from harness.records.record import Run
from harness.show.pictures import ALL, COMPACT

FORMATS = (".png", ".svg")
DPI = 150
EXTRA = "plots need matplotlib: install the extra 'plot', e.g. uv run --extra plot bench.py ..."
THEMES = {"light": "default", "dark": "dark_background"}
"""matplotlib's style for each; both leave the background of the page shine through in SVG."""


class PlotError(UsageError):
    """Plots cannot be drawn or have no place to go; the message says why in one line."""


def add_plot_options(parser: argparse._ActionsContainer) -> None:
    """--plot, --plot-all and --theme."""
    parser.add_argument(
        "--plot", metavar="PATH", help="draw pictures: a directory, or a name with or without .png or .svg"
    )
    parser.add_argument("--plot-all", action="store_true", help="with --plot: also a panel for every case")
    parser.add_argument("--theme", choices=THEMES, default="light", help="colours of the pictures (default: light)")


def files_of(args: argparse.Namespace) -> list[Path]:
    """The files that `draw` will write. PlotError without matplotlib, or if --plot names no place; UsageError for
    what goes with --plot, without it."""
    if args.plot is None:
        refuse(args, ("plot_all", "theme"), "expected --plot PATH beside it")
        return []
    require_matplotlib()
    return [path for _, path in targets(args.plot, ALL if args.plot_all else COMPACT)]


def draw(run: Run, args: argparse.Namespace) -> list[Path]:
    """Draw what the command line asks for; returns the files written."""
    if args.plot is None:
        return []
    return save(run, args.plot, ALL if args.plot_all else COMPACT, args.theme)


def targets(prefix: str, names: Iterable[str] = COMPACT) -> list[tuple[str, Path]]:
    """(picture, file) pairs for --plot: a directory or a prefix, both formats, unless a suffix picks one."""
    path = Path(prefix)
    inside = bool(prefix) and path.is_dir()  # Path("") is the folder one works in, which nobody asked for
    if not inside and (not prefix or path.suffix not in ("", *FORMATS)):
        raise PlotError(f"--plot: expected .png or .svg, a directory, or a name without a suffix, got {prefix!r}")
    suffixes = [path.suffix] if path.suffix in FORMATS else list(FORMATS)
    folder, start = (path, "") if inside else (path.parent, f"{path.stem}-")
    return [(plot, folder / f"{start}{plot}{suffix}") for plot in names for suffix in suffixes]


def require_matplotlib() -> None:
    """PlotError unless matplotlib can be imported."""
    try:
        # Its extension modules too: after much else is loaded they do not always load.
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PlotError(EXTRA) from None


def save(run: Run, prefix: str, names: Iterable[str] = COMPACT, theme: str = "light") -> list[Path]:
    """Draw the pictures of the run; returns the files written. PlotError without matplotlib or timed entries."""
    require_matplotlib()
    if not any(result.samples for case in run.cases for result in case.results):
        raise PlotError("--plot: the run holds no timed entry to draw")
    written = []
    for plot, path in targets(prefix, names):
        save_figure(lambda: ALL[plot](run), path, theme)  # noqa: B023  (called at once)
        written.append(path)
    return written


def save_figure(make: Callable[[], Any], path: Path, theme: str = "light") -> None:
    """Write the figure that `make` draws. PlotError for a format that is neither PNG nor SVG."""
    if path.suffix not in FORMATS:
        raise PlotError(f"{path}: expected a name that ends with .png or .svg")
    from matplotlib import style

    # Text stays text in SVG, and nothing in it changes from run to run but the data.
    fixed = {"svg.fonttype": "none", "svg.hashsalt": "convgap", "font.size": 9, "figure.titlesize": 10}
    svg = path.suffix == ".svg"
    with style.context([THEMES[theme], fixed]):  # pyright: ignore[reportArgumentType]  (a list of both is allowed)
        buffer = io.BytesIO()
        metadata = {"Date": None} if svg else {"Software": None}
        make().savefig(buffer, format=path.suffix[1:], dpi=DPI, metadata=metadata, transparent=svg)
    write_whole(path, buffer.getvalue())
