"""How a .cu file says what it is: TOML in a comment, between two marks.

/* judge
operator = "multiply_gap"
entry = "tail"
arguments = ["y", "out", "multiplier", "C", "H * W"]
grid = ["N * C"]
block = 256
end judge */
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from harness.errors import UsageError

MARK, END = "/* judge", "end judge */"
EXPECTED = f"expected a header in TOML between {MARK!r} and {END!r} (docs/judging.md shows one)"
OPERATORS = ("multiply_gap", "conv_transpose2d_multiply_gap")
POINTERS = {"multiply_gap": {"y", "out"}, "conv_transpose2d_multiply_gap": {"x", "weight", "bias", "out"}}


def read(path: Path, text: str) -> dict[str, Any]:
    """operator, entry, arguments, grid, block, options of a file. UsageError says what is wrong with its header."""
    _, found, rest = text.partition(MARK)
    inside, ended, _ = rest.partition(END)
    if not found or not ended:
        raise UsageError(f"{path}: {EXPECTED}")
    try:
        header = tomllib.loads(inside)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: the header is no TOML: {error}") from None
    if unknown := set(header) - {"operator", "entry", "arguments", "grid", "block", "options"}:
        raise UsageError(f"{path}: header: unknown key {min(unknown)!r}")
    if header.get("operator") not in OPERATORS:
        raise UsageError(f"{path}: header: operator: expected one of {', '.join(OPERATORS)}")
    if not isinstance(header.get("entry"), str) or f"{header['entry']}(" not in text.replace(" (", "("):
        raise UsageError(f"{path}: header: entry: expected the name of a __global__ function of the file")
    header["block"] = str(header.get("block", ""))
    header.setdefault("options", [])
    for name in ("arguments", "grid", "options"):
        values = header.get(name)
        if not isinstance(values, list) or (not values and name != "options"):
            raise UsageError(f"{path}: header: {name}: expected a list")
        header[name] = [str(value) for value in values]
    if "out" not in header["arguments"] or not 1 <= len(header["grid"]) <= 3 or not header["block"]:
        raise UsageError(f"{path}: header: expected 'out' among the arguments, 1 to 3 sizes of the grid, and a block")
    wrong = ({"x", "y", "weight", "bias"} & set(header["arguments"])) - POINTERS[header["operator"]]
    if wrong:
        raise UsageError(f"{path}: header: arguments: {header['operator']} has no {min(wrong)!r}")
    return header
