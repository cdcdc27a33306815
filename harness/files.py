"""What a command writes besides what it prints: files, and blocks of a document.

Of a document only what lies between two marks is replaced.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.records.record import check_writable, write_whole


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """--json, --text and --page."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    parser.add_argument("--text", type=Path, metavar="FILE", help="write what is printed, too")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="replace the block of this command in a document"
    )


def check_outputs(args: argparse.Namespace, name: str) -> None:
    """UsageError now if a file or the block `name` could not be written later."""
    for path in filter(None, (args.json, args.text)):
        try:
            check_writable(path)
        except OSError as error:
            raise UsageError(str(error)) from None
    if args.page:
        check_block(args.page, name)


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
