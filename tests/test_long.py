"""The list of long tests names tests that are there."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.long import LONG

ROOT = Path(__file__).parents[1]


def test_every_long_test_is_there() -> None:
    for path in {name.partition("::")[0] for name in LONG}:
        tree = ast.parse((ROOT / path).read_text())
        there = {f"{path}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {name for name in LONG if name.startswith(f"{path}::")} <= there
