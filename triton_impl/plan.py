"""Launch constants of the Triton kernels. They depend on C, H, W, dtype and layout, and on N only where no bit does."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd

from reference.problem import Chain
from runtime.layout import Layout, pow2_at_least, pow2_at_most

WARPS = 4
"""Warps per program of the small products."""


@dataclass(frozen=True)
class Stream:
    """Bytes that one program has in flight, its warps, and the most registers per thread: None is as the
    compiler likes, which saves registers for more programs than there are by loading a tile piece by piece."""

    bytes: int
    warps: int
    registers: int | None = None


WHOLE_STREAM, PART_STREAM = Stream(32 * 1024, 16, 64), Stream(32 * 1024, 8, 64)
"""Rows of a plane: four 16-byte loads per thread where a program has the whole plane, eight where it has a part and its
threads have to wait for the counter. Few programs at a time, for the memory likes few streams."""

PLANES_STREAM, SHORT_PLANES_STREAM, SHORT_PLANE = Stream(32 * 1024, 4, 255), Stream(16 * 1024, 2, 255), 64
"""Neighbouring planes (channels_last), and those of at most so many elements: too few rows for more threads."""

GAPS_STREAM = Stream(32 * 1024, 2, 255)
"""Rows with gaps between them: two axes to add up in the end, by as few threads as can hold the bytes."""

BANDS_STREAM = Stream(8 * 1024, 1, 255)
"""Bands: one warp needs no barrier, and what a program does once is done by fewer threads. Registers, here and
below, are those of a multiprocessor that has 64 KiB in flight."""

COLUMNS = 64
"""Columns that a program has of several planes: with more, the ends of its planes take longer than their stream."""

SMALL_PLANE = 256
"""Planes of at most so many elements are over in a step or two, which leaves nothing to add up at the end."""

LARGE_BANDS_STREAM, LARGE_BYTES = Stream(16 * 1024, 2, 128), 32 * 1024
"""Bands of planes of more than so many bytes, which are long enough to wait for if there are few of them, and of
neighbouring planes (channels_last), where there is more to do at the end than one warp can hold."""

FLAT_STREAM = Stream(4 * 1024, 1)
"""Small planes in a run: one warp needs no barrier."""

PART_BYTES = 64 * 1024
"""Bytes of a plane that one program reads: long enough to hide its start and end, short enough that
one large sample already fills the card."""

WHOLE_BYTES, WHOLE_PLANES = 256 * 1024, 128
"""Planes up to so many bytes stay whole where one sample has so many of them: no finish is needed, and
there are programs enough for a card all the same."""

KEPT = 4096
"""Numbers per column and kernel row (BP x KH x BC) that band_fill keeps in registers."""

TAPS, WEIGHTS = 64, 2048
"""Taps that band_sums_contract has code for, one after the other: more take long to compile and to fetch.
Weights that it keeps in registers: 64 per thread of a warp."""

RIMS = 4
"""Rim rows that are loaded before the stream at most: a kernel of 3, 4 or 5 has no more."""


FINISH = 32
"""Partial results that a thread of the last program loads at a time."""

FINISH_WIDTH = 256
"""Band sums that the last program of a block of planes adds up at a time."""


@dataclass(frozen=True)
class Tile:
    """BP planes x BR rows x BC columns per step, of which a thread has UNROLL rows; ROWS rows x BC columns per
    program; parts per plane."""

    BP: int
    BR: int
    BC: int
    UNROLL: int
    ROWS: int
    parts: int
    warps: int
    registers: int | None

    def blocks(self, planes: int) -> int:
        """Programs for one sample and one group of `planes` planes, without the parts."""
        return ceil(planes / self.BP)


def tile(layout: Layout, planes: int, itemsize: int, kernel: tuple[int, int] | None = None) -> Tile:
    """Tile for `planes` planes of `layout`: whole planes, or the bands of a kernel."""
    whole = kernel is None and layout.w == 1
    uncut = whole and layout.unit == "rows" and layout.h * itemsize <= WHOLE_BYTES and planes >= WHOLE_PLANES
    plane = layout.h * layout.w
    large = layout.unit == "planes" or (itemsize > 2 and plane * itemsize > LARGE_BYTES)
    if kernel:
        stream = LARGE_BANDS_STREAM if large else BANDS_STREAM
    elif layout.unit == "planes":
        stream = PLANES_STREAM if layout.h > SHORT_PLANE else SHORT_PLANES_STREAM
    else:
        stream = WHOLE_STREAM if uncut else PART_STREAM if whole else GAPS_STREAM
    kept = KEPT // pow2_at_least(kernel[0] if kernel else 1)
    # Half-precision bands have to be converted: half the bytes for as many threads, but of neighbouring planes,
    # where a thread has fewer columns.
    size = stream.bytes // (max(itemsize, 4) if kernel and layout.unit != "planes" else itemsize)
    # Twice the warps in float64, whose numbers take twice the registers.
    more = 2 if kernel and itemsize == 8 else 1
    c, h, w = pow2_at_least(planes), pow2_at_least(layout.h), pow2_at_least(layout.w)
    if layout.unit == "planes":
        # 256 bytes of neighbouring planes are two whole lines of the L2; bands take 32 planes, in float32
        # one line, to have more columns and fewer parts to add.
        BP = min(c, 256 // itemsize if whole else 128 // max(itemsize, 4))
        BC = min(w, max(1, kept // BP))
        # The last rows of a plane are masked, and not loaded as wide: no step of more rows than a plane has.
        BR = min(pow2_at_most(layout.h), max(1, size // (BP * BC)))
    elif layout.unit == "rows":
        BR, BC = min(h, size), 1
        BP = min(c, max(1, size // BR))
    else:
        BC = min(w, 256 if kernel else 1024, kept)
        BR = min(h, max(1, size // BC))
        # Not so few columns that there is one short plane.
        columns = min(kept, max(COLUMNS, 2 * BC)) if kernel else kept
        BP = min(c, max(1, size // (BR * BC)), columns // BC)
    # Bands of neighbouring planes: longer parts, since the last program adds all of a block's planes at once.
    part = PART_BYTES * (2 if layout.unit == "planes" and not whole else 1)
    ROWS = max(BR, part // itemsize // (BP * BC))
    if uncut:
        ROWS = layout.h
    ROWS = min(ROWS, ceil(layout.h / BR) * BR)
    warps = stream.warps * more
    # Rows of a step that are spread over the threads, in accesses of `vector` elements: what planes and columns leave.
    TR = max(1, 32 * warps * layout.vector // (BP * BC))
    # Bands of numbers that need no conversion are added up at the end instead: twice the registers and fewer programs
    # at once, and up to a tenth faster.
    at_end = kernel is not None and layout.unit == "columns" and itemsize >= 4 and plane > SMALL_PLANE
    UNROLL = 1 if at_end else BR // min(BR, TR)
    # As many as there are for that, and in float64, whose numbers take two each: nothing may spill.
    registers = stream.registers and (255 if itemsize == 8 or at_end else stream.registers // more)
    return Tile(BP, BR, BC, UNROLL, ROWS, ceil(layout.h / ROWS) * ceil(layout.w / BC), warps, registers)


@dataclass(frozen=True)
class Flat:
    """GROUPS groups of GROUP planes, each a run of up to PIECES accesses of VEC elements."""

    GROUP: int
    GROUPS: int
    PIECES: int
    VEC: int
    warps: int


def flat(layout: Layout, itemsize: int) -> Flat | None:
    """How to read small planes as one run of memory, or None if they are not small or not adjacent.

    Only where a plane is too short, or of too odd a size, for a tile of its own to be read in wide loads.
    """
    plane = layout.h
    if layout.w != 1 or layout.unit != "rows" or layout.stride[1] != plane or plane > 1024 or layout.c < 2:
        return None
    # Each plane of a group costs one pass over the group: four bring float32 to whole accesses.
    VEC = gcd(layout.first, layout.c * plane, layout.stride[0] if layout.n > 1 else 0, 4 * gcd(plane, 16))
    GROUP = VEC // gcd(VEC, plane)
    PIECES = pow2_at_least(plane * GROUP // VEC)
    GROUPS = min(
        pow2_at_least(layout.c // GROUP), pow2_at_most(FLAT_STREAM.bytes // itemsize // (PIECES * VEC))
    )
    return Flat(GROUP, GROUPS, PIECES, VEC, FLAT_STREAM.warps)


@dataclass(frozen=True)
class Contraction:
    """BN samples x BCO outputs x BK (ci, tap) pairs per step of the small matrix products; STEPS steps of weights are
    loaded together, for TILES times so many outputs. registers: the most per thread; None is as the compiler likes."""

    BN: int
    BCO: int
    BK: int
    STEPS: int = 1
    registers: int | None = None
    TILES: int = 1


CONTRACT = Contraction(BN=4, BCO=32, BK=16, STEPS=4, registers=128)
"""Few samples and outputs per program because there are few: programs enough for a card come of few products each. A
thread has four neighbouring k of one output, which are one access of 16 bytes where a kernel has 4, 8 or 16 taps."""

CONTRACT_MANY, MANY = Contraction(BN=4, BCO=32, BK=16, STEPS=4, registers=128, TILES=2), 256
"""The same where it makes more programs than so many, two for each multiprocessor of a large card, of outputs that
would not fit CONTRACT's: products that share what they read. They are added in the same order."""

CONTRACT_WIDTH = 128
"""Outputs that the last program of `contract` adds up at a time: those of CONTRACT."""

SLICES = 32
"""Partial products of one output at most: the last program has to add them up."""

EXPAND = Contraction(BN=4, BCO=16, BK=64)
"""4096 products per step, 32 per thread."""

WEIGHT_GRAD = Contraction(BN=8, BCO=32, BK=512)
"""BK is the most (co, tap) pairs of one program: with BN samples per step, 32 products per thread."""


def rims_at_once(problem: Chain) -> tuple[int, bool]:
    """Rim rows that are loaded together, and whether there are more than these."""
    bands = problem.bands(0)
    rims = max(bands[0][0] - bands[-1][0], 0) + max(bands[0][1] - bands[-1][1], 0)
    return min(RIMS, pow2_at_least(rims)), rims > RIMS


def slice_of(problem: Chain) -> int:
    """Products of one output that one program of `contract` adds up: as many as it loads together, or several times
    that where it would make too many slices."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    step = CONTRACT.STEPS * CONTRACT.BK
    return step * ceil(length / (step * SLICES))


def contraction(problem: Chain) -> Contraction:
    """How `contract` works on a problem."""
    samples, tiles, slices = contract_grid(problem, CONTRACT_MANY)
    wide = problem.c_out // problem.groups > CONTRACT.BCO
    return CONTRACT_MANY if wide and samples * tiles * slices > MANY else CONTRACT


def contract_grid(problem: Chain, step: Contraction) -> tuple[int, int, int]:
    """Programs of `contract` along the samples, the outputs of all groups, and the products of one output."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    tiles = problem.groups * ceil(problem.c_out // problem.groups / (step.TILES * step.BCO))
    return ceil(problem.n / step.BN), tiles, ceil(length / slice_of(problem))


def one_launch(problem: Chain, layout: Layout, chosen: Tile) -> bool:
    """Whether each program contracts its own band sums and the last one of a sample finishes.

    That reads the weights of a plane once per sample and part, so they must be small beside the part
    (a half: L2 gives that away), fit the registers, and leave few rows to the finish. `chosen`
    is a tile of one plane; where neighbouring planes share lines, that would waste them.
    """
    taps = problem.kernel[0] * problem.kernel[1]
    ci, co = problem.c_in // problem.groups, problem.c_out // problem.groups
    part = min(chosen.ROWS, problem.h) * min(chosen.BC, problem.w)
    return (
        layout.unit != "planes"
        and taps <= TAPS
        and co * taps * 2 <= part
        and pow2_at_least(co) * taps <= WEIGHTS
        and ci * chosen.parts * co <= 16 * 1024
    )


def contract_depth(problem: Chain) -> int:
    """Additions in a row when `contract` sums its products: a thread's own, its lanes, then the slices."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    SLICE, rows = slice_of(problem), finish_rows(CONTRACT_WIDTH)
    return (
        SLICE // CONTRACT.BK
        + _sum(CONTRACT.BK, CONTRACT.BK * CONTRACT.BCO)
        + ceil(ceil(length / SLICE) / rows)
        + _sum(rows, rows * CONTRACT_WIDTH)
    )


def finish_rows(width: int, warps: int = WARPS, registers: int = FINISH) -> int:
    """Rows of partial outputs, each `width` wide, that the last program loads at a time."""
    return max(1, min(64, registers * 32 * warps // pow2_at_least(width)))


def chain_finish_rows(problem: Chain, own: Tile) -> int:
    """The same of `band_sums_contract` with tile `own`: one or two warps have the registers for twice as many."""
    width = pow2_at_least(problem.c_out // problem.groups)
    return finish_rows(width, own.warps, FINISH * (2 if own.warps <= 2 else 1))


def _sum(length: int, elements: int, warps: int = WARPS) -> int:
    """Additions in a row when Triton sums an axis of `length` in a tile of `elements`.

    A thread first adds up what it holds of the axis, at most all it holds of the tile; a tree over
    lanes and warps joins the threads.
    """
    return min(length - 1, elements // (32 * warps)) + pow2_at_least(length).bit_length() - 1


def _stream(chosen: Tile, height: int) -> int:
    """Additions in a row over a column: a thread's own rows, UNROLL of them in each step, then those of the threads."""
    TR = chosen.BR // chosen.UNROLL
    own = ceil(min(chosen.ROWS, height) / chosen.BR) * chosen.UNROLL
    return own + _sum(TR, chosen.BP * TR * chosen.BC, chosen.warps)


def tail_depth(layout: Layout, chosen: Tile | Flat) -> int:
    """Longest chain of additions behind one output of multiply_gap or multiply_gap_flat."""
    if isinstance(chosen, Flat):
        return chosen.VEC - 1 + _sum(chosen.PIECES, chosen.GROUPS * chosen.PIECES, chosen.warps)
    rows = finish_rows(chosen.BP, chosen.warps)
    finish = ceil(chosen.parts / rows) + _sum(rows, rows * chosen.BP, chosen.warps) if chosen.parts > 1 else 0
    return _stream(chosen, layout.h) + _sum(chosen.BC, chosen.BP * chosen.BC, chosen.warps) + finish


def _band_depth(problem: Chain, chosen: Tile) -> int:
    """Longest chain of additions behind one band sum of one part."""
    bands = problem.bands(0)
    # The rims of kernel row kh: what its band holds outside the core, one addition per row.
    core = max(0, bands[-1][1] - bands[0][0])
    rims = max(0, *(hi - lo for lo, hi in bands)) - core
    RIMS, _ = rims_at_once(problem)
    return rims + _stream(chosen, problem.h) + 1 + _sum(chosen.BC, chosen.BP * RIMS * chosen.BC, chosen.warps)


def chain_depth(problem: Chain, chosen: Tile, own: Tile | None) -> int:
    """Longest chain of additions behind one output: of band_sums and contract with tile `chosen`, and
    of band_sums_contract with tile `own` if it is used, whichever is longer."""
    ci, co = problem.c_in // problem.groups, problem.c_out // problem.groups
    depth = _band_depth(problem, chosen) + chosen.parts + contract_depth(problem)
    if own is not None:
        rows = chain_finish_rows(problem, own)
        products = problem.kernel[0] * problem.kernel[1]
        finish = ceil(ci * own.parts / rows) + _sum(rows, rows * pow2_at_least(co), own.warps)
        depth = max(depth, _band_depth(problem, own) + products + finish)
    # The bias is one more.
    return depth + 1
