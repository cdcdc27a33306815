"""Launch constants of the CUDA kernels. They depend on C, H, W, dtype and layout, and on N only where no bit does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, gcd

from reference.problem import Chain
from runtime.layout import Layout, pow2_at_least, pow2_at_most

THREADS, BLOCKS = 128, 8
"""Threads per block: small blocks, so that one block's start and end hide behind the others' streams.
Resident blocks per multiprocessor that the register allocation aims at: 64 registers per thread."""


@dataclass(frozen=True)
class Stream:
    """Bytes that one block has in flight, its threads, resident blocks per multiprocessor to aim at, and planes that
    it contracts one after the other."""

    bytes: int
    threads: int
    blocks: int
    planes: int = 1


STREAM = Stream(16 * 1024, THREADS, BLOCKS)
"""128 bytes per thread, eight 16-byte loads; 128 KiB per multiprocessor."""

WHOLE_STREAM, PART_STREAM = Stream(64 * 1024, 256, 2), Stream(32 * 1024, THREADS, 4)
"""The same per multiprocessor where a block has nothing to do but to add up whole planes, however large, or parts of
them: few blocks at a time, for the memory likes few streams. Parts of rows with gaps between them as well as planes."""

PLANES_STREAM, SHORT_PLANE = Stream(32 * 1024, 256, 4), 64
"""The same for neighbouring planes (channels_last) of more than so many elements: rows enough for its threads."""

SMALL_BANDS_STREAM, SMALL_PLANE = Stream(8 * 1024, THREADS, BLOCKS), 256
"""Bands of planes of at most so many elements, of which a block would have so many that their ends take longer than
their stream."""

ROOMY_STREAM, FEW_TAPS = Stream(16 * 1024, THREADS, 2), 16
"""Bands of float64, or of more than so many taps: as many registers as there are, for their sums and weights."""

SMALL_STREAM, SMALL_BYTES = Stream(8 * 1024, 32, 8), 16 * 1024
"""Where a block has a plane of at most so many bytes to itself, and contracts its bands: what follows the
stream takes as many instructions per warp however little came before it, so there is one."""

PAIR_STREAM, PAIRS = Stream(32 * 1024, THREADS, 4, planes=2), 32
"""Float32 planes of at least PART_BYTES, where a group has at least so many pairs of parts: half as many blocks with
twice the bytes in flight, and half as many rows to finish. Not so in Triton, whose programs take longer over a
plane's end."""

PART_BYTES = 64 * 1024
"""Bytes of a plane that one block reads: long enough to hide its start and end, short enough that
one large sample already fills the card."""

WHOLE_BYTES, WHOLE_PLANES = 256 * 1024, 128
"""Planes up to so many bytes stay whole where one sample has so many of them: no finish is needed, and
there are blocks enough for a card all the same."""

FLAT_BYTES = 8 * 1024
"""Bytes of small planes that a block reads in one run."""

KEPT = 4096
"""Numbers per column and kernel row (BP x KH x BC) that band_fill keeps in shared memory: 16 KiB."""

FINISH, BANDS_FINISH = 32, 16
"""Partial results that a thread of the last block loads at a time: fewer where it still holds sums of its own."""


@dataclass(frozen=True)
class Tile:
    """BP planes x BR rows x BC columns per step; ROWS rows x BC columns per block; parts per plane."""

    BP: int
    BR: int
    BC: int
    ROWS: int
    parts: int
    stream: Stream

    def blocks(self, planes: int) -> int:
        """Blocks for one sample and one group of `planes` planes, without the parts."""
        return ceil(planes / self.BP)


def tile(
    layout: Layout,
    planes: int,
    itemsize: int,
    kernel: tuple[int, int] | None = None,
    own: Stream | None = None,
) -> Tile:
    """Tile for `planes` planes of `layout`: whole planes, or the bands of a kernel; by its own stream if given."""
    whole = kernel is None and layout.w == 1
    uncut = whole and layout.unit == "rows" and layout.h * itemsize <= WHOLE_BYTES and planes >= WHOLE_PLANES
    if own:
        stream = own
    elif kernel and (kernel[0] * kernel[1] > FEW_TAPS or itemsize == 8):
        stream = ROOMY_STREAM
    elif layout.unit == "planes":
        stream = STREAM if kernel or layout.h <= SHORT_PLANE else PLANES_STREAM
    elif kernel:
        stream = SMALL_BANDS_STREAM if layout.h * layout.w <= SMALL_PLANE else STREAM
    else:
        stream = WHOLE_STREAM if uncut or not whole else PART_STREAM
    # Half-precision bands keep twice the accumulators per byte: half the bytes, or registers spill; not so
    # of neighbouring planes, where a thread has fewer columns.
    size = stream.bytes // (itemsize if whole or layout.unit == "planes" else max(itemsize, 4))
    kept = pow2_at_most(KEPT // (kernel[0] if kernel else 1))
    c, h, w = pow2_at_least(planes), pow2_at_least(layout.h), pow2_at_least(layout.w)
    if layout.unit == "planes":
        # 256 bytes of neighbouring planes are two whole lines of the L2; bands take 32 planes, in float32
        # one line, to have more columns and fewer parts to add.
        BP = min(c, 256 // itemsize if whole else 128 // max(itemsize, 4))
        BC = min(w, max(1, kept // BP), max(1, stream.threads * layout.vector // BP))
        BR = min(h, max(1, size // (BP * BC)))
    elif layout.unit == "rows":
        BR, BC = min(h, size), 1
        # At least 16 lanes stay on one plane, so that their loads share whole sectors.
        lanes = min(16, max(1, BR // layout.vector))
        BP = min(c, max(1, size // BR), max(1, stream.threads // lanes))
    else:
        BC = min(w, 1024, stream.threads * layout.vector, kept)
        BR = min(h, max(1, size // BC))
        BP = min(
            c, max(1, size // (BR * BC)), max(1, kept // BC), max(1, stream.threads * layout.vector // BC)
        )
    # Bands of neighbouring planes: longer parts, since the last block adds all of a block's planes at once.
    part = PART_BYTES * (2 if layout.unit == "planes" and not whole else 1)
    ROWS = max(BR, part // itemsize // (BP * BC))
    if uncut:
        ROWS = layout.h
    ROWS = min(ROWS, ceil(layout.h / BR) * BR)
    return Tile(BP, BR, BC, ROWS, ceil(layout.h / ROWS) * ceil(layout.w / BC), stream)


@dataclass(frozen=True)
class Flat:
    """BP planes per block, read in accesses of VEC elements, of which FOLD at a time belong to one plane."""

    BP: int
    FOLD: int
    VEC: int


def flat(layout: Layout, itemsize: int) -> Flat | None:
    """How to read small planes as one run of memory, or None if they are not small or not adjacent.

    Only where a plane is too short, or of too odd a size, for a tile of its own to be read in wide loads.
    """
    plane = layout.h
    if layout.w != 1 or layout.unit != "rows" or layout.stride[1] != plane or plane > 1024 or layout.c < 2:
        return None
    BP = min(pow2_at_least(layout.c), pow2_at_most(FLAT_BYTES // max(itemsize, 4) // plane))
    VEC = gcd(layout.first, BP * plane, layout.c * plane, layout.stride[0] if layout.n > 1 else 0)
    return Flat(BP, gcd(VEC, plane), VEC)


@dataclass(frozen=True)
class Contraction:
    """BN samples x BCO outputs, or BK (ci, tap) pairs, per block of the small matrix products; up to STEPS times BK
    pairs are loaded together."""

    BN: int
    BCO: int
    BK: int
    BLOCKS: int
    STEPS: int = 1


CONTRACT = Contraction(BN=4, BCO=32, BK=16, BLOCKS=4, STEPS=16)
"""Few samples and outputs per block because there are few: blocks enough for a card come of few products each. A thread
has the registers to load all its weights of a step at once, and then all its rows of the finish."""

CONTRACT_MANY, MANY = Contraction(BN=8, BCO=64, BK=16, BLOCKS=4, STEPS=2), 256
"""The same where it makes more blocks than so many, two for each multiprocessor of a large card, of outputs that would
not fit CONTRACT's: products that share what they read, as many as a thread has registers for. They are added in the
same order."""

MIN_SLICE, SLICES = 64, 32
"""Products of one output that a block adds up at least, and partial products of one output at most: the last
block has to add them up."""

EXPAND = Contraction(BN=4, BCO=32, BK=32, BLOCKS=4)
"""A warp reads neighbouring (ci, tap) pairs; the warps split the sum over the outputs, of which a thread has the
registers to load eight at a time."""

WEIGHT_GRAD = 8
"""Samples that a thread of weight_grad loads at a time."""


def slice_of(problem: Chain) -> int:
    """Products of one output that one block of `contract` adds up: MIN_SLICE, or several times that, where it would
    make too many slices."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    return MIN_SLICE * ceil(length / (MIN_SLICE * SLICES))


def contraction(problem: Chain) -> Contraction:
    """How `contract` works on a problem: with no more STEPS than divide a slice."""
    samples, tiles, slices = contract_grid(problem, CONTRACT_MANY)
    wide = problem.c_out // problem.groups > CONTRACT.BCO
    chosen = CONTRACT_MANY if wide and samples * tiles * slices > MANY else CONTRACT
    return replace(chosen, STEPS=gcd(slice_of(problem) // chosen.BK, chosen.STEPS))


def contract_grid(problem: Chain, step: Contraction) -> tuple[int, int, int]:
    """Blocks of `contract` along the samples, the outputs of all groups, and the products of one output."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    tiles = problem.groups * ceil(problem.c_out // problem.groups / step.BCO)
    return ceil(problem.n / step.BN), tiles, ceil(length / slice_of(problem))


def contract_depth(problem: Chain) -> int:
    """Additions in a row when `contract` sums its products: a thread's own, those of the BK threads, the slices."""
    length = problem.c_in // problem.groups * problem.kernel[0] * problem.kernel[1]
    SLICE = slice_of(problem)
    return SLICE // CONTRACT.BK + CONTRACT.BK + ceil(length / SLICE)


def own_tile(problem: Chain, layout: Layout, itemsize: int) -> Tile:
    """Tile of one plane, for `band_sums_contract`."""
    size, planes = layout.h * layout.w * itemsize, problem.c_in // problem.groups
    few_outputs = pow2_at_least(problem.c_out // problem.groups) <= SMALL_STREAM.threads
    if size <= SMALL_BYTES and few_outputs:
        return tile(layout, 1, itemsize, problem.kernel, SMALL_STREAM)
    one = tile(layout, 1, itemsize, problem.kernel)
    paired = planes % 2 == 0 and size >= PART_BYTES and planes // 2 * one.parts >= PAIRS
    if paired and itemsize == 4 and one.stream == STREAM:
        return tile(layout, 1, itemsize, problem.kernel, PAIR_STREAM)
    return one


def one_launch(problem: Chain, layout: Layout, chosen: Tile) -> bool:
    """Whether each block contracts its own band sums and the last one of a sample finishes.

    That reads the weights of a plane once per sample and part, so they must be small beside the part
    (a half: L2 gives that away), one thread per output, and leave few rows to the finish. `chosen`
    is a tile of one plane; where neighbouring planes share lines, that would waste them.
    """
    taps = problem.kernel[0] * problem.kernel[1]
    ci, co = problem.c_in // problem.groups, problem.c_out // problem.groups
    part = min(chosen.ROWS, problem.h) * min(chosen.BC, problem.w)
    return (
        layout.unit != "planes"
        and co * taps * 2 <= part
        and pow2_at_least(co) <= chosen.stream.threads
        and ci // chosen.stream.planes * chosen.parts * co <= 16 * 1024
    )


def _tree(count: int) -> int:
    return pow2_at_least(count).bit_length() - 1


def _stream(chosen: Tile, vector: int, unit: str, height: int) -> tuple[int, int]:
    """Additions in a row of one thread over a column (or a run along the rows), and how many threads share it."""
    planes, rows, columns = (vector if unit == axis else 1 for axis in ("planes", "rows", "columns"))
    lanes = min(chosen.stream.threads // (chosen.BP // planes * (chosen.BC // columns)), chosen.BR // rows)
    return ceil(min(chosen.ROWS, height) / (lanes * rows)) + rows - 1, lanes


def _finish(rows: int, width: int, threads: int) -> int:
    count = max(1, threads // width)
    return ceil(rows / count) + _tree(count)


def tail_depth(layout: Layout, chosen: Tile | Flat) -> int:
    """Longest chain of additions behind one output of multiply_gap or multiply_gap_flat."""
    if isinstance(chosen, Flat):
        lanes = max(1, min(32, THREADS // chosen.BP))
        return chosen.FOLD - 1 + ceil(layout.h // chosen.FOLD / lanes) + _tree(lanes)
    finish = _finish(chosen.parts, chosen.BP, chosen.stream.threads) if chosen.parts > 1 else 0
    own, lanes = _stream(chosen, layout.vector, layout.unit, layout.h)
    return own + _tree(lanes) + _tree(chosen.BC) + finish


def _band_depth(problem: Chain, layout: Layout, chosen: Tile) -> int:
    """Longest chain of additions behind one band sum of one part."""
    bands = problem.bands(0)
    # The rims of kernel row kh: what its band holds outside the core, one addition per row.
    core = max(0, bands[-1][1] - bands[0][0])
    rims = max(0, *(hi - lo for lo, hi in bands)) - core
    vector = layout.vector if layout.unit == "columns" else 1
    own, lanes = _stream(chosen, layout.vector, layout.unit, layout.h)
    return own + vector + _tree(chosen.BC) + lanes + rims


def chain_depth(problem: Chain, layout: Layout, chosen: Tile, own: Tile | None) -> int:
    """Longest chain of additions behind one output: of band_sums and contract with tile `chosen`, and
    of band_sums_contract with tile `own` if it is used, whichever is longer."""
    ci, co = problem.c_in // problem.groups, problem.c_out // problem.groups
    taps = problem.kernel[0] * problem.kernel[1]
    depth = _band_depth(problem, layout, chosen) + chosen.parts + contract_depth(problem)
    if own is not None:
        count = own.stream.threads // pow2_at_least(co)
        products = own.stream.planes * ceil(taps / count) + _tree(count)
        finish = _finish(ci // own.stream.planes * own.parts, pow2_at_least(co), own.stream.threads)
        depth = max(depth, _band_depth(problem, layout, own) + products + finish)
    # The bias is one more.
    return depth + 1
