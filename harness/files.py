"""What a command writes besides what it prints: files, whole or not at all, and blocks of a document.

Only a regular file, or a name that is free, is replaced. A symbolic link is followed, and what is neither (a device, a
pipe) is written through. Of a document only what lies between two marks is replaced.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from runtime import plan

_OPEN_ALREADY = ("/dev/fd/", "/dev/std", "/proc/")
"""What lies here names a file that somebody has open: it is never replaced."""


def require_regular(path: Path) -> None:
    """OSError for what is no file with an end: a folder, or a pipe that nobody may ever write to."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "expected a regular file")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """--json, --text and --page."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    parser.add_argument("--text", type=Path, metavar="FILE", help="write what is printed, too")
    parser.add_argument("--page", type=Path, metavar="FILE", help="replace the block of this command in a document")


def check_outputs(args: argparse.Namespace, name: str) -> None:
    """UsageError now if a file of add_outputs or the block `name` could not be written later."""
    require_writable(args, "json", "text", "page")
    if args.page:
        _parts(args.page, name)


def require_writable(args: argparse.Namespace, *options: str, **more: Iterable[Path]) -> None:
    """UsageError now if a file could not be written later, or if it is another output too, or an input.

    options: those of `args` that name a file to write; every other path in `args` is read, and so is the plan. more:
    further files to write, by the option that asks for them.
    """
    outputs = [(name, path) for name in options if (path := getattr(args, name))]
    outputs += [(name, path) for name, paths in more.items() for path in paths]
    values = [value for name, value in vars(args).items() if name not in options] + [plan.PATH]
    several = (value if isinstance(value, list) else [value] for value in values)
    inputs = {os.path.realpath(path): path for path in chain(*several) if isinstance(path, Path)}
    seen: dict[str, str] = {}
    for name, path in outputs:
        try:
            check_writable(path)
        except OSError as error:
            raise UsageError(f"--{name}: {error}") from None
        if not replaced(path):
            continue
        target = os.path.realpath(path)
        if target in inputs:
            raise UsageError(f"--{name}: {path}: expected another file than the input {inputs[target]}")
        if target in seen:
            raise UsageError(
                f"--{name}: {path}: expected a file of its own for each output, and {seen[target]} is the same"
            )
        seen[target] = f"--{name} {path}"


def write_outputs(
    args: argparse.Namespace, name: str, text: str, document: dict[str, Any], *, block: str | None = None
) -> None:
    """Print `text`, and write what add_outputs offers: it, `document` as JSON, and the block `name`.

    block: what a page shows, if it is not `text`.
    """
    print(text, end="")
    if args.text:
        write_whole(args.text, text)
    if args.page:
        replace_block(args.page, name, text if block is None else block)
    if args.json:
        write_whole(args.json, json.dumps(document, indent=1) + "\n")


def replace_block(path: Path, name: str, text: str) -> None:
    """Put `text`, as a block of code, between the marks <!-- NAME --> and <!-- end NAME --> of a document."""
    before, after = _parts(path, name)
    write_whole(path, f"{before}\n```\n{text.rstrip()}\n```\n{after}")


def _parts(path: Path, name: str) -> tuple[str, str]:
    try:
        return split_at_marks(path.read_text(encoding="utf-8"), name, path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None


def split_at_marks(document: str, name: str, path: Path) -> tuple[str, str]:
    """The document up to and with the first mark, and from the second one on. UsageError if it has none."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, found, rest = document.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UsageError(f"{path}: expected the marks {start} and {end}")
    return before + start, end + after


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a regular file whole or not at all: beside its place first, then moved over it. May raise OSError.

    A file that was there keeps its permissions.
    """
    data = content.encode() if isinstance(content, str) else content
    if not replaced(path):
        with path.open("wb") as file:
            file.write(data)
        return
    target = _target(path)
    temporary = _beside(target)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise OSError now, with a plain message, if write_whole(path) would fail later."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, expected a file name")
    if not replaced(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path}: cannot be written (permission denied)")
        return
    try:
        target = _target(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{path}: no directory {path.parent}")
        temporary = _beside(target)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except (OSError, RuntimeError, ValueError) as error:  # a ring of links, a name with a zero in it
        why = error.strerror if isinstance(error, OSError) else error
        raise OSError(f"{path}: cannot be written ({why})" if why else str(error)) from None


def replaced(path: Path) -> bool:
    """Whether the file is replaced as a whole: it is regular, or there is none yet."""
    if str(path.absolute()).startswith(_OPEN_ALREADY):
        return False
    try:
        return path.is_file() or not path.exists()
    except OSError:
        return True


def _target(path: Path) -> Path:
    """What the name leads to. Raises OSError for a ring of links."""
    target = path.resolve()
    if target.is_symlink():  # from Python 3.13 on a ring is no error there
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
