"""Blocks of a document that a command writes: what lies between two marks is replaced, the rest stays as it is."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UsageError
from harness.records import check_writable, write_whole


def check_block(path: Path, name: str) -> None:
    """UsageError now if replace_block would fail later."""
    _parts(path, name)
    try:
        check_writable(path)
    except OSError as error:
        raise UsageError(str(error)) from None


def replace_block(path: Path, name: str, text: str) -> None:
    """Put `text`, as a block of code, between the marks <!-- NAME --> and <!-- end NAME --> of a document."""
    before, after = _parts(path, name)
    write_whole(path, f"{before}\n```\n{text.rstrip()}\n```\n{after}")


def _parts(path: Path, name: str) -> tuple[str, str]:
    """The document up to and with the first mark, and from the second one on."""
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    try:
        document = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    before, found, rest = document.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UsageError(f"{path}: expected the marks {start} and {end}")
    return before + start, end + after
