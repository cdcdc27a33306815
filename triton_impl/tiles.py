"""How planes are dealt out to programs and threads. Compiled code depends on a tile's uppercase fields.

There are few tiles: every field is a power of two and bounded by constants.py, and beyond the sizes of a step it no longer
depends on the plane. test_kinds.py lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd

from runtime.layout import Layout, describe, pow2_at_least, pow2_at_most
from triton_impl import constants as c
from triton_impl.launch import divisor


@dataclass(frozen=True)
class Tile:
    """BP planes, whose steps are R x L positions, with UNROLL steps under way; accesses are VEC elements wide. RUN: rows lie one behind the
    other, elements too. WHOLE: a plane is one step.

    rows, cols: rows and columns of a part. step: whole rows of one step. cuts, across: parts of a plane down and across.
    """

    BP: int
    R: int
    L: int
    VEC: int
    UNROLL: int
    RUN: bool
    WHOLE: bool
    warps: int
    registers: int | None
    rows: int
    cols: int
    step: int
    cuts: int
    across: int

    @property
    def parts(self) -> int:
        return self.cuts * self.across

    @property
    def even(self) -> bool:
        """Whether all R positions of a thread have the same column."""
        return self.L % self.cols == 0

    def blocks(self, planes: int) -> int:
        return ceil(planes / self.BP)

    def sizes(self, layout: Layout) -> dict[str, int]:
        """What locate, deal and the addresses take."""
        stride = dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), layout.stride, strict=True))
        return {
            "H": layout.h, "W": layout.w, **stride, "rows": self.rows, "cols": self.cols,
            "cols_by": divisor(self.cols), "step": self.step, "parts": self.parts,
            "parts_by": divisor(self.parts), "cuts": self.cuts, "cuts_by": divisor(self.cuts),
        }  # fmt: skip


def unit_strides(layout: Layout) -> dict[str, int]:
    """The stride that is known to be 1: the one along which an access runs."""
    names = {"planes": "stride_c", "columns": "stride_w"}
    return {names[layout.unit]: 1} if layout.unit in names else {}


def divisible(layout: Layout, tile: Tile, pointer: str, itemsize: int) -> dict[str, int]:
    """What lets the compiler use accesses of `layout.vector` elements."""
    vector = tile.VEC if layout.unit != "planes" else layout.vector
    names = ("stride_n", "stride_h", "stride_w", "C") if layout.unit == "planes" else ("stride_n", "stride_c", "stride_h", "cols")
    return {pointer: vector * itemsize, **dict.fromkeys(names, vector)}


def _cut(layout: Layout, BP: int, positions: int, VEC: int, unroll: int, itemsize: int) -> tuple[int, int, int, int, int]:
    """(rows, cols, step, cuts, across) of parts of about PART_BYTES, in steps of `positions` elements of a plane."""
    across = ceil(layout.w / positions)
    cols = layout.w if across == 1 else ceil(layout.w / across / VEC) * VEC
    across = ceil(layout.w / cols)
    step = positions // cols
    most = max(step * unroll, c.PART_BYTES // itemsize // (BP * cols))
    cuts = max(1, round(layout.h / most)) if layout.h < 2 * most else ceil(layout.h / most)
    rows = ceil(layout.h / cuts / step) * step if cuts > 1 else layout.h
    return rows, cols, step, ceil(layout.h / rows), across


def gap(layout: Layout, planes: int, itemsize: int) -> tuple[Layout, Tile]:
    """The tile for whole planes, and the layout as it reads them: a run in rows as long as an access."""
    if layout.unit == "planes":
        short = layout.h * layout.w <= c.SHORT_PLANE
        warps = c.PLANES_WARPS // 2 if short else c.PLANES_WARPS
        size = (c.GAP_BYTES // 2 if short else c.GAP_BYTES) // itemsize
        BP = min(pow2_at_least(planes), c.PLANES_LINE_BYTES // itemsize)
        L = min(pow2_at_least(layout.h * layout.w), max(1, c.WARP * warps * layout.vector // BP))
        unroll = max(1, min(pow2_at_most(layout.h), size // BP) // L)
        cut = _cut(layout, BP, L, 1, unroll, itemsize)
        return layout, Tile(BP, 1, L, 1, unroll, False, False, warps, 255, *cut)
    if layout.w == 1 and layout.stride[2] == 1:
        VEC = layout.vector
        rows = layout.h // VEC
        seen = Layout(layout.n, layout.c, rows, VEC, (*layout.stride[:2], VEC, 1), "columns", VEC, layout.first, False)
        uncut = layout.h * itemsize <= c.UNCUT_BYTES and planes >= c.UNCUT_PLANES
        warps = c.WHOLE_WARPS if uncut else c.PART_WARPS
        size = c.GAP_BYTES // itemsize
        BP = min(pow2_at_least(planes), max(1, size // pow2_at_least(layout.h)))
        L = max(1, c.WARP * warps // BP)
        unroll = max(1, size // (c.WARP * warps * VEC))
        cut = _cut(seen, BP, L * VEC, VEC, unroll, itemsize)
        if uncut:
            cut = (rows, *cut[1:3], 1, 1)
        return seen, Tile(BP, 1, L * VEC, VEC, unroll, True, False, warps, c.GAP_REGISTERS, *cut)
    VEC = layout.vector if layout.unit == "columns" else 1
    size = c.WARP * c.GRID_WARPS * c.GRID_ACCESSES * VEC
    BP = min(pow2_at_least(planes), max(1, size // pow2_at_least(layout.h * layout.w)))
    L = max(1, c.WARP * c.GRID_WARPS // BP)
    cut = _cut(layout, BP, c.GRID_ACCESSES * L * VEC, VEC, c.GRID_UNROLL, itemsize)
    tile = Tile(BP, c.GRID_ACCESSES, L * VEC, VEC, c.GRID_UNROLL, False, False, c.GRID_WARPS, 255, *cut)
    return layout, tile


def bands(layout: Layout, planes: int, itemsize: int, *, whole: bool) -> Tile:
    """The tile for the bands of `planes` planes. whole: whether planes may be one step, without a stream."""
    plane = layout.h * layout.w
    acc = max(itemsize, 4)
    double = acc // 4
    if whole and plane <= c.SMALL_PLANE:
        VEC = layout.vector if layout.unit == "columns" else 1
        positions = pow2_at_least(max(plane, VEC, 4))
        warps = double
        BP = min(pow2_at_least(planes), max(1, c.BANDS_BYTES // 4 // positions))
        run = layout.unit == "columns" and (layout.h == 1 or layout.stride[2] == layout.w)
        return Tile(BP, 1, positions, VEC, 1, run, True, warps, 255, layout.h, layout.w, layout.h, 1, 1)
    if layout.unit == "planes":
        warps = 2 * double
        BP = min(pow2_at_least(planes), c.BANDS_PLANES_BYTES // acc)
        R = UNROLL = c.BANDS_PLANES_ROWS
        L = max(1, c.WARP * warps * layout.vector // BP)
        cut = _cut(layout, BP, R * L, 1, UNROLL, itemsize * 1)
        return Tile(BP, R, L, 1, UNROLL, False, False, warps, c.BANDS_REGISTERS, *cut)
    VEC = layout.vector if layout.unit == "columns" else 1
    run = layout.unit == "columns" and (layout.h == 1 or layout.stride[2] == layout.w)
    large = run and itemsize > 2 and plane * itemsize > c.LARGE_PLANE_BYTES
    warps = double * (2 if large else 1)
    # Narrow accesses are many, and each takes a register: half the elements.
    size = (2 if large else 1) * c.BANDS_BYTES // acc // (2 if VEC == 1 else 1)
    if run and layout.w > size:
        run = False
    if not run:
        size = c.WARP * warps * c.BANDS_GRID_ELEMENTS
    UNROLL = 1 if run else c.BANDS_GRID_UNROLL
    positions = max(VEC, min(size, pow2_at_least(plane)))
    BP = min(pow2_at_least(planes), size // positions)
    L = max(1, min(c.WARP * warps // BP, positions // VEC))
    R = max(1, positions // (L * VEC))
    cut = _cut(layout, BP, R * L * VEC, VEC, UNROLL, itemsize)
    return Tile(BP, R, L * VEC, VEC, UNROLL, run, False, warps, c.BANDS_REGISTERS, *cut)


@dataclass(frozen=True)
class Flat:
    """GROUPS groups of GROUP planes, each a run of up to PIECES accesses of VEC elements."""

    GROUP: int
    GROUPS: int
    PIECES: int
    VEC: int


def flat(layout: Layout, itemsize: int) -> Flat | None:
    """How to read small planes as one run of memory, or None if they are not small or not adjacent.

    Only where a plane is too short, or of too odd a size, for a tile of its own to be read in wide loads.
    """
    plane = layout.h
    if layout.w != 1 or layout.unit != "rows" or layout.stride[1] != plane or plane > c.FLAT_PLANE or layout.c < 2:
        return None
    # Each plane of a group costs one pass over the group: four bring float32 to whole accesses.
    VEC = gcd(layout.first, layout.c * plane, layout.stride[0] if layout.n > 1 else 0, 4 * gcd(plane, 16))
    GROUP = VEC // gcd(VEC, plane)
    PIECES = pow2_at_least(plane * GROUP // VEC)
    GROUPS = min(
        pow2_at_least(layout.c // GROUP), pow2_at_most(c.FLAT_BYTES // itemsize // (PIECES * VEC))
    )
    return Flat(GROUP, GROUPS, PIECES, VEC)


__all__ = ["Flat", "Tile", "bands", "describe", "divisible", "flat", "gap", "unit_strides"]
