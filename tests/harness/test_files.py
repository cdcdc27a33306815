"""Blocks that a command writes into a document."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.files import check_outputs, replace_block


def test_only_the_block_changes(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("above\n<!-- a -->\nold\n<!-- end a -->\nbelow\n<!-- b -->\nkept\n<!-- end b -->\n")
    replace_block(path, "a", "new\n")
    once = path.read_text()
    assert once == (
        "above\n<!-- a -->\n```\nnew\n```\n<!-- end a -->\nbelow\n<!-- b -->\nkept\n<!-- end b -->\n"
    )
    replace_block(path, "a", "new")
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["no marks", "<!-- a --> only the first", "<!-- end a --> only the last"])
def test_a_document_without_the_marks_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)
    args = Namespace(json=None, text=None, page=path)
    for call in (lambda: check_outputs(args, "a"), lambda: replace_block(path, "a", "new")):
        with pytest.raises(UsageError, match="expected the marks"):
            call()
    assert path.read_text() == text


def test_a_document_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        check_outputs(Namespace(json=None, text=None, page=tmp_path / "absent.md"), "a")
