"""How planes are dealt out to programs and threads. Compiled code depends on a tile's uppercase fields.

There are few tiles: every field is a power of two and bounded by constants.py, and beyond the sizes of a step
it no longer depends on the plane. test_kinds.py lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from runtime.layout import Layout, pow2_at_least, pow2_at_most
from triton_impl import constants as c
from triton_impl.launch import divided


@dataclass(frozen=True)
class Tile:
    """BP planes, whose steps are R lines of L positions, with UNROLL steps under way; accesses are VEC
    elements wide. LR: columns of a rim row. RUN: rows lie one behind the other, elements too. WHOLE: a plane
    is one line.

    rows, cols: rows and columns of a part. lines: whole rows of a line. step: of a step. cuts, across: parts
    of a plane down and across.
    """

    BP: int
    R: int
    L: int
    VEC: int
    UNROLL: int
    RUN: bool
    WHOLE: bool
    LR: int
    warps: int
    registers: int | None
    rows: int
    cols: int
    lines: int
    step: int
    cuts: int
    across: int

    @property
    def parts(self) -> int:
        return self.cuts * self.across

    def blocks(self, planes: int) -> int:
        return ceil(planes / self.BP)

    def sizes(self, layout: Layout) -> dict[str, int]:
        """What locate, deal and the addresses take."""
        stride = dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), layout.stride, strict=True))
        return {
            "H": layout.h,
            "W": layout.w,
            **stride,
            "rows": self.rows,
            "lines": self.lines,
            "step": self.step,
            **divided(cols=self.cols, parts=self.parts, cuts=self.cuts),
        }


def unit_strides(layout: Layout) -> dict[str, int]:
    """The stride that is known to be 1: the one along which an access runs."""
    names = {"planes": "stride_c", "rows": "stride_h", "columns": "stride_w"}
    return {names[layout.unit]: 1} if layout.unit in names else {}


def divisible(layout: Layout, tile: Tile, pointer: str, itemsize: int) -> dict[str, int]:
    """What lets the compiler use accesses of `layout.vector` elements."""
    vector = tile.VEC if layout.unit != "planes" else layout.vector
    names = (
        ("stride_n", "stride_h", "stride_w", "C")
        if layout.unit == "planes"
        else ("stride_n", "stride_c", "stride_h", "cols")
    )
    return {pointer: vector * itemsize, **dict.fromkeys(names, vector)}


def _cut(layout: Layout, BP: int, R: int, L: int, VEC: int, unroll: int, itemsize: int) -> tuple[int, ...]:
    """(rows, cols, lines, step, cuts, across) of parts of about PART_BYTES, in steps of R lines of L
    positions."""
    across = ceil(layout.w / L)
    cols = layout.w if across == 1 else ceil(layout.w / across / VEC) * VEC
    lines = L // cols
    step = R * lines
    most = max(step * unroll, c.PART_BYTES // itemsize // (BP * cols))
    # A few rows more than fit one part are no second part.
    cuts = 1 if layout.h <= most * 5 // 4 else ceil(layout.h / most)
    rows = layout.h if cuts == 1 else ceil(ceil(layout.h / cuts) / step) * step
    return rows, cols, lines, step, ceil(layout.h / rows), ceil(layout.w / cols)


def gap(layout: Layout, planes: int, itemsize: int) -> tuple[Layout, Tile]:
    """The tile for whole planes, and the layout as it reads them: a run in rows as long as an access."""
    if layout.unit == "planes":
        short = layout.h * layout.w <= c.SHORT_PLANE
        warps = c.PLANES_WARPS // 2 if short else c.PLANES_WARPS
        size = (c.GAP_BYTES // 2 if short else c.GAP_BYTES) // itemsize
        BP = min(pow2_at_least(planes), c.PLANES_LINE_BYTES // itemsize)
        L = min(pow2_at_least(layout.h * layout.w), max(1, c.WARP * warps * layout.vector // BP))
        unroll = max(1, min(pow2_at_most(layout.h), size // BP) // L)
        cut = _cut(layout, BP, 1, L, 1, unroll, itemsize)
        return layout, Tile(BP, 1, L, 1, unroll, False, False, 1, warps, 255, *cut)
    if layout.w == 1 and layout.stride[2] == 1:
        VEC = layout.vector
        rows = layout.h // VEC
        seen = Layout(layout.n, layout.c, rows, VEC, (*layout.stride[:2], VEC, 1), "columns", VEC, layout.first, False)
        uncut = layout.h * itemsize <= c.UNCUT_BYTES and planes >= c.UNCUT_PLANES
        warps = c.WHOLE_WARPS if uncut else c.PART_WARPS
        size = c.GAP_BYTES // itemsize
        BP = min(pow2_at_least(planes), max(1, size // pow2_at_least(layout.h)))
        L = max(1, c.WARP * warps // BP) * VEC
        unroll = max(1, size // (c.WARP * warps * VEC))
        cut = _cut(seen, BP, 1, L, VEC, unroll, itemsize)
        if uncut:
            cut = (rows, *cut[1:4], 1, 1)
        return seen, Tile(BP, 1, L, VEC, unroll, True, False, 1, warps, c.GAP_REGISTERS, *cut)
    VEC = layout.vector if layout.unit == "columns" else 1
    size = c.WARP * c.GRID_WARPS * c.GRID_ACCESSES * VEC
    BP = min(pow2_at_least(planes), max(1, size // pow2_at_least(layout.h * layout.w)))
    L = max(VEC, size // BP)
    cut = _cut(layout, BP, 1, L, VEC, c.GRID_UNROLL, itemsize)
    return layout, Tile(BP, 1, L, VEC, c.GRID_UNROLL, False, False, 1, c.GRID_WARPS, 255, *cut)


def is_run(layout: Layout) -> bool:
    """Whether the rows of a plane lie one behind the other."""
    if layout.w == 1:
        return layout.unit == "rows"
    return layout.unit == "columns" and (layout.h == 1 or layout.stride[2] == layout.w)


def _width(layout: Layout, itemsize: int) -> int:
    """Elements of an access along a row: of 16 bytes, of 4, or one, so that there are few kinds."""
    full, word = c.ACCESS_BYTES // itemsize, max(1, 4 // itemsize)
    return full if layout.vector == full else word if layout.vector >= word else 1


def bands(layout: Layout, planes: int, itemsize: int, *, whole: bool) -> Tile:
    """The tile for the bands of `planes` planes. whole: whether planes may be one line, without a stream."""
    plane = layout.h * layout.w
    acc = max(itemsize, 4)
    double = acc // 4
    VEC = _width(layout, itemsize) if layout.unit == "columns" else 1
    run = is_run(layout)
    if whole and plane <= c.SMALL_PLANE:
        positions = max(16, VEC, pow2_at_least(plane))
        BP = min(pow2_at_least(planes), max(1, c.WHOLE_BYTES // 4 // positions))
        tile = BP, 1, positions, VEC, 1, run, True, 1, c.SMALL_WARPS, 255
        return Tile(*tile, layout.h, layout.w, layout.h, layout.h, 1, 1)
    if layout.unit == "planes":
        warps = 2 * double
        BP = min(pow2_at_least(planes), c.BANDS_PLANES_BYTES // acc)
        L, UNROLL = c.BANDS_PLANES_COLUMNS, c.BANDS_PLANES_ROWS
        cut = _cut(layout, BP, 1, L, 1, UNROLL, itemsize)
        return Tile(BP, 1, L, 1, UNROLL, False, False, L, warps, c.BANDS_REGISTERS, *cut)
    large = itemsize > 2 and plane * itemsize > c.LARGE_PLANE_BYTES
    warps = double * (2 if large else 1)
    threads = c.WARP * warps
    # Narrow accesses are many, and each takes a register: half the elements.
    size = threads * c.BANDS_ELEMENTS // double // (1 if run and VEC > 1 else 2)
    LR = max(c.SHORTEST_LINE, pow2_at_least(min(layout.w, c.LONGEST_LINE)))
    line = max(LR, threads * VEC)
    width = min(layout.w, LR)
    # A line that whole rows do not fill well enough is eight times as long: there they do.
    if (line // width) * width * 8 < line * 7 and 8 * line <= size:
        line *= 8
    if layout.w > c.LONGEST_LINE:
        run, line = False, LR
    positions = max(line, min(size, pow2_at_least(plane)))
    BP = max(1, min(pow2_at_least(planes), size // positions))
    R = max(1, positions // line)
    cut = _cut(layout, BP, R, line, VEC, 1, itemsize)
    return Tile(BP, R, line, VEC, 1, run, False, LR, warps, c.BANDS_REGISTERS, *cut)


def described(tile: Tile) -> str:
    """How a tile for bands reads or fills planes, in a sentence."""
    if tile.WHOLE:
        return f"planes are small: a program has {tile.BP} of them, each in one line"
    form = "rows lie one behind the other" if tile.RUN else "rows have gaps between them or are strided"
    return f"{form}: {tile.BP} planes a program, {tile.parts} parts a plane, accesses of {tile.VEC} elements"


@dataclass(frozen=True)
class Flat:
    """PLANES planes of at most SIZE elements, one behind the other."""

    PLANES: int
    SIZE: int


def flat(layout: Layout, itemsize: int) -> Flat | None:
    """How to read small planes that lie one behind the other, or None if they are not small or not adjacent."""
    plane = layout.h
    adjacent = layout.w == 1 and layout.unit == "rows" and layout.stride[1] == plane and layout.c > 1
    if not adjacent or plane > c.FLAT_PLANE:
        return None
    SIZE = max(c.FLAT_LEAST, pow2_at_least(plane))
    return Flat(min(pow2_at_least(layout.c), max(1, c.FLAT_BYTES // itemsize // SIZE)), SIZE)
