"""How a block reads planes: its shape, from sizes and strides."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd

from cupy_impl import constants as c
from cupy_impl.launch import warps
from reference.problem import Chain
from runtime.layout import Layout, pow2_at_least, pow2_at_most


@dataclass(frozen=True)
class Tile:
    """The numbers that kernels.cu explains under "Reading planes".

    axis, run, vec, ahead, registers and (where axis is 1) planes are fixed in the code, the others are arguments.
    """

    axis: int
    run: int
    vec: int
    ahead: int
    registers: int
    threads: int
    rows: int
    cols: int
    step: int
    accesses: int
    lanes: int
    planes: int
    parts: int
    cuts: int

    def blocks(self, planes: int) -> int:
        """Blocks for one sample of `planes` planes, without the parts."""
        return ceil(planes / self.planes)

    @property
    def macros(self) -> dict[str, int]:
        """What of it the code depends on."""
        planes = self.planes if self.axis == 1 else 1
        return {"AXIS": self.axis, "RUN": self.run, "VEC": self.vec, "UNROLL": self.ahead, "PLANES": planes}


@dataclass(frozen=True)
class Stream:
    """Threads of a block, accesses that each has under way, and registers that it may have."""

    threads: int
    ahead: int
    registers: int


def _stream(layout: Layout, itemsize: int, sums: int, planes: int) -> Stream:
    """For planes of which `sums` band sums each are made, or, where `sums` is 0, the sum of the whole plane."""
    if not sums:
        if layout.unit == "planes":
            return Stream(c.WHOLE_THREADS, c.AHEAD, 64)
        whole = layout.h * layout.w * itemsize <= c.WHOLE_BYTES and planes >= c.WHOLE_PLANES
        return Stream(c.WHOLE_THREADS if whole or layout.w > 1 else c.THREADS, c.FAR_AHEAD, 128)
    if itemsize == 8 or sums > c.FEW_SUMS:
        return Stream(c.THREADS, c.AHEAD, 128)
    return Stream(c.THREADS, c.AHEAD, c.PLANES_SUM_REGISTERS if layout.unit == "planes" else 64)


def tile(
    layout: Layout,
    planes: int,
    itemsize: int,
    problem: Chain | None = None,
    own: Stream | None = None,
    runs: bool = True,
) -> Tile:
    """Tile for `planes` planes of `layout`: of whole planes, or of a problem's bands; by its own stream if given.

    runs: whether accesses may run on from one row to the next.
    """
    sums = len(problem.distinct(0)) * len(problem.distinct(1)) if problem else 0
    stream = own or _stream(layout, itemsize, sums, planes)
    if layout.unit == "planes" and not own:
        return _neighbours(layout, planes, itemsize, sums, stream)
    wide = c.ACCESS // itemsize
    run = layout.unit == "rows" and layout.w == 1
    run |= layout.unit == "columns" and (layout.h == 1 or layout.stride[2] == layout.w)
    run &= runs
    least = wide // gcd(layout.w, wide)
    run &= least * layout.w // wide <= c.MOST_THREADS
    if run:
        vec, cols, unit = wide, layout.w, least * layout.w // wide
    else:
        vec, least = (layout.vector if layout.unit == "columns" else 1), 1
        cols = min(layout.w, stream.threads * vec)
        unit = cols // vec
    total = ceil(layout.h * cols / vec)
    lanes = pow2_at_least(max(unit, ceil(total / c.SMALL_AHEAD), stream.threads // c.GROUPS))
    small = lanes < stream.threads and (planes > 1 or lanes >= c.WARP)
    if small:
        count = min(stream.threads // lanes, pow2_at_least(planes))
        if count * lanes < c.WARP:
            count = c.WARP // lanes
        accesses, threads = lanes // unit * unit, count * lanes
    else:
        count, accesses = 1, unit * _repeats(unit, stream.threads)
        threads = lanes = warps(accesses)
    step = accesses // unit * least
    # No more than there is: what is not loaded still takes instructions.
    ahead = min(stream.ahead, max(c.SMALL_AHEAD, pow2_at_least(ceil(layout.h / step))))
    whole = not problem and layout.h * layout.w * itemsize <= c.WHOLE_BYTES and planes >= c.WHOLE_PLANES
    rows = max(step, c.PART_BYTES // itemsize // (count * cols) // step * step)
    rows = layout.h if rows >= layout.h or (run and whole) else rows
    cuts = ceil(layout.h / rows)
    parts = cuts * ceil(layout.w / cols)
    return Tile(
        3, _run(layout, run, wide, cols, rows if cuts > 1 else 0, problem), vec, ahead, stream.registers, threads,
        rows, cols, step, accesses, lanes, count, parts, cuts,
    )  # fmt: skip


def _run(layout: Layout, run: bool, wide: int, cols: int, rows: int, problem: Chain | None) -> int:
    """0 if planes are no runs of memory, 1 if all that is streamed of them is whole aligned accesses, 2 if it may
    not."""
    if not run:
        return 0
    outside = (problem.distinct(0).before[0], problem.distinct(0).after[-1]) if problem else (0, 0)
    ends = [out * cols for out in (*outside, layout.h, rows)]
    sizes = zip((layout.n, layout.c), layout.stride[:2], strict=True)
    steps = [stride for size, stride in sizes if size > 1]
    return 1 if gcd(layout.first, *ends, *steps) % wide == 0 else 2


def _repeats(unit: int, threads: int) -> int:
    """How often `unit` accesses are in a step: so that few threads of whole warps are idle, and about `threads`
    there."""
    if unit >= threads:
        return 1

    def worth(times: int) -> tuple[int, int]:
        used = times * unit
        return round(16 * used / warps(used)), -abs(used - threads)

    return max(range(max(1, threads // 2 // unit), max(1, threads * 5 // 4 // unit) + 1), key=worth)


def _neighbours(layout: Layout, planes: int, itemsize: int, sums: int, stream: Stream) -> Tile:
    """Planes of which neighbours are adjacent in memory (channels_last)."""
    vec = layout.vector
    line = c.BANDS_LINE_BYTES // max(itemsize, 4) if sums else c.LINE_BYTES // itemsize
    turn = min(pow2_at_least(ceil(planes / vec)), max(1, line // vec), c.WARP)
    count, lanes = turn * vec, stream.threads // turn
    places = (c.PLANES_PART_BYTES if sums else c.PART_BYTES) // itemsize // count
    if sums and ceil(planes / count) * ceil(layout.h * layout.w / places) < c.FEW_BLOCKS:
        places //= 4
    cols = min(layout.w, places)
    rows = min(layout.h, max(1, places // cols))
    cuts = ceil(layout.h / rows)
    parts = cuts * ceil(layout.w / cols)
    ahead = min(stream.ahead, max(c.SMALL_AHEAD, pow2_at_least(ceil(rows * cols / lanes))))
    return Tile(
        1, 0, vec, ahead, stream.registers, stream.threads, rows, cols, 1, 0, lanes, count, parts, cuts
    )  # fmt: skip


@dataclass(frozen=True)
class Flat:
    """Small planes read as one run: `planes` of them a block, of which `fold` neighbours are sure to belong to one, by
    `loads` accesses of `vec` elements a thread. `lanes` threads then add up a plane."""

    vec: int
    fold: int
    loads: int
    planes: int
    lanes: int


def flat(layout: Layout, itemsize: int) -> Flat | None:
    """How to read small planes as one run of memory, or None if they are not small or not adjacent."""
    plane = layout.h
    if layout.w != 1 or layout.unit != "rows" or layout.stride[1] != plane or plane > c.FLAT_PLANE or layout.c < 2:
        return None
    vec = c.ACCESS // itemsize
    fold = gcd(vec, plane, layout.first, layout.stride[0] if layout.n > 1 else 0)
    # One access less than there is room for: a run may begin inside one.
    planes = min(pow2_at_least(layout.c), pow2_at_most((c.FLAT_ELEMENTS - (vec if fold < vec else 0)) // plane))
    lanes = max(1, min(c.WARP, c.THREADS // planes))
    return Flat(vec, fold, ceil(c.FLAT_ELEMENTS / (vec * c.THREADS)), planes, lanes)


def own_stream(problem: Chain, layout: Layout, itemsize: int) -> tuple[Stream, int]:
    """How `band_sums_contract` streams a plane, and how many planes it has one after the other."""
    size, planes = layout.h * layout.w * itemsize, problem.c_in // problem.groups
    if size <= c.SMALL_BYTES and problem.c_out // problem.groups <= c.SMALL_THREADS:
        return Stream(c.SMALL_THREADS, c.AHEAD, 64), 1
    usual = _stream(layout, itemsize, len(problem.distinct(0)) * len(problem.distinct(1)), planes)
    pairs = planes // 2 * ceil(size / c.PART_BYTES)
    if itemsize == 4 and usual.registers == 64 and planes % 2 == 0 and size >= c.PART_BYTES and pairs >= c.PAIRS:
        return Stream(c.THREADS, c.FAR_AHEAD, 128), 2
    return usual, 1
