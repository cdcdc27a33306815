"""What the kernels are given besides sizes, as macros: types, threads, bands, taps, constants of tiles and products."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from cupy_impl import constants as c
from cupy_impl import products, tiles
from cupy_impl.launch import Code, kind
from reference.problem import Bands, Chain
from runtime.layout import pow2_at_least
from runtime.prepared import accumulator

ELEMENT = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "half",
    torch.bfloat16: "bfloat16",
}
"""Names of dtypes in the kernels."""

FAR = 2**30
"""Rows or columns from which on kernels count them in 64 bits."""

NEVER = 2**62
"""In place of a larger number of rows or columns that a band leaves out: no plane has 2^62 of them."""


def bands(problem: Chain, swapped: bool = False) -> dict[str, Any]:
    """The distinct bands of both axes; `swapped`: rows and columns are exchanged where planes are read."""
    axes = problem.distinct(0), problem.distinct(1)
    far = max(problem.h, problem.w, *(max(*b.before, *b.after) for b in axes)) >= FAR
    return {"SWAPPED": int(swapped), "LIMIT": _limit(far), **_tables(*axes, far)}


@lru_cache(maxsize=512)
def _tables(rows: Bands, columns: Bands, far: bool) -> dict[str, str]:
    """Kept, for a layer has the same bands at every size."""
    found = {}
    for letter, b in (("H", rows), ("W", columns)):
        for name, values in (("BEFORE", b.before), ("AFTER", b.after), ("TAPS", b.taps)):
            found[f"{name}_{letter}"] = ",".join(f"{min(value, NEVER)}{'LL' * far}" for value in values)
    return found


def one_band(rows: int) -> dict[str, Any]:
    """A whole plane of so many rows as its only band."""
    tables = {f"{table}_{axis}": "0" for table in ("BEFORE", "AFTER") for axis in "HW"}
    return {"SWAPPED": 0, **tables, "TAPS_H": "0,1", "TAPS_W": "0,1", "LIMIT": _limit(rows >= FAR)}


def _limit(far: bool) -> str:
    """The type that counts rows and columns."""
    return "index_t" if far else "int"


def taps(problem: Chain) -> dict[str, Any]:
    """Sizes of the kernel."""
    return dict(zip(("KH", "KW"), problem.kernel, strict=True))


def code(kernel: str, dtype: torch.dtype, threads: int, registers: int, macros: dict[str, Any]) -> Code:
    """The code of a kernel with blocks of so many threads, of which each has at least so many registers."""
    # Blocks that fit a multiprocessor side by side: told a bound, the compiler uses the registers to load far ahead.
    blocks = max(1, c.REGISTERS // (threads * registers))
    types = {
        "ELEMENT": ELEMENT[dtype],
        "ACC": ELEMENT[accumulator(dtype)],
        "THREADS": threads,
        "BLOCKS": blocks,
    }
    return kind(kernel, tuple((name, str(value)) for name, value in (types | macros).items()))


def reading(kernel: str, dtype: torch.dtype, tile: tiles.Tile, macros: dict[str, Any]) -> Code:
    """The code of a kernel that reads or fills planes by tiles."""
    threads = max(c.THREADS, pow2_at_least(tile.threads))
    return code(kernel, dtype, threads, tile.registers, tile.macros | macros)


def multiplied(
    kernel: str, dtype: torch.dtype, problem: Chain, shape: products.Product, more: dict[str, Any],
    registers: int | None = None,
) -> Code:  # fmt: skip
    """The code of a kernel that is a matrix product of that shape; registers: as many a thread, or more."""
    macros = {name: value for name, value in vars(shape).items() if name != "THREADS"}
    if not shape.OUTS:
        del macros["OUTS"]
    macros |= bands(problem) | taps(problem) | more
    registers = max(registers or c.PRODUCT_REGISTERS, products.least_registers(problem, shape, dtype))
    return code(kernel, dtype, shape.THREADS, registers, macros)
