"""The Triton kernels. cupy_impl/kernels.cu is the same file in CUDA C++: same names, order, steps.

    multiply_gap         out[n, c]  = multiplier / (H*W) * sum of y[n, c]
    multiply_gap_flat    the same, for small planes that lie one behind the other
    band_sums            T[n, ci, rb, cb] = sum of x[n, ci] over row band rb and column band cb
    contract             out[n, co] = multiplier * (bias[co] + 1/(Hout*Wout) * sum of T * weight)
    band_sums_contract   both in one launch, for weights that are small beside the planes
    planes_contract      both in one launch, for planes so small that a program holds many: a matrix product
    expand               d[n, ci, rb, cb] = multiplier/(Hout*Wout) * sum over co of grad * weight
    band_fill            dx[n, ci, h, w]  = sum of d[n, ci] over the bands that hold (h, w)
    weight_grad          dweight[ci, co, kh, kw] = multiplier/(Hout*Wout) * sum over n of grad * T,
                         dbias[co] = multiplier * sum over n of grad

Sizes and strides are run-time arguments, or constants where a launch is fixed (fixed.py). Compiled code
depends on the dtype, on how many elements an access has and along which axis, on the tile, and on the bands:
row band rb is rows [BEFORE_H[rb], H - AFTER_H[rb]), and is what the kernel rows [TAPS_H[rb], TAPS_H[rb + 1])
see; columns likewise. Taps of one band are added before they meet T (FOLD), BT at a time where a program does not hold
whole kernels; of large kernels with few channels, each tap meets T by itself.

A program that reads planes has BP of them and walks down their rows in steps of R lines of L positions. A
line holds `lines` whole rows of `cols` columns, one behind the other, and what is left of it is idle; so a
thread keeps its columns, and bands of columns cost nothing in the stream. A plane of more than `rows` x
`cols` elements is cut in parts. Planes stored column by column come with rows and columns SWAPPED, and only
taps and bands keep their places. A group of the convolution is a run of CI planes in and CO planes out.
Offsets up to the first row of a part are 64-bit; inside a part, row and column numbers are 32-bit. Divisors
come as pairs: the number, and what `quotient` multiplies by.
"""

import triton
import triton.language as tl


@triton.jit
def quotient(i, by):
    """i // d for 0 <= i < 2^31, of `by` = prepare.divisor(d): a multiplication, for a division is slow."""
    return ((i.to(tl.int64) * (by & 0xFFFFFFFF)) >> (by >> 32)).to(tl.int32)


@triton.jit
def rolled(count):
    """The end of a loop, `count`, as the compiler does not know it: it would write the loop out, and code that is
    long comes late from memory."""
    return count * tl.num_programs(1)


@triton.jit
def pick(TABLE: tl.constexpr, i):
    """TABLE[i] for an i that is known only at run time, a number or a tensor."""
    found = tl.full((), TABLE[0], tl.int64) + 0 * i
    for k in tl.static_range(1, len(TABLE)):
        found = tl.where(i >= k, TABLE[k], found)
    return found


@triton.jit
def band_of(k, TAPS: tl.constexpr):
    """The band of kernel index k."""
    # Chosen, not counted: LLVM would pack what is counted in bits, and these in local memory.
    band = 0 * k
    for b in tl.static_range(1, len(TAPS) - 1):
        band = tl.where(k >= TAPS[b], b, band)
    return band


@triton.jit
def bands_of(tap, KW: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr):
    """The row band and the column band of a tap."""
    return band_of(tap // KW, TAPS_H), band_of(tap % KW, TAPS_W)


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """A float64 value in dtype, to nearest even. By hand for bfloat16, which Triton's interpreter would
    truncate."""
    if dtype == tl.float64:
        return value
    value = value.to(tl.float32)
    if dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        rounded = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        return tl.where(value == value, rounded, value.to(tl.bfloat16))
    return value.to(dtype)


@triton.jit
def scaled(value, scale):
    """value * scale in float64: one rounding, at the store, and no overflow on the way."""
    return value.to(tl.float64) * tl.full((), scale, tl.float64)


@triton.jit
def clip(lo, hi, start, length):
    """[lo, hi) inside [start, start + length), counted from start."""
    lo = tl.minimum(tl.maximum(lo - start, 0), length)
    hi = tl.minimum(tl.maximum(hi - start, 0), length)
    return lo.to(tl.int32), hi.to(tl.int32)


@triton.jit
def locate(blocks, blocks_by, parts, parts_by, cuts, cuts_by):
    """Place of this program: parts run fastest, then blocks of planes, then samples (or pairs of sample and
    group)."""
    tile = quotient(tl.program_id(0), parts_by)
    part = tl.program_id(0) - tile * parts
    n = quotient(tile, blocks_by)
    across = quotient(part, cuts_by)
    return tile, part, n, tile - n * blocks, part - across * cuts, across


@triton.jit
def deal(R: tl.constexpr, L: tl.constexpr, cols, cols_by, lines):
    """The positions [1, R, L] of a step, counted without the idle ones, their rows and columns, and which are
    not idle."""
    along = tl.arange(0, L)[None, None, :]
    down = tl.arange(0, R)[None, :, None]
    row = quotient(along, cols_by)
    used = lines * cols
    return down * used + along, down * lines + row, along - row * cols, along < used


@triton.jit
def address(
    position, row, col, stride_h, stride_w, RUN: tl.constexpr, ALONG: tl.constexpr, VEC: tl.constexpr,
    PAIR: tl.constexpr,
):  # fmt: skip
    """Offsets of positions [1, R, L]. RUN: rows lie one behind the other. ALONG: accesses run along rows, not
    planes. PAIR: see `follow`."""
    if RUN:
        at = position
    else:
        at = row.to(tl.int64) * stride_h + col.to(tl.int64) * stride_w
        if ALONG:
            # That VEC neighbours are adjacent is true, and makes accesses as wide; where VEC is 1, see `follow`.
            NEAR: tl.constexpr = VEC if VEC > 1 else PAIR
            at = tl.multiple_of(tl.max_contiguous(at, (1, 1, NEAR)), (1, 1, VEC))
    return at


@triton.jit
def in_part(col, width, RUN: tl.constexpr, ALONG: tl.constexpr, VEC: tl.constexpr):
    """Which positions are inside a part: all of a run's. An access is, or is not."""
    if RUN:
        found = tl.full((1, 1, 1), 1, tl.int1)
    else:
        found = col < width
        if ALONG:
            found = tl.max_constancy(found, (1, 1, VEC))
    return found


@triton.jit
def stream(ptrs, position, live, lo, hi, cols, step, stride_h, FULL: tl.constexpr, ACC: tl.constexpr,
           UNROLL: tl.constexpr):  # fmt: skip
    """Sum of rows [lo, hi), still spread over the positions of a step. What idle ones hold means nothing.

    FULL: no position is idle. Else masks, without a value for what is not loaded, which would cost a register
    each time.
    """
    acc = tl.zeros(ptrs.shape, ACC)
    hi = rolled(hi)
    advance = step * stride_h
    ptrs += lo * stride_h
    if UNROLL > 1:
        for _ in range(lo, hi - UNROLL * step + 1, UNROLL * step):
            held = ()
            for u in tl.static_range(UNROLL):
                if FULL:
                    held += (tl.load(ptrs + u * advance, eviction_policy="evict_first"),)
                else:
                    held += (tl.load(ptrs + u * advance, mask=live, eviction_policy="evict_first"),)
            for u in tl.static_range(UNROLL):
                acc += held[u].to(ACC)
            ptrs += UNROLL * advance
            lo += UNROLL * step
    # The rest, or all where a step is one load: the same code a second time would come late from memory.
    for _ in range(lo, hi, UNROLL * step):
        held = ()
        for u in tl.static_range(UNROLL):
            left = live & (position < (hi - lo - u * step) * cols)
            held += (tl.load(ptrs + u * advance, mask=left, other=0, eviction_policy="evict_first"),)
        for u in tl.static_range(UNROLL):
            acc += held[u].to(ACC)
        ptrs += UNROLL * advance
        lo += UNROLL * step
    return acc


@triton.jit
def split_rows(r0, rows, H, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr):
    """Rows of a part that bands hold, counted from r0: (core_lo, core_hi, rim_lo, top, rims).

    BEFORE_H falls and AFTER_H grows, so [BEFORE_H[0], H - AFTER_H[-1]) is in every band: the core. The few
    rows before and after it are in some: the rims, `top` of them before it. Where the core is empty, the rims
    hold everything.
    """
    LAST: tl.constexpr = len(BEFORE_H) - 1
    core_lo, core_hi = clip(BEFORE_H[0], tl.maximum(H - AFTER_H[LAST], BEFORE_H[0]), r0, rows)
    rim_lo, rim_hi = clip(BEFORE_H[LAST], H - AFTER_H[0], r0, rows)
    top = core_lo - rim_lo
    return core_lo, core_hi, rim_lo, top, top + tl.maximum(rim_hi - core_hi, 0)


@triton.jit
def inside(position, band, BEFORE: tl.constexpr, AFTER: tl.constexpr, start, length, size):
    """Which positions, counted from `start`, are in a band of an axis of `size`. Only the first `length`
    count."""
    lo, hi = clip(pick(BEFORE, band), size - pick(AFTER, band), start, length)
    return (position >= lo) & (position < hi)


@triton.jit
def load_rims(planes, live, j0, core_hi, rim_lo, top, rims, width, stride_h, stride_w, RIMS: tl.constexpr,
              LR: tl.constexpr):  # fmt: skip
    """RIMS rim rows of at most LR columns, from number j0 on: [BP, RIMS, LR], and which rows these are, [1,
    RIMS]."""
    j = j0 + tl.arange(0, RIMS)[None, :]
    row = tl.where(j < top, rim_lo + j, core_hi + j - top)
    col = tl.arange(0, LR)[None, None, :]
    at = row[:, :, None].to(tl.int64) * stride_h + col.to(tl.int64) * stride_w
    return tl.load(planes + at, mask=live & (j < rims)[:, :, None] & (col < width), other=0), row


@triton.jit
def column_sums(core, rims, L: tl.constexpr, LR: tl.constexpr, cb, cols, cols_by, lines, c0, width, W,
                BEFORE_W: tl.constexpr, AFTER_W: tl.constexpr):  # fmt: skip
    """Sums over column band cb: of the core's lines, [BP], and of each rim row, [BP, RIMS]."""
    along = tl.arange(0, L)[None, :]
    col = tl.where(along < lines * cols, along - quotient(along, cols_by) * cols, -1)
    own = tl.where(inside(col, cb, BEFORE_W, AFTER_W, c0, width, W), core, 0)
    rim = tl.where(inside(tl.arange(0, LR)[None, None, :], cb, BEFORE_W, AFTER_W, c0, width, W), rims, 0)
    return tl.sum(own, 1), tl.sum(rim, 2)


@triton.jit
def rows_in_band(sums, row, rb, r0, rows, H, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr):
    """Sum of those rim rows that are in row band rb: [BP]."""
    return tl.sum(tl.where(inside(row, rb, BEFORE_H, AFTER_H, r0, rows, H), sums, 0), 1)


@triton.jit
def more_rims(planes, live, rb, cb, core_hi, rim_lo, top, rims, r0, rows, H, c0, width, W, stride_h, stride_w,
              BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, BEFORE_W: tl.constexpr, AFTER_W: tl.constexpr,
              ACC: tl.constexpr, RIMS: tl.constexpr, LR: tl.constexpr):  # fmt: skip
    """What the rim rows after the first RIMS add to a band sum: [BP]."""
    # Rows are added up after the loop: Triton before 3.7 adds the wrong lanes where a loop adds up sums over an axis.
    held = tl.zeros((planes.shape[0], RIMS), ACC)
    for j0 in range(RIMS, rims, RIMS):
        rim, row = load_rims(planes, live, j0, core_hi, rim_lo, top, rims, width, stride_h, stride_w, RIMS, LR)
        own = inside(tl.arange(0, LR)[None, None, :], cb, BEFORE_W, AFTER_W, c0, width, W)
        sums = tl.sum(tl.where(own, rim.to(ACC), 0), 2)
        held += tl.where(inside(row, rb, BEFORE_H, AFTER_H, r0, rows, H), sums, 0)
    return tl.sum(held, 1)


@triton.jit
def arrive(counter, PROGRAMS):
    """True in the last of PROGRAMS programs to come here, which sees all that the others stored before.

    The counter is back at 0 for the next launch.
    """
    # The barrier puts all threads' stores before one thread's release, and its acquire before
    # all threads' loads.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == PROGRAMS - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def add_rows(partials, ROWS, WIDTH, col, mask, FR: tl.constexpr, ACC: tl.constexpr):
    """Sum of partials[ROWS][WIDTH] over the rows, in one order, so that bits do not depend on timing."""
    total = tl.zeros((FR, mask.shape[0]), ACC)
    r = tl.arange(0, FR)[:, None]
    for start in range(0, ROWS, FR):
        ptrs = partials + (start + r).to(tl.int64) * WIDTH + col[None, :]
        # Other multiprocessors wrote these rows: .cg reads them from L2, past a stale L1.
        total += tl.load(ptrs, mask=(start + r < ROWS) & mask[None, :], other=0, cache_modifier=".cg")
    return tl.sum(total, 0)


@triton.jit
def finish(partials, counter, row, ROWS, col, value, WIDTH: tl.constexpr, FR: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """Store one row of partial outputs. The last program to come gets (True, the sum of all rows)."""
    # All of a row: what is in no output costs less than a mask, which would narrow the accesses.
    tl.store(partials + row.to(tl.int64) * WIDTH + col, value)
    last = arrive(counter, ROWS)
    total = tl.zeros((WIDTH,), ACC)
    if last:
        total = add_rows(partials, ROWS, WIDTH, col, tl.full((WIDTH,), 1, tl.int1), FR, ACC)
    return last, total


@triton.jit
def finish_products(acc, partials, counter, split, slices, rows, FR: tl.constexpr):
    """Store one slice of a matrix of outputs, of the first `rows` samples. The last program to come gets
    (True, the sum of all slices, in order)."""
    SIZE: tl.constexpr = acc.shape[0] * acc.shape[1]
    last = slices == 1
    if slices > 1:
        row = tl.arange(0, acc.shape[0])[:, None]
        at = row * acc.shape[1] + tl.arange(0, acc.shape[1])[None, :]
        live = row < rows
        tl.store(partials + split.to(tl.int64) * SIZE + at, acc, mask=live)
        last = arrive(counter, slices)
        if last:
            acc = tl.zeros(acc.shape, acc.dtype)
            ptrs = partials + at
            for first in range(0, slices, FR):
                held = ()
                for s in tl.static_range(FR):
                    own = live & (first + s + 0 * row < slices)
                    held += (tl.load(ptrs + s * SIZE, mask=own, other=0, cache_modifier=".cg"),)
                for s in tl.static_range(FR):
                    acc += held[s]
                ptrs += FR * SIZE
    return last, acc


@triton.jit
def any_wild(value):
    """Whether some element is Inf or NaN, which is what every sum with an Inf or NaN in it is."""
    # A sum, not a count or a choice: LLVM would pack those in bits, and these in local memory.
    return tl.sum(tl.sum(value - value, 1), 0) != 0


@triton.jit
def follow(a, b, PAIR: tl.constexpr):
    """Offsets a + b, [x, y], for lanes to follow y.

    A compiler that would order the lanes otherwise is told that pairs along y are adjacent, though they need not be,
    and that no access may be wider than one element. PAIR is 1 for one that would believe it.
    """
    return tl.multiple_of(tl.max_contiguous(a + b, (1, PAIR)), (1, 1))


@triton.jit
def load_kernels(weights, at, mask, KH: tl.constexpr, KW: tl.constexpr, KK: tl.constexpr, PAIR: tl.constexpr):
    """Whole kernels, whose first taps are at offsets `at` [a, b]: [a, b, KK], KK >= KH * KW; and their taps."""
    tap = tl.arange(0, KK)[None, None, :]
    # Accesses are as wide as a kernel lets them be. PAIR: see `follow`.
    WIDE: tl.constexpr = KK if KK == KH * KW else 1
    at = tl.multiple_of(tl.max_contiguous(at[:, :, None] + tap, (1, PAIR, KK)), (1, 1, WIDE))
    return tl.load(weights + at, mask=mask[:, :, None] & (tap < KH * KW), other=0), tap


@triton.jit
def load_taps(weights, at, mask, band: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TAPS_H: tl.constexpr,
              TAPS_W: tl.constexpr, PAIR: tl.constexpr):  # fmt: skip
    """Each tap of a band, of kernels whose first taps are at offsets `at` [a, b]: a tuple of [a, b]."""
    CB: tl.constexpr = len(TAPS_W) - 1
    taps = ()
    for tap in tl.static_range(KH * KW):
        if (tap // KW >= TAPS_H[band // CB] and tap // KW < TAPS_H[band // CB + 1]
                and tap % KW >= TAPS_W[band % CB] and tap % KW < TAPS_W[band % CB + 1]):  # fmt: skip
            taps += (tl.load(weights + follow(at, tap, PAIR), mask=mask, other=0),)
    return taps


@triton.jit
def add_taps(taps, ACC: tl.constexpr):
    """Sum of the taps of a band, in their order."""
    total = taps[0].to(ACC)
    for i in tl.static_range(1, len(taps)):
        total += taps[i].to(ACC)
    return total


@triton.jit
def fold(kernels, band_of_tap, band, H, W, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, BEFORE_W: tl.constexpr,
         AFTER_W: tl.constexpr, EMPTY: tl.constexpr):  # fmt: skip
    """Sums of the taps of a band: [a, b]. EMPTY: bands may hold nothing; a weight that never meets x is left out."""
    folded = tl.sum(tl.where(band_of_tap == band, kernels, 0), 2)
    if EMPTY:
        CB: tl.constexpr = len(BEFORE_W)
        live = lands(band // CB, band % CB, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
        folded = tl.where(live, folded, 0)
    return folded


@triton.jit
def fold_many(weights, at, mask, band, KW: tl.constexpr, TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, BT: tl.constexpr,
              PAIR: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Sums of the taps of a band, BT at a time, of kernels whose first taps are at offsets `at` [a, b]: [a, b]."""
    CB: tl.constexpr = len(TAPS_W) - 1
    top = pick(TAPS_H, band // CB).to(tl.int32)
    left = pick(TAPS_W, band % CB).to(tl.int32)
    across = pick(TAPS_W, band % CB + 1).to(tl.int32) - left
    taps = (pick(TAPS_H, band // CB + 1).to(tl.int32) - top) * across
    # Added up after the loop: Triton before 3.7 adds the wrong lanes where a loop adds up sums over an axis.
    held = tl.zeros((at.shape[0], at.shape[1], BT), ACC)
    for t0 in range(0, taps, BT):
        t = t0 + tl.arange(0, BT)
        tap = (top + t // across) * KW + left + t % across
        # PAIR: see `follow`.
        own = tl.multiple_of(tl.max_contiguous(at[:, :, None] + tap[None, None, :], (1, 1, PAIR)), (1, 1, 1))
        held += tl.load(weights + own, mask=mask[:, :, None] & (t < taps)[None, None, :], other=0).to(ACC)
    return tl.sum(held, 2)


@triton.jit
def lands(rb, cb, H, W, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, BEFORE_W: tl.constexpr,
          AFTER_W: tl.constexpr):  # fmt: skip
    """Whether the bands hold anything: a weight that never meets x must not turn 0 into NaN."""
    rows = pick(BEFORE_H, rb) + pick(AFTER_H, rb) < H
    return rows & (pick(BEFORE_W, cb) + pick(AFTER_W, cb) < W)


@triton.jit
def scale_and_store(total, out, bias, multiplier, n, co, live, G, g, CO, mult_n, mult_c, scale, bias_scale,
                    BIAS: tl.constexpr, TENSOR: tl.constexpr,
                    ACC: tl.constexpr):  # fmt: skip
    """Steps 6 and 7 of outputs co of group g, of samples n."""
    c = g * CO + co
    # 6 scale and bias
    mean = scaled(total, scale)
    if BIAS:
        # Cast right after the load: the interpreter's bfloat16 arithmetic is wrong.
        b = tl.load(bias + c, mask=co < CO, other=0).to(ACC)
        mean += scaled(b, bias_scale)
    if TENSOR:
        mean *= tl.load(multiplier + n * mult_n + c * mult_c, mask=live, other=0).to(tl.float64)
    # 7 store
    tl.store(out + n * (G * CO) + c, narrow(mean, out.dtype.element_ty), mask=live)


@triton.jit
def multiply_gap(y, out, partials, counters, multiplier, mult_n, mult_c, scale,
                 C, H, W, stride_n, stride_c, stride_h, stride_w, rows, cols, cols_by, lines, step, blocks, blocks_by,
                 parts, parts_by, cuts, cuts_by,
                 TENSOR: tl.constexpr, ACC: tl.constexpr, RUN: tl.constexpr, ALONG: tl.constexpr, BP: tl.constexpr, R: tl.constexpr,
                 L: tl.constexpr, VEC: tl.constexpr, PAIR: tl.constexpr, UNROLL: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    # 1 who am I
    tile, part, n, block, down, across = locate(blocks, blocks_by, parts, parts_by, cuts, cuts_by)
    n = n.to(tl.int64)
    c = block * BP + tl.arange(0, BP)
    r0 = down.to(tl.int64) * rows
    c0 = across.to(tl.int64) * cols
    rows = tl.minimum(H - r0, rows).to(tl.int32)
    # 2 addresses
    position, row, col, busy = deal(R, L, cols, cols_by, lines)
    planes = y + n * stride_n + c.to(tl.int64)[:, None, None] * stride_c + r0 * stride_h + c0 * stride_w
    # A run is read in rows as long as an access, so that no position of a step is idle.
    live = (c < C)[:, None, None]
    if not RUN:
        live &= busy & in_part(col, W - c0, RUN, ALONG, VEC)
    # 3 masked load, 4 accumulate
    ptrs = planes + address(position, row, col, stride_h, stride_w, RUN, ALONG, VEC, PAIR)
    lo = tl.full((), 0, tl.int32)
    acc = stream(ptrs, position, live, lo, rows, cols, step, stride_h, RUN and BP == 1, ACC, UNROLL)
    # 5 reduce
    if not RUN:
        acc = tl.where(live, acc, 0)
    total = tl.sum(tl.sum(acc, 1), 1)
    last = parts == 1
    if parts > 1:
        partials += tile.to(tl.int64) * parts * BP
        last, total = finish(partials, counters + tile, part, parts, tl.arange(0, BP), total, BP, FR, ACC)
    if last:
        # 6 scale
        mean = scaled(total, scale)
        if TENSOR:
            mean *= tl.load(multiplier + n * mult_n + c.to(tl.int64) * mult_c, mask=c < C, other=0).to(tl.float64)
        # 7 store
        tl.store(out + n * C + c, narrow(mean, out.dtype.element_ty), mask=c < C)


@triton.jit
def multiply_gap_flat(y, out, partials, counters, multiplier, mult_n, mult_c, scale,
                      C, plane, stride_n, blocks, blocks_by,
                      TENSOR: tl.constexpr, ACC: tl.constexpr, PLANES: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip
    # 1 who am I: small planes that lie one behind the other
    n = quotient(tl.program_id(0), blocks_by)
    c = (tl.program_id(0) - n * blocks) * PLANES + tl.arange(0, PLANES)
    n = n.to(tl.int64)
    # 2 addresses
    position = tl.arange(0, SIZE)[None, :]
    ptrs = y + n * stride_n + c.to(tl.int64)[:, None] * plane + position
    # 3 masked load
    mask = (c < C)[:, None] & (position < plane)
    run = tl.load(ptrs, mask=mask, other=0, eviction_policy="evict_first").to(ACC)
    # 4 accumulate, 5 reduce
    total = tl.sum(run, 1)
    # 6 scale
    mean = scaled(total, scale)
    if TENSOR:
        mean *= tl.load(multiplier + n * mult_n + c.to(tl.int64) * mult_c, mask=c < C, other=0).to(tl.float64)
    # 7 store
    tl.store(out + n * C + c, narrow(mean, out.dtype.element_ty), mask=c < C)


@triton.jit
def band_sums(x, sums, partials, counters,
              C, H, W, stride_n, stride_c, stride_h, stride_w, rows, cols, cols_by, lines, step, blocks, blocks_by,
              parts, parts_by, cuts, cuts_by,
              ACC: tl.constexpr, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, BEFORE_W: tl.constexpr,
              AFTER_W: tl.constexpr, SWAPPED: tl.constexpr, RUN: tl.constexpr, ALONG: tl.constexpr, WHOLE: tl.constexpr, SPLIT: tl.constexpr,
              BP: tl.constexpr, R: tl.constexpr, L: tl.constexpr, VEC: tl.constexpr, PAIR: tl.constexpr, UNROLL: tl.constexpr,
              RIMS: tl.constexpr, LR: tl.constexpr, WIDTH: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # 1 who am I
    tile, part, n, block, down, across = locate(blocks, blocks_by, parts, parts_by, cuts, cuts_by)
    n = n.to(tl.int64)
    c = block * BP + tl.arange(0, BP)
    r0 = down.to(tl.int64) * rows
    c0 = across.to(tl.int64) * cols
    rows = tl.minimum(H - r0, rows).to(tl.int32)
    width = tl.minimum(W - c0, cols).to(tl.int32)
    # 2 addresses
    position, row, col, busy = deal(R, L, cols, cols_by, lines)
    planes = x + n * stride_n + c.to(tl.int64)[:, None, None] * stride_c + r0 * stride_h + c0 * stride_w
    ptrs = planes + address(position, row, col, stride_h, stride_w, RUN, ALONG, VEC, PAIR)
    live = (c < C)[:, None, None]
    # From here on a block's first plane is number 0, in sums and in partials alike.
    sums += (n * C + block * BP) * (RB * CB)
    partials += tile.to(tl.int64) * parts * (BP * RB * CB)
    to = partials + part * (BP * RB * CB) if SPLIT else sums
    to += tl.arange(0, BP) * (RB * CB)
    if WHOLE:
        # 3 masked load: all of a plane in one line
        plane = tl.load(ptrs, mask=live & (position < rows * cols), other=0, eviction_policy="evict_first").to(ACC)
        for cb in range(rolled(CB)):
            columns = tl.where(inside(col, cb, BEFORE_W, AFTER_W, c0, width, W), plane, 0)
            for rb in range(rolled(RB)):
                # 4 accumulate, 5 reduce
                own = tl.where(inside(row, rb, BEFORE_H, AFTER_H, r0, rows, H), columns, 0)
                # 7 store
                to_band = to + (cb * RB + rb if SWAPPED else rb * CB + cb)
                tl.store(to_band, tl.sum(tl.sum(own, 1), 1), mask=c < C)
    else:
        # 3 masked load, 4 accumulate. The first rims are asked for before the stream and used after it.
        core_lo, core_hi, rim_lo, top, rims = split_rows(r0, rows, H, BEFORE_H, AFTER_H)
        first, first_row = load_rims(planes, live, 0, core_hi, rim_lo, top, rims, width, stride_h, stride_w, RIMS, LR)
        busy = live & busy & in_part(col, width, RUN, ALONG, VEC)
        core = tl.sum(stream(ptrs, position, busy, core_lo, core_hi, cols, step, stride_h, False, ACC, UNROLL), 1)
        first = first.to(ACC)
        for cb in range(rolled(CB)):
            # 5 reduce
            core_sum, first_sums = column_sums(core, first, L, LR, cb, cols, cols_by, lines, c0, width, W, BEFORE_W,
                                               AFTER_W)  # fmt: skip
            for rb in range(rolled(RB)):
                total = core_sum + rows_in_band(first_sums, first_row, rb, r0, rows, H, BEFORE_H, AFTER_H)
                if rims > RIMS:
                    total += more_rims(planes, live, rb, cb, core_hi, rim_lo, top, rims, r0, rows, H, c0, width, W,
                                       stride_h, stride_w, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W, ACC, RIMS, LR)  # fmt: skip
                # 7 store
                tl.store(to + (cb * RB + rb if SWAPPED else rb * CB + cb), total, mask=c < C)
    if SPLIT:
        if arrive(counters + tile, parts):
            # As many sums at a time as one step of add_rows holds: one wait for L2, not one per band.
            for i0 in range(0, BP * RB * CB, WIDTH):
                i = i0 + tl.arange(0, WIDTH)
                real = (i < BP * RB * CB) & (i < (C - block * BP) * (RB * CB))
                finished = add_rows(partials, parts, BP * RB * CB, i, real, FR, ACC)
                tl.store(sums + i, finished, mask=real)


@triton.jit
def locate_products(n_blocks, n_blocks_by, slices, slices_by, blocks, blocks_by):
    """Place of this program: blocks of samples run fastest, then slices of the products of an output, then
    blocks of the outputs of a group, then groups."""
    rest = quotient(tl.program_id(0), n_blocks_by)
    tile = quotient(rest, slices_by)
    g = quotient(tile, blocks_by)
    n_block = tl.program_id(0) - rest * n_blocks
    return n_block, rest - tile * slices, tile - g * blocks, g, tile * n_blocks + n_block


@triton.jit
def products_by_tap(sums, weights, n0, co, first, last, N, G, CI, CO, H, W, KH: tl.constexpr, KW: tl.constexpr,
                    BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, TAPS_H: tl.constexpr, BEFORE_W: tl.constexpr,
                    AFTER_W: tl.constexpr, TAPS_W: tl.constexpr, EMPTY: tl.constexpr, ACC: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                    STEPS: tl.constexpr):  # fmt: skip
    """Products [first, last) of BN samples with outputs co, each tap by itself: k runs over (ci, tap). [BN, BCO]

    For few samples, whose weights are read once: no shared memory, no barrier, STEPS steps of weights under way.
    """
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # A tensor for each sample, so that a thread loads a sum once for all its outputs.
    acc = ()
    for _ in tl.static_range(BN):
        acc += (tl.zeros((co.shape[0], BK), ACC),)
    for k0 in range(first, last, STEPS * BK):
        # 3 masked load: the weights of all steps come first, for they are farther away
        w = ()
        at = ()
        for i in tl.static_range(STEPS):
            k = k0 + i * BK + tl.arange(0, BK)[None, :]
            ci = (k // (KH * KW)).to(tl.int64)
            tap = k % (KH * KW)
            rb, cb = bands_of(tap, KW, TAPS_H, TAPS_W)
            live = k < last
            if EMPTY:
                live &= lands(rb, cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
            w_ptrs = weights + co.to(tl.int64)[:, None] * (KH * KW) + ci * CO * (KH * KW) + tap
            w += (tl.load(w_ptrs, mask=live & (co < CO)[:, None], other=0),)
            at += (tl.where(live, ci * (RB * CB) + rb * CB + cb, -1),)
        for i in tl.static_range(STEPS):
            # 4 accumulate
            more = ()
            for s in tl.static_range(BN):
                mask = (at[i] >= 0) & (n0 + s + 0 * at[i] < N)
                t = tl.load(sums + (n0 + s) * G * CI * (RB * CB) + at[i], mask=mask, other=0)
                more += (acc[s] + t * w[i].to(ACC),)
            acc = more
    total = tl.zeros((BN, co.shape[0]), ACC)
    for s in tl.static_range(BN):
        total = tl.where(tl.arange(0, BN)[:, None] == s, tl.sum(acc[s], 1)[None, :], total)
    return total


@triton.jit
def wild_products(acc, sums, weights, n, co, first, last, N, G, CI, CO, H, W, KH: tl.constexpr, KW: tl.constexpr,
                  BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, TAPS_H: tl.constexpr, BEFORE_W: tl.constexpr,
                  AFTER_W: tl.constexpr, TAPS_W: tl.constexpr, BCI: tl.constexpr):  # fmt: skip
    """Finite elements of acc as they are, the others from channels [first, last), each tap by itself: Inf * w1 + Inf * w2 is
    not Inf * (w1 + w2), and w1 + w2 may overflow. So samples without an Inf keep their bits."""
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    exact = tl.zeros(acc.shape, acc.dtype)
    for ci0 in range(first, last, BCI):
        ci = (ci0 + tl.arange(0, BCI)).to(tl.int64)
        for tap in range(rolled(KH * KW)):
            rb, cb = bands_of(tap, KW, TAPS_H, TAPS_W)
            w_ptrs = weights + (ci[:, None] * CO + co[None, :]) * (KH * KW) + tap
            w = tl.load(w_ptrs, mask=(ci < last)[:, None] & (co < CO)[None, :], other=0).to(acc.dtype)
            w = tl.where(lands(rb, cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W), w, 0)
            t_ptrs = sums + ((n * G * CI)[:, None] + ci[None, :]) * (RB * CB) + rb * CB + cb
            t = tl.load(t_ptrs, mask=(n < N)[:, None] & (ci < last)[None, :], other=0)
            exact = tl.dot(t, w, exact, input_precision="ieee", out_dtype=acc.dtype)
    return tl.where(acc - acc == 0, acc, exact)


@triton.jit
def contract(sums, weight, bias, out, partials, counters, multiplier, mult_n, mult_c, scale, bias_scale,
             N, G, CI, CO, H, W, share, n_blocks, n_blocks_by, slices, slices_by, blocks, blocks_by,
             TENSOR: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
             BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, TAPS_H: tl.constexpr, BEFORE_W: tl.constexpr,
             AFTER_W: tl.constexpr, TAPS_W: tl.constexpr, PAIR: tl.constexpr, EMPTY: tl.constexpr, FOLD: tl.constexpr, KK: tl.constexpr,
             BN: tl.constexpr, BCO: tl.constexpr, BCI: tl.constexpr, BK: tl.constexpr, STEPS: tl.constexpr, BT: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # 1 who am I
    n_block, split, block, g, tile = locate_products(n_blocks, n_blocks_by, slices, slices_by, blocks, blocks_by)
    n = n_block.to(tl.int64) * BN + tl.arange(0, BN)
    co = block * BCO + tl.arange(0, BCO)
    first = split * share
    last = tl.minimum(first + share, CI if FOLD else CI * (KH * KW))
    # 2 addresses
    weight += g.to(tl.int64) * CI * CO * (KH * KW)
    sums += g.to(tl.int64) * CI * (RB * CB)
    acc = tl.zeros((BN, BCO), ACC)
    if FOLD:
        for ci0 in range(first, last, BCI):
            # 3 masked load
            ci = ci0 + tl.arange(0, BCI)
            w_at = (ci.to(tl.int64)[:, None] * CO + co[None, :]) * (KH * KW)
            w_mask = (ci < last)[:, None] & (co < CO)[None, :]
            t_at = ((n * G * CI)[:, None] + ci[None, :]) * (RB * CB)
            mask = (n < N)[:, None] & (ci < last)[None, :]
            t = tl.load(sums + follow(t_at, split * 0, PAIR), mask=mask, other=0)
            # What the next band needs is under way while a band is multiplied.
            if BT:
                # More taps than registers hold.
                for band in range(rolled(RB * CB)):
                    more = mask & (0 * ci + band + 1 < RB * CB)[None, :]
                    following = tl.load(sums + follow(t_at, band + 1, PAIR), mask=more, other=0)
                    w = fold_many(weight, w_at, w_mask, band, KW, TAPS_H, TAPS_W, BT, PAIR, ACC)
                    if EMPTY:
                        live = lands(band // CB, band % CB, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
                        w = tl.where(live, w, 0)
                    # 4 accumulate
                    acc = tl.dot(t, w, acc, input_precision="ieee", out_dtype=ACC)
                    t = following
            elif KH * KW % 4 == 0:
                # Accesses of 16 bytes bring whole kernels, which stay in registers.
                kernels, tap = load_kernels(weight, w_at, w_mask, KH, KW, KK, PAIR)
                kernels = kernels.to(ACC)
                own_rb, own_cb = bands_of(tap, KW, TAPS_H, TAPS_W)
                own = own_rb * CB + own_cb
                for band in range(rolled(RB * CB)):
                    more = mask & (0 * ci + band + 1 < RB * CB)[None, :]
                    following = tl.load(sums + follow(t_at, band + 1, PAIR), mask=more, other=0)
                    # 4 accumulate
                    w = fold(kernels, own, band, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W, EMPTY)
                    acc = tl.dot(t, w, acc, input_precision="ieee", out_dtype=ACC)
                    t = following
            else:
                # Accesses have one element whatever is done, so each band loads its own taps.
                taps = load_taps(weight, w_at, w_mask, 0, KH, KW, TAPS_H, TAPS_W, PAIR)
                for band in tl.static_range(RB * CB):
                    w = add_taps(taps, ACC)
                    following = t
                    if band + 1 < RB * CB:
                        taps = load_taps(weight, w_at, w_mask, band + 1, KH, KW, TAPS_H, TAPS_W, PAIR)
                        following = tl.load(sums + follow(t_at, split * 0 + band + 1, PAIR), mask=mask, other=0)
                    # 4 accumulate
                    if EMPTY:
                        w = tl.where(lands(band // CB, band % CB, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W), w, 0)
                    acc = tl.dot(t, w, acc, input_precision="ieee", out_dtype=ACC)
                    t = following
        if any_wild(acc):
            acc = wild_products(acc, sums, weight, n, co, first, last, N, G, CI, CO, H, W, KH, KW, BEFORE_H, AFTER_H, TAPS_H,
                                BEFORE_W, AFTER_W, TAPS_W, BCI)  # fmt: skip
    else:
        acc = products_by_tap(sums, weight, n_block.to(tl.int64) * BN, co, first, last, N, G, CI, CO, H, W, KH, KW, BEFORE_H,
                              AFTER_H, TAPS_H, BEFORE_W, AFTER_W, TAPS_W, EMPTY, ACC, BN, BK, STEPS)  # fmt: skip
    # 5 reduce
    live = (n < N)[:, None] & (co < CO)[None, :]
    done, total = finish_products(acc, partials + tile.to(tl.int64) * slices * (BN * BCO), counters + tile, split,
                                  slices, N - n_block * BN, FR)  # fmt: skip
    if done:
        scale_and_store(total, out, bias, multiplier, n[:, None], co[None, :], live, G, g.to(tl.int64), CO, mult_n,
                        mult_c, scale, bias_scale, BIAS, TENSOR, ACC)  # fmt: skip


@triton.jit
def band_sums_contract(x, weight, bias, out, partials, counters, multiplier, mult_n, mult_c, scale, bias_scale,
                       G, G_by, CI, CI_by, CO, H, W, stride_n, stride_c, stride_h, stride_w, rows, cols, cols_by, lines,
                       step,                       parts, parts_by, cuts, cuts_by,
                       TENSOR: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
                       BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, TAPS_H: tl.constexpr, BEFORE_W: tl.constexpr,
                       AFTER_W: tl.constexpr, TAPS_W: tl.constexpr, SWAPPED: tl.constexpr, RUN: tl.constexpr, ALONG: tl.constexpr,
                       R: tl.constexpr, L: tl.constexpr, VEC: tl.constexpr, PAIR: tl.constexpr, UNROLL: tl.constexpr,
                       RIMS: tl.constexpr, LR: tl.constexpr, BCO: tl.constexpr, KK: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # 1 who am I: a part of one plane
    tile, part, ng, ci, down, across = locate(CI, CI_by, parts, parts_by, cuts, cuts_by)
    n = quotient(ng, G_by)
    g = (ng - n * G).to(tl.int64)
    n = n.to(tl.int64)
    r0 = down.to(tl.int64) * rows
    c0 = across.to(tl.int64) * cols
    rows = tl.minimum(H - r0, rows).to(tl.int32)
    width = tl.minimum(W - c0, cols).to(tl.int32)
    # 2 addresses
    position, row, col, busy = deal(R, L, cols, cols_by, lines)
    planes = x + n * stride_n + (g * CI + ci) * stride_c + r0 * stride_h + c0 * stride_w + tl.zeros((1, 1, 1), tl.int32)
    ptrs = planes + address(position, row, col, stride_h, stride_w, RUN, ALONG, VEC, PAIR)
    co = tl.arange(0, BCO)
    tap = tl.arange(0, KK)[:, None]
    place = tap % KW * KH + tap // KW if SWAPPED else tap
    weight += (g * CI + ci) * CO * (KH * KW)
    # 3 masked load, 4 accumulate. Weights come first: they arrive while the plane streams.
    w_at = follow(co[None, :] * (KH * KW), place, PAIR)
    w = tl.load(weight + w_at, mask=(co < CO)[None, :] & (tap < KH * KW), other=0)
    core_lo, core_hi, rim_lo, top, rims = split_rows(r0, rows, H, BEFORE_H, AFTER_H)
    live = tl.full((1, 1, 1), 1, tl.int1)
    first, first_row = load_rims(planes, live, 0, core_hi, rim_lo, top, rims, width, stride_h, stride_w, RIMS, LR)
    busy &= in_part(col, width, RUN, ALONG, VEC)
    core = tl.sum(stream(ptrs, position, busy, core_lo, core_hi, cols, step, stride_h, False, ACC, UNROLL), 1)
    first = first.to(ACC)
    # 5 reduce. Each tap gets the sum of its band; a tap whose band is empty gets no weight either.
    own_rb, own_cb = bands_of(tap, KW, TAPS_H, TAPS_W)
    t = tl.zeros((KK, 1), ACC)
    for cb in range(rolled(CB)):
        core_sum, first_sums = column_sums(
            core, first, L, LR, cb, cols, cols_by, lines, c0, width, W, BEFORE_W, AFTER_W
        )
        for rb in range(rolled(RB)):
            total = core_sum + rows_in_band(first_sums, first_row, rb, r0, rows, H, BEFORE_H, AFTER_H)
            if rims > RIMS:
                total += more_rims(planes, live, rb, cb, core_hi, rim_lo, top, rims, r0, rows, H, c0, width, W, stride_h,
                                   stride_w, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W, ACC, RIMS, LR)  # fmt: skip
            t = tl.where((own_rb == rb) & (own_cb == cb), tl.sum(total, 0), t)
    # What is no tap, or never meets x, adds 0, which 0 * Inf is not.
    lives = lands(own_rb, own_cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W) & (tap < KH * KW)
    partial = tl.sum(tl.where(lives, t * w.to(ACC), 0), 0)
    partials += ng.to(tl.int64) * CI * parts * BCO
    last, total = finish(partials, counters + ng, ci * parts + part, CI * parts, co, partial, BCO, FR, ACC)  # fmt: skip
    if last:
        scale_and_store(total, out, bias, multiplier, n, co, co < CO, G, g, CO, mult_n, mult_c, scale, bias_scale, BIAS,
                        TENSOR, ACC)  # fmt: skip


@triton.jit
def load_planes(x, n, ci, end, N, H, W, stride_n, stride_c, stride_h, stride_w, cols_by, RUN: tl.constexpr,
                P: tl.constexpr, VEC: tl.constexpr, PAIR: tl.constexpr):  # fmt: skip
    """Whole planes ci of samples n, up to channel `end`: [BN, BCI, P], and the rows and columns of their
    elements."""
    position = tl.arange(0, P)[None, None, :]
    row = quotient(position, cols_by)
    col = position - row * W.to(tl.int32)
    at = (n * stride_n)[:, None, None] + (ci * stride_c)[None, :, None]
    if RUN:
        # Lanes follow a plane, then the next; see `follow`.
        at = tl.multiple_of(tl.max_contiguous(at + position, (1, PAIR, P)), (1, 1, VEC))
    else:
        at += row.to(tl.int64) * stride_h + col.to(tl.int64) * stride_w
    mask = (n < N)[:, None, None] & (ci < end)[None, :, None] & (position < H * W)
    return tl.load(x + at, mask=mask, other=0), row, col


@triton.jit
def plane_sums(planes, row, col, rb, cb, H, W, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, BEFORE_W: tl.constexpr,
               AFTER_W: tl.constexpr):  # fmt: skip
    """Sums of whole planes over row band rb and column band cb."""
    own = inside(row, rb, BEFORE_H, AFTER_H, 0, H, H) & inside(col, cb, BEFORE_W, AFTER_W, 0, W, W)
    return tl.sum(tl.where(own, planes, 0), 2)


@triton.jit
def planes_contract(x, weight, bias, out, partials, counters, multiplier, mult_n, mult_c, scale, bias_scale,
                    N, G, CI, CO, H, W, stride_n, stride_c, stride_h, stride_w, cols_by, share, n_blocks, n_blocks_by,
                    slices, slices_by, blocks, blocks_by,
                    TENSOR: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
                    BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, TAPS_H: tl.constexpr, BEFORE_W: tl.constexpr,
                    AFTER_W: tl.constexpr, TAPS_W: tl.constexpr, EMPTY: tl.constexpr, SWAPPED: tl.constexpr,
                    RUN: tl.constexpr, P: tl.constexpr, VEC: tl.constexpr, PAIR: tl.constexpr, KK: tl.constexpr, BN: tl.constexpr, BCO: tl.constexpr, BCI: tl.constexpr,
                    FR: tl.constexpr):  # fmt: skip
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # 1 who am I
    n_block, split, block, g, tile = locate_products(n_blocks, n_blocks_by, slices, slices_by, blocks, blocks_by)
    g = g.to(tl.int64)
    n = n_block.to(tl.int64) * BN + tl.arange(0, BN)
    co = block * BCO + tl.arange(0, BCO)
    start = split * share
    last = tl.minimum(start + share, CI)
    # 2 addresses
    x += g * CI * stride_c
    weight += g * CI * CO * (KH * KW)
    acc = tl.zeros((BN, BCO), ACC)
    for ci0 in range(start, last, BCI):
        # 3 masked load
        ci = ci0 + tl.arange(0, BCI)
        planes, row, col = load_planes(x, n, ci, last, N, H, W, stride_n, stride_c, stride_h, stride_w, cols_by, RUN, P,
                                       VEC, PAIR)  # fmt: skip
        w_at = (ci.to(tl.int64)[:, None] * CO + co[None, :]) * (KH * KW)
        kernels, tap = load_kernels(weight, w_at, (ci < last)[:, None] & (co < CO)[None, :], KH, KW, KK, PAIR)
        kernels = kernels.to(ACC)
        planes = planes.to(ACC)
        own_rb, own_cb = bands_of(tap, KW, TAPS_H, TAPS_W)
        own = own_rb * (len(TAPS_W) - 1) + own_cb
        for band in range(rolled(RB * CB)):
            # 4 accumulate, 5 reduce: band sums, then products
            rb = band % RB if SWAPPED else band // CB
            cb = band // RB if SWAPPED else band % CB
            t = plane_sums(planes, row, col, rb, cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
            w = tl.sum(tl.where(own == band, kernels, 0), 2)
            if EMPTY:
                w = tl.where(lands(rb, cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W), w, 0)
            acc = tl.dot(t, w, acc, input_precision="ieee", out_dtype=ACC)
    if any_wild(acc):
        # Tap by tap, as in `wild_products`.
        by_tap = tl.zeros((BN, BCO), ACC)
        for ci0 in range(start, last, BCI):
            ci = ci0 + tl.arange(0, BCI)
            planes, row, col = load_planes(x, n, ci, last, N, H, W, stride_n, stride_c, stride_h, stride_w, cols_by, RUN,
                                           P, VEC, PAIR)  # fmt: skip
            w_at = (ci.to(tl.int64)[:, None] * CO + co[None, :]) * (KH * KW)
            for k in range(rolled(KH * KW)):
                h, v = bands_of(k, KW, TAPS_H, TAPS_W)
                rb = v if SWAPPED else h
                cb = h if SWAPPED else v
                t = plane_sums(planes.to(ACC), row, col, rb, cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
                live = lands(rb, cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
                own = tl.load(
                    weight + follow(w_at, k, PAIR), mask=(ci < last)[:, None] & (co < CO)[None, :], other=0
                ).to(ACC)
                by_tap = tl.dot(t, tl.where(live, own, 0), by_tap, input_precision="ieee", out_dtype=ACC)
        acc = tl.where(acc - acc == 0, acc, by_tap)
    live = (n < N)[:, None] & (co < CO)[None, :]
    done, total = finish_products(acc, partials + tile.to(tl.int64) * slices * (BN * BCO), counters + tile, split,
                                  slices, N - n_block * BN, FR)  # fmt: skip
    if done:
        scale_and_store(total, out, bias, multiplier, n[:, None], co[None, :], live, G, g, CO, mult_n, mult_c, scale,
                        bias_scale, BIAS, TENSOR, ACC)  # fmt: skip


@triton.jit
def load_grad(grad, n, co, N, last, grad_n, grad_c):
    """Gradients of outputs co, below `last`, of samples n: [n, co]."""
    mask = (n < N)[:, None] & (co < last)[None, :]
    return tl.load(grad + (n * grad_n)[:, None] + (co * grad_c)[None, :], mask=mask, other=0)


@triton.jit
def expand(grad, weight, d, partials, counters, grad_n, grad_c, scale,
           N, G, CI, CO, H, W, share, n_blocks, n_blocks_by, slices, slices_by, blocks, blocks_by,
           ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr,
           TAPS_H: tl.constexpr, BEFORE_W: tl.constexpr, AFTER_W: tl.constexpr, TAPS_W: tl.constexpr, PAIR: tl.constexpr,
           KK: tl.constexpr, BN: tl.constexpr, BCI: tl.constexpr, BB: tl.constexpr, BCO: tl.constexpr, BT: tl.constexpr,
           FR: tl.constexpr):  # fmt: skip
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # Columns of the product: BB of each input plane, one for each of its bands. For large kernels one alone, and other programs
    # have the other bands.
    # 1 who am I: block of samples, slice of the outputs, block of input planes (and perhaps a band) of one group
    n_block, split, block, g, tile = locate_products(n_blocks, n_blocks_by, slices, slices_by, blocks, blocks_by)
    g = g.to(tl.int64)
    n = n_block.to(tl.int64) * BN + tl.arange(0, BN)
    band = block % (RB * CB) if BT else 0 * block
    ci0 = (block // (RB * CB) if BT else block) * BCI
    ci = (ci0 + tl.arange(0, BCI)).to(tl.int64)
    column = tl.arange(0, BCI * BB)
    own_ci = (ci0 + column // BB).to(tl.int64)
    own_band = band + column % BB
    first = split * share
    last = tl.minimum(first + share, CO)
    # 2 addresses
    weight += g * CI * CO * (KH * KW)
    grad += g * CO * grad_c
    acc = tl.zeros((BN, BCI * BB), ACC)
    for co0 in range(first, last, BCO):
        # 3 masked load
        co = co0 + tl.arange(0, BCO)
        v = load_grad(grad, n, co, N, last, grad_n, grad_c)
        mask = (ci < CI)[:, None] & (co < last)[None, :]
        w_at = (ci[:, None] * CO + co[None, :]) * (KH * KW)
        if BT:
            w = tl.trans(fold_many(weight, w_at, mask, band, KW, TAPS_H, TAPS_W, BT, PAIR, ACC))
        else:
            kernels, tap = load_kernels(weight, w_at, mask, KH, KW, KK, PAIR)
            rb, cb = bands_of(tap, KW, TAPS_H, TAPS_W)
            folded = tl.zeros((BCI, BCO, BB), ACC)
            for b in tl.static_range(RB * CB):
                one = tl.sum(tl.where(rb * CB + cb == b, kernels.to(ACC), 0), 2)
                folded = tl.where(tl.arange(0, BB)[None, None, :] == b, one[:, :, None], folded)
            w = tl.reshape(tl.permute(folded, (1, 0, 2)), (BCO, BCI * BB))
        # 4 accumulate
        acc = tl.dot(v, w, acc, input_precision="ieee", out_dtype=ACC)
    if any_wild(acc):
        # Tap by tap, as in `wild_products`.
        exact = tl.zeros((BN, BCI * BB), ACC)
        for k in range(rolled(KH * KW)):
            by_tap = tl.zeros((BN, BCI * BB), ACC)
            for co0 in range(first, last, BCO):
                co = co0 + tl.arange(0, BCO)
                v = load_grad(grad, n, co, N, last, grad_n, grad_c)
                mask = (co < last)[:, None] & (own_ci < CI)[None, :]
                at = (own_ci[None, :] * CO + co[:, None]) * (KH * KW) + k
                w = tl.load(weight + at, mask=mask, other=0).to(ACC)
                by_tap = tl.dot(v, w, by_tap, input_precision="ieee", out_dtype=ACC)
            rb, cb = bands_of(k, KW, TAPS_H, TAPS_W)
            exact = tl.where((own_band == rb * CB + cb)[None, :], exact + by_tap, exact)
        acc = tl.where(acc - acc == 0, acc, exact)
    # 5 reduce
    done, total = finish_products(acc, partials + tile.to(tl.int64) * slices * (BN * BCI * BB), counters + tile, split,
                                  slices, N - n_block * BN, FR)  # fmt: skip
    if done:
        # 6 scale, 7 store
        live = lands(own_band // CB, own_band % CB, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
        value = tl.where(live[None, :], scaled(total, scale), 0).to(ACC)
        real = (own_ci < CI) & (own_band < RB * CB)
        to = d + (n * G * CI)[:, None] * (RB * CB) + ((g * CI + own_ci) * (RB * CB) + own_band)[None, :]
        tl.store(to, value, mask=(n < N)[:, None] & real[None, :])


@triton.jit
def band_fill(d, dx,
              C, H, W, stride_n, stride_c, stride_h, stride_w, rows, cols, cols_by, lines, step, blocks, blocks_by,
              parts, parts_by, cuts, cuts_by,
              ACC: tl.constexpr, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr, BEFORE_W: tl.constexpr,
              AFTER_W: tl.constexpr, SWAPPED: tl.constexpr, WHOLE: tl.constexpr, RUN: tl.constexpr, ALONG: tl.constexpr, BP: tl.constexpr,
              R: tl.constexpr, L: tl.constexpr, VEC: tl.constexpr, PAIR: tl.constexpr):  # fmt: skip
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # 1 who am I
    tile, part, n, block, down, across = locate(blocks, blocks_by, parts, parts_by, cuts, cuts_by)
    n = n.to(tl.int64)
    c = block * BP + tl.arange(0, BP)
    r0 = down.to(tl.int64) * rows
    c0 = across.to(tl.int64) * cols
    rows = tl.minimum(H - r0, rows).to(tl.int32)
    width = tl.minimum(W - c0, cols).to(tl.int32)
    # 2 addresses
    position, row, col, busy = deal(R, L, cols, cols_by, lines)
    planes = dx + n * stride_n + c.to(tl.int64)[:, None, None] * stride_c + r0 * stride_h + c0 * stride_w
    d += (n * C + c)[:, None, None] * (RB * CB)
    mask = (c < C)[:, None, None]
    ptrs = planes + address(position, row, col, stride_h, stride_w, RUN, ALONG, VEC, PAIR)
    if WHOLE:
        # Planes of one line: each place on its own.
        value = tl.zeros((BP, R, L), ACC)
        for band in range(rolled(RB * CB)):
            rb = band % RB if SWAPPED else band // CB
            cb = band // RB if SWAPPED else band % CB
            own = inside(row, rb, BEFORE_H, AFTER_H, r0, rows, H) & inside(col, cb, BEFORE_W, AFTER_W, c0, width, W)
            value += tl.where(own, tl.load(d + band, mask=mask, other=0), 0)
        tl.store(ptrs, narrow(value.to(tl.float64), dx.dtype.element_ty), mask=mask & (position < rows * cols))
    else:
        core_lo, core_hi, rim_lo, top, rims = split_rows(r0, rows, H, BEFORE_H, AFTER_H)
        # 3 masked load, 4 accumulate: the core's rows are in every row band
        core = tl.zeros((BP, R, L), ACC)
        for cb in range(rolled(CB)):
            total = tl.zeros((BP, 1, 1), ACC)
            for rb in range(rolled(RB)):
                total += tl.load(d + (cb * RB + rb if SWAPPED else rb * CB + cb), mask=mask, other=0)
            core += tl.where(inside(col, cb, BEFORE_W, AFTER_W, c0, width, W), total, 0)
        core = narrow(core.to(tl.float64), dx.dtype.element_ty)
        # 7 store
        ptrs += core_lo * stride_h
        for r in range(core_lo, core_hi, step):
            live = (
                mask & busy & in_part(col, width, RUN, ALONG, VEC) & (position < tl.minimum(core_hi - r, step) * cols)
            )
            tl.store(ptrs, core, mask=live)
            ptrs += step * stride_h
        # The other rows, each with its own bands: few, so a line of them at a time.
        position, row, col, busy = deal(1, L, cols, cols_by, lines)
        live = mask & busy & in_part(col, width, RUN, ALONG, VEC)
        others = rows - (core_hi - core_lo)
        for j0 in range(0, rolled(others), lines):
            at = j0 + row
            at = tl.where(at < core_lo, at, at + (core_hi - core_lo))
            value = tl.zeros((BP, 1, L), ACC)
            for rb in range(rolled(RB)):
                for cb in range(rolled(CB)):
                    own = inside(at, rb, BEFORE_H, AFTER_H, r0, rows, H)
                    own &= inside(col, cb, BEFORE_W, AFTER_W, c0, width, W)
                    band = tl.load(d + (cb * RB + rb if SWAPPED else rb * CB + cb), mask=mask, other=0)
                    value += tl.where(own, band, 0)
            to = planes + address(position, at, col, stride_h, stride_w, False, ALONG, VEC, PAIR)
            tl.store(
                to,
                narrow(value.to(tl.float64), dx.dtype.element_ty),
                mask=live & (position < tl.minimum(others - j0, lines) * cols),
            )


@triton.jit
def weight_grad(grad, sums, dw, db, partials, counters, grad_n, grad_c, scale, bias_scale, wants_bias,
                N, G, CI, CO, H, W, share, k_blocks, k_blocks_by, slices, slices_by, blocks, blocks_by,
                ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BEFORE_H: tl.constexpr, AFTER_H: tl.constexpr,
                TAPS_H: tl.constexpr, BEFORE_W: tl.constexpr, AFTER_W: tl.constexpr, TAPS_W: tl.constexpr, PAIR: tl.constexpr,
                BN: tl.constexpr, BCO: tl.constexpr, BK: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    RB: tl.constexpr = len(BEFORE_H)
    CB: tl.constexpr = len(BEFORE_W)
    # 1 who am I: block of (ci, tap), slice of the samples, block of outputs of one group
    k_block, split, block, g, tile = locate_products(k_blocks, k_blocks_by, slices, slices_by, blocks, blocks_by)
    g = g.to(tl.int64)
    k = k_block.to(tl.int64) * BK + tl.arange(0, BK)
    co = block * BCO + tl.arange(0, BCO)
    first = split * share
    last = first + tl.minimum(N - first, share)
    # 2 addresses
    ci = k // (KH * KW)
    tap = (k % (KH * KW)).to(tl.int32)
    rb, cb = bands_of(tap, KW, TAPS_H, TAPS_W)
    live = (ci < CI) & lands(rb, cb, H, W, BEFORE_H, AFTER_H, BEFORE_W, AFTER_W)
    # Behind the last tap stands a column of ones: its products are the gradient of the bias.
    ones = k == CI.to(tl.int64) * (KH * KW)
    sums += g * CI * (RB * CB)
    acc = tl.zeros((BCO, BK), ACC)
    for n0 in range(first, last, BN):
        # 3 masked load
        n = (n0 + tl.arange(0, BN)).to(tl.int64)
        v_at = follow((n * grad_n)[:, None], ((g * CO + co) * grad_c)[None, :], PAIR)
        v = tl.load(grad + v_at, mask=(n < last)[:, None] & (co < CO)[None, :], other=0)
        t_at = follow((n * G * CI)[:, None] * (RB * CB), (ci * (RB * CB) + rb * CB + cb)[None, :], PAIR)
        t = tl.load(sums + t_at, mask=(n < last)[:, None] & live[None, :], other=0)
        t = tl.where(ones[None, :], 1, t)
        # 4 accumulate
        acc = tl.dot(tl.trans(v), t, acc, input_precision="ieee", out_dtype=ACC)
    # 5 reduce
    done, total = finish_products(acc, partials + tile.to(tl.int64) * slices * (BCO * BK), counters + tile, split,
                                  slices, CO - block * BCO, FR)  # fmt: skip
    if done:
        # 6 scale; a tap that lands nowhere has gradient 0 whatever grad holds, 7 store
        to = dw + (g * CI + ci)[None, :] * CO * (KH * KW) + co[:, None] * (KH * KW) + tap[None, :]
        tl.store(
            to,
            narrow(tl.where(live[None, :], scaled(total, scale), 0), dw.dtype.element_ty),
            mask=(co < CO)[:, None] & (ci < CI)[None, :],
        )
        if (wants_bias != 0) & (k_block == k_blocks - 1):
            value = scaled(tl.sum(tl.where(ones[None, :], total, 0), 1), bias_scale)
            tl.store(db + g * CO + co, narrow(value, db.dtype.element_ty), mask=co < CO)
