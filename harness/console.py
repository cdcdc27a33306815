"""Progress bar with the time left; only on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(out: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Bar on `out` while the block runs; yields the function to call with the name of each finished piece."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("cases", total=total)

        def advance(name: str) -> None:
            bar.update(task, advance=1, description=name)

        yield advance
