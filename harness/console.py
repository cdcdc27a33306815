"""Where a command prints: a console that leaves a closed pipe to the command line, and a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

WIDTH = 100  # columns when the output is not a terminal


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process with 1, which is the code of a wrong answer."""
        raise BrokenPipeError


def console(file: IO[str] | None = None) -> Console:
    """Console on `file` (standard output): colour on a terminal, bare text of 100 columns anywhere else.

    The environment variables COLUMNS and NO_COLOR have the last word.
    """
    out = file or sys.stdout
    terminal = out.isatty()
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() and int(asked) else None if terminal else WIDTH
    return _Console(file=out, width=width, force_terminal=terminal, highlight=False, markup=False)


@contextmanager
def progress(out: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Bar on `out` while the block runs; yields the function to call with the name of each finished piece."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("cases", total=total)

        def advance(name: str) -> None:
            bar.update(task, advance=1, description=name)

        yield advance


@contextmanager
def saying(out: Console) -> Iterator[Callable[[str], None]]:
    """One line on `out`, if it is a terminal, with a sign of life; yields the function to call with its new text."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    ) as line:
        task = line.add_task("", total=None)
        yield lambda text: line.update(task, description=text)
