"""The Triton kernels. cupy_impl/kernels.cu is the same file in CUDA C++: same names, order, steps.

    multiply_gap         out[n, c]  = multiplier / (H*W) * sum of y[n, c]
    multiply_gap_flat    the same, for small planes that lie one behind the other
    band_sums            T[n, ci, kh, kw] = sum of x[n, ci] over the band of tap (kh, kw)
    contract             out[n, co] = multiplier * (bias[co] + 1/(Hout*Wout) * sum of T * weight)
    band_sums_contract   both in one launch, for weights that are small beside the planes
    expand               D[n, ci, kh, kw] = multiplier/(Hout*Wout) * sum over co of grad * weight
    band_fill            dx[n, ci, h, w]  = sum of D[n, ci] over the taps whose band holds (h, w)
    weight_grad          dweight[ci, co, kh, kw] = multiplier/(Hout*Wout) * sum over n of grad * T

A program works on tiles of BP planes x BR rows x BC columns and walks down the rows, so that every
thread keeps its columns: bands of columns cost nothing in the stream. A plane larger than ROWS x BC
is cut in parts. A group of the convolution is a run of CI planes in and CO planes out, and
everything but `weight_grad` treats (sample, group) as one index. Planes stored column by column come with
rows and columns SWAPPED, and only the taps of sums and weights keep their places. Offsets up to the first row of a
part are 64-bit; inside a part, row and column numbers are 32-bit. All sizes and strides but those of
the batch are constants, so that most of this is worked out by the compiler.
"""

import triton
import triton.language as tl


@triton.jit
def band(k, SIZE: tl.constexpr, OUT: tl.constexpr, S: tl.constexpr, P: tl.constexpr, D: tl.constexpr):
    """Input interval [lo, hi) that kernel index k sends inside [0, OUT); // only sees numbers >= 0."""
    lo = (tl.maximum(P - k * D, 0) + S - 1) // S
    hi = tl.minimum(SIZE, tl.maximum(OUT - 1 + P - k * D + S, 0) // S)
    return lo, hi


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """value in dtype, to nearest even. By hand for bfloat16, which Triton's interpreter would truncate."""
    if dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        rounded = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
        return tl.where(value == value, rounded, value.to(tl.bfloat16))
    return value.to(dtype)


@triton.jit
def clip(lo, hi, start, length):
    """[lo, hi) inside [start, start + length), counted from start."""
    lo = tl.minimum(tl.maximum(lo - start, 0), length)
    hi = tl.minimum(tl.maximum(hi - start, 0), length)
    return lo.to(tl.int32), hi.to(tl.int32)


@triton.jit
def tap_at(kh, kw, KH: tl.constexpr, KW: tl.constexpr, SWAPPED: tl.constexpr):
    """Place of tap (kh, kw) in the sums and the weights of a plane."""
    return kw * KH + kh if SWAPPED else kh * KW + kw


@triton.jit
def lands(kh, kw, H: tl.constexpr, W: tl.constexpr, H_OUT: tl.constexpr, W_OUT: tl.constexpr, SH: tl.constexpr,
          SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr):  # fmt: skip
    """Whether the tap's band holds anything: a weight that never meets x must not turn 0 into NaN."""
    row_lo, row_hi = band(kh, H, H_OUT, SH, PH, DH)
    col_lo, col_hi = band(kw, W, W_OUT, SW, PW, DW)
    return (row_lo < row_hi) & (col_lo < col_hi)


@triton.jit
def locate(CI: tl.constexpr, H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, BP: tl.constexpr,
           BC: tl.constexpr):  # fmt: skip
    """Place of this program: parts run fastest, then blocks of BP planes, then (sample, group)."""
    row_parts: tl.constexpr = (H + ROWS - 1) // ROWS
    parts: tl.constexpr = row_parts * ((W + BC - 1) // BC)
    part = tl.program_id(0) % parts
    tile = tl.program_id(0) // parts
    blocks: tl.constexpr = (CI + BP - 1) // BP
    ng = tile // blocks
    ci = tile % blocks * BP + tl.arange(0, BP)
    r0 = (part % row_parts).to(tl.int64) * ROWS
    col = (part // row_parts).to(tl.int64) * BC + tl.arange(0, BC)
    rows = tl.minimum(H - r0, ROWS).to(tl.int32)
    return tile, part, parts, ng, ci, r0, rows, col


@triton.jit
def split_rows(r0, rows, H: tl.constexpr, H_OUT: tl.constexpr, KH: tl.constexpr, SH: tl.constexpr,
               PH: tl.constexpr, DH: tl.constexpr):  # fmt: skip
    """Rows of a part that bands hold, counted from r0: (core_lo, core_hi, rim_lo, top, rims).

    Both ends of a band fall as kh grows, so [lo(0), hi(KH - 1)) is in every band: the core. The few
    rows before and after it are in some: the rims, `top` of them before it. Where the core is
    empty, the rims hold everything.
    """
    first_lo, first_hi = band(0, H, H_OUT, SH, PH, DH)
    last_lo, last_hi = band(KH - 1, H, H_OUT, SH, PH, DH)
    core_lo, core_hi = clip(first_lo, tl.maximum(first_lo, last_hi), r0, rows)
    rim_lo, rim_hi = clip(last_lo, first_hi, r0, rows)
    top = core_lo - rim_lo
    return core_lo, core_hi, rim_lo, top, top + tl.maximum(rim_hi - core_hi, 0)


@triton.jit
def add_tile(acc, tile, mask, lo, hi, WHOLE: tl.constexpr, STRIDE_H: tl.constexpr, TR: tl.constexpr,
             UNROLL: tl.constexpr):  # fmt: skip
    """acc plus one step, of rows lo to hi. WHOLE ones go without a row mask: it would keep the compiler from wide loads."""
    policy: tl.constexpr = "evict_first" if WHOLE else ""
    rows = lo + tl.arange(0, TR)[None, :, None]
    held = ()
    for u in tl.static_range(UNROLL):
        inside = mask if WHOLE else mask & (rows + u * TR < hi)
        held += (tl.load(tile + u * TR * STRIDE_H, mask=inside, other=0, eviction_policy=policy),)
    for u in tl.static_range(UNROLL):
        acc += held[u].to(acc.dtype)
    return acc


@triton.jit
def stream_rows(ptrs, mask, lo, hi, STRIDE_H: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr,
                BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr):  # fmt: skip
    """Sum of rows [lo, hi) of BP planes x BC columns, still spread over the threads' rows: [BP, TR, BC]."""
    TR: tl.constexpr = BR // UNROLL
    acc = tl.zeros((BP, TR, BC), ACC)
    # Times 1, which the compiler does not know: a known number of tiles would be unrolled, out of registers.
    hi *= tl.num_programs(1)
    tile = ptrs + (lo + tl.arange(0, TR)[None, :, None]).to(tl.int64) * STRIDE_H
    full = lo + (hi - lo) // BR * BR
    for _ in range(lo, full, BR):
        acc = add_tile(acc, tile, mask, lo, hi, True, STRIDE_H, TR, UNROLL)
        tile += BR * STRIDE_H
    if full < hi:
        acc = add_tile(acc, tile, mask, full, hi, False, STRIDE_H, TR, UNROLL)
    return acc


@triton.jit
def load_rims(ptrs, mask, j, core_hi, rim_lo, top, rims, STRIDE_H: tl.constexpr):
    """Rim rows j (a tensor), and which rows these are."""
    row = tl.where(j < top, rim_lo + j, core_hi + j - top)
    at = ptrs + row[None, :, None].to(tl.int64) * STRIDE_H
    return tl.load(at, mask=mask & (j < rims)[None, :, None], other=0), row


@triton.jit
def tap_sums(core, rims, col, kw, W: tl.constexpr, W_OUT: tl.constexpr, SW: tl.constexpr, PW: tl.constexpr,
             DW: tl.constexpr):  # fmt: skip
    """Sums over the column band of kw: of the core's columns [BP, BC] and of rim rows [BP, RIMS, BC]."""
    lo, hi = band(kw, W, W_OUT, SW, PW, DW)
    inside = (col >= lo) & (col < hi)
    core = tl.sum(tl.where(inside[None, :], core, 0), 1)
    return core, tl.sum(tl.where(inside[None, None, :], rims, 0), 2)


@triton.jit
def row_inside(row, kh, r0, rows, H: tl.constexpr, H_OUT: tl.constexpr, SH: tl.constexpr, PH: tl.constexpr,
               DH: tl.constexpr):  # fmt: skip
    """Which rim rows lie in the row band of kh: [1, RIMS]."""
    lo, hi = band(kh, H, H_OUT, SH, PH, DH)
    lo, hi = clip(lo, hi, r0, rows)
    return ((row >= lo) & (row < hi))[None, :]


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
        ptrs = partials + (start + r) * WIDTH + col[None, :]
        # Other multiprocessors wrote these rows: .cg reads them from L2, past a stale L1.
        total += tl.load(ptrs, mask=(start + r < ROWS) & mask[None, :], other=0, cache_modifier=".cg")
    return tl.sum(total, 0)


@triton.jit
def finish(partials, counter, row, ROWS, col, mask, value, WIDTH: tl.constexpr, FR: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """Store one row of partial outputs. The last program to come gets (True, the sum of all rows)."""
    tl.store(partials + row * WIDTH + col, value, mask=mask)
    last = arrive(counter, ROWS)
    total = tl.zeros((WIDTH,), ACC)
    if last:
        total = add_rows(partials, ROWS, WIDTH, col, mask, FR, ACC)
    return last, total


@triton.jit
def multiply_gap(y, out, partials, counters, multiplier, stride_n, mult_n, mult_c, scale,
                 C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, STRIDE_C: tl.constexpr,
                 STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, ROWS: tl.constexpr,
                 TENSOR: tl.constexpr, SINGLE: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr,
                 BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr,
                 FR: tl.constexpr):  # fmt: skip
    # 1 who am I
    tile, part, parts, n, c, r0, rows, col = locate(C, H, W, ROWS, BP, BC)
    n = n.to(tl.int64)
    # 2 addresses
    planes = y + n * stride_n + c.to(tl.int64) * STRIDE_C
    ptrs = planes[:, None, None] + r0 * STRIDE_H + col[None, None, :] * STRIDE_W
    mask = (c < C)[:, None, None] & (col < W)[None, None, :]
    # 3 masked load, 4 accumulate
    acc = stream_rows(ptrs, mask, 0, rows, STRIDE_H, ACC, BP, BR, BC, UNROLL)
    # 5 reduce: one axis at a time, for Triton before 3.7 adds the wrong lanes of an axis that was reshaped
    total = tl.sum(tl.sum(acc, 1), 1)
    last = True
    if not SINGLE:
        partials += tile.to(tl.int64) * parts * BP
        last, total = finish(partials, counters + tile, part, parts, tl.arange(0, BP), c < C, total,
                             BP, FR, ACC)  # fmt: skip
    if last:
        # 6 scale
        total = (total * scale).to(ACC)
        if TENSOR:
            total *= tl.load(multiplier + n * mult_n + c.to(tl.int64) * mult_c, mask=c < C, other=0).to(ACC)
        # 7 store
        tl.store(out + n * C + c, narrow(total, out.dtype.element_ty), mask=c < C)


@triton.jit
def multiply_gap_flat(y, out, multiplier, stride_n, mult_n, mult_c, scale, C: tl.constexpr,
                      PLANE: tl.constexpr, TENSOR: tl.constexpr, ACC: tl.constexpr, GROUP: tl.constexpr,
                      GROUPS: tl.constexpr, PIECES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    # 1 who am I: small planes that lie one behind the other, in groups that are whole accesses long
    blocks: tl.constexpr = (C + GROUP * GROUPS - 1) // (GROUP * GROUPS)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks * GROUPS + tl.arange(0, GROUPS)) * GROUP
    # 2 addresses: one run of memory, whatever the size of a plane
    piece = tl.arange(0, PIECES)[None, :, None]
    i = piece * VEC + tl.arange(0, VEC)[None, None, :]
    ptrs = y + n * stride_n + c[:, None, None] * PLANE + i
    # 3 masked load
    mask = (c < C)[:, None, None] & (piece < GROUP * PLANE // VEC)
    run = tl.load(ptrs, mask=mask, other=0, eviction_policy="evict_first").to(ACC)
    for q in tl.static_range(GROUP):
        # 4 accumulate, 5 reduce: the q-th plane of each group
        own = run if GROUP == 1 else tl.where(i // PLANE == q, run, 0)
        total = tl.sum(tl.sum(own, 2), 1)
        # 6 scale
        total = (total * scale).to(ACC)
        if TENSOR:
            m = multiplier + n * mult_n + (c + q).to(tl.int64) * mult_c
            total *= tl.load(m, mask=c < C, other=0).to(ACC)
        # 7 store
        tl.store(out + n * C + c + q, narrow(total, out.dtype.element_ty), mask=c < C)


@triton.jit
def band_sums(x, sums, partials, counters, stride_n, G: tl.constexpr, CI: tl.constexpr, H: tl.constexpr,
              W: tl.constexpr, H_OUT: tl.constexpr, W_OUT: tl.constexpr, STRIDE_C: tl.constexpr,
              STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
              KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
              PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, SWAPPED: tl.constexpr,
              RIMS: tl.constexpr, MORE: tl.constexpr, SINGLE: tl.constexpr, BP: tl.constexpr, BR: tl.constexpr,
              BC: tl.constexpr, UNROLL: tl.constexpr, WIDTH: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    # 1 who am I
    tile, part, parts, n, c, r0, rows, col = locate(G * CI, H, W, ROWS, BP, BC)
    n = n.to(tl.int64)
    # 2 addresses
    planes = x + n * stride_n + c.to(tl.int64) * STRIDE_C
    ptrs = planes[:, None, None] + r0 * STRIDE_H + col[None, None, :] * STRIDE_W
    mask = (c < G * CI)[:, None, None] & (col < W)[None, None, :]
    # From here on a block's first plane is number 0, in sums and in partials alike.
    c0 = tile % ((G * CI + BP - 1) // BP) * BP
    sums += (n * (G * CI) + c0) * (KH * KW)
    partials += tile.to(tl.int64) * parts * (BP * KH * KW)
    to = sums if SINGLE else partials + part * (BP * KH * KW)
    to += tl.arange(0, BP) * (KH * KW)
    core_lo, core_hi, rim_lo, top, rims = split_rows(r0, rows, H, H_OUT, KH, SH, PH, DH)
    # 3 masked load, 4 accumulate. The first rims are asked for before the stream and used after it.
    j = tl.arange(0, RIMS)
    first, first_row = load_rims(ptrs, mask, j, core_hi, rim_lo, top, rims, STRIDE_H)
    core = tl.sum(stream_rows(ptrs, mask, core_lo, core_hi, STRIDE_H, ACC, BP, BR, BC, UNROLL), 1)
    first = first.to(ACC)
    for kw in range(KW):
        # 5 reduce
        core_sum, first_sums = tap_sums(core, first, col, kw, W, W_OUT, SW, PW, DW)
        for kh in range(KH):
            inside = row_inside(first_row, kh, r0, rows, H, H_OUT, SH, PH, DH)
            total = core_sum + tl.sum(tl.where(inside, first_sums, 0), 1)
            for j0 in range(RIMS, rims if MORE else RIMS, RIMS):
                more, row = load_rims(ptrs, mask, j0 + j, core_hi, rim_lo, top, rims, STRIDE_H)
                _, more_sums = tap_sums(core, more.to(ACC), col, kw, W, W_OUT, SW, PW, DW)
                inside = row_inside(row, kh, r0, rows, H, H_OUT, SH, PH, DH)
                total += tl.sum(tl.where(inside, more_sums, 0), 1)
            # 7 store
            tl.store(to + tap_at(kh, kw, KH, KW, SWAPPED), total, mask=c < G * CI)
    if not SINGLE:
        if arrive(counters + tile, parts):
            # As many sums at a time as one step of add_rows holds: one wait for L2, not one per tap.
            for i0 in range(0, BP * KH * KW, WIDTH):
                i = i0 + tl.arange(0, WIDTH)
                live = (i < BP * KH * KW) & (i < (G * CI - c0) * (KH * KW))
                total = add_rows(partials, parts, BP * KH * KW, i, live, FR, ACC)
                tl.store(sums + i, total, mask=live)


@triton.jit
def contract(sums, weight, bias, out, partials, counters, multiplier, mult_n, mult_c, scale, bias_scale, N,
             G: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
             H_OUT: tl.constexpr, W_OUT: tl.constexpr, TENSOR: tl.constexpr, BIAS: tl.constexpr,
             EMPTY: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
             SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr,
             DW: tl.constexpr, BN: tl.constexpr, BCO: tl.constexpr, TILES: tl.constexpr, BK: tl.constexpr,
             STEPS: tl.constexpr, SLICE: tl.constexpr, WIDTH: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    # 1 who am I: slice of the products of an output, block of outputs of one group, block of samples
    LENGTH: tl.constexpr = CI * KH * KW
    OUTS: tl.constexpr = TILES * BCO
    splits: tl.constexpr = (LENGTH + SLICE - 1) // SLICE
    blocks: tl.constexpr = (CO + OUTS - 1) // OUTS
    split = tl.program_id(1) % splits
    block = tl.program_id(1) // splits
    g = (block // blocks).to(tl.int64)
    n0 = tl.program_id(0).to(tl.int64) * BN
    co = block % blocks * OUTS + tl.arange(0, BCO)
    # WIDTH outputs at a time in the end: all of the block's, of some samples.
    at = tl.arange(0, WIDTH)
    own = block % blocks * OUTS + at % OUTS
    # 2 addresses: k runs over (ci, tap)
    weight += g * CI * CO * (KH * KW) + co[:, None].to(tl.int64) * (KH * KW)
    sums += (n0 * G + g) * LENGTH
    tile = tl.program_id(0).to(tl.int64) * (tl.num_programs(1) // splits) + block
    partials += tile * splits * (BN * OUTS)
    if BIAS:
        b = tl.load(bias + g * CO + own, mask=own < CO, other=0)
    # A tensor for each sample, so that a thread loads a sum once for all its outputs, and of one shape whatever there
    # are of them: in what order Triton adds a tensor up depends on its shape.
    acc = ()
    for _ in tl.static_range(BN * TILES):
        acc += (tl.zeros((BCO, BK), ACC),)
    for k0 in range(split * SLICE, tl.minimum(split * SLICE + SLICE, LENGTH), STEPS * BK):
        # 3 masked load: the weights of all steps come first, for they are farther away
        w = ()
        for i in tl.static_range(STEPS):
            k = k0 + i * BK + tl.arange(0, BK)[None, :]
            tap = k % (KH * KW)
            live = k < LENGTH
            if EMPTY:
                live &= lands(tap // KW, tap % KW, H, W, H_OUT, W_OUT, SH, SW, PH, PW, DH, DW)
            ci = (k // (KH * KW)).to(tl.int64)
            for q in tl.static_range(TILES):
                w_ptrs = weight + q * BCO * (KH * KW) + ci * (CO * KH * KW) + tap
                w += (tl.load(w_ptrs, mask=live & (co + q * BCO < CO)[:, None], other=0),)
        for i in tl.static_range(STEPS):
            k = k0 + i * BK + tl.arange(0, BK)[None, :]
            # 4 accumulate
            more = ()
            for s in tl.static_range(BN):
                length = tl.where(n0 + s < N, LENGTH, 0)
                t = tl.load(sums + s * (G * LENGTH) + k, mask=k < length, other=0)
                for q in tl.static_range(TILES):
                    more += (acc[s * TILES + q] + t * w[i * TILES + q].to(ACC),)
            acc = more
    # 5 reduce
    row = partials + split * (BN * OUTS) + tl.arange(0, BCO)
    for j in tl.static_range(BN * TILES):
        tl.store(row + j * BCO, tl.sum(acc[j], 1))
    if arrive(counters + tile, splits):
        for s0 in range(0, BN, WIDTH // OUTS):
            n = n0 + s0 + at // OUTS
            inside = (n < N) & (own < CO)
            total = add_rows(partials + s0 * OUTS, splits, BN * OUTS, at, inside, FR, ACC)
            # 6 scale and bias
            total = (total * scale).to(ACC)
            if BIAS:
                total += (bias_scale * b.to(ACC)).to(ACC)
            if TENSOR:
                m = multiplier + n * mult_n + (g * CO + own) * mult_c
                total *= tl.load(m, mask=inside, other=0).to(ACC)
            # 7 store
            tl.store(out + n * (G * CO) + g * CO + own, narrow(total, out.dtype.element_ty), mask=inside)


@triton.jit
def band_sums_contract(x, weight, bias, out, partials, counters, multiplier, stride_n, mult_n, mult_c, scale,
                       bias_scale, G: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
                       H: tl.constexpr, W: tl.constexpr, H_OUT: tl.constexpr, W_OUT: tl.constexpr,
                       STRIDE_C: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
                       ROWS: tl.constexpr, TENSOR: tl.constexpr, BIAS: tl.constexpr,
                       EMPTY: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
                       SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
                       DH: tl.constexpr, DW: tl.constexpr, SWAPPED: tl.constexpr,
                       RIMS: tl.constexpr, MORE: tl.constexpr,
                       BR: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr, BCO: tl.constexpr,
                       FR: tl.constexpr):  # fmt: skip
    # 1 who am I: a part of one plane
    tile, part, parts, ng, ci, r0, rows, col = locate(CI, H, W, ROWS, 1, BC)
    n = (ng // G).to(tl.int64)
    g = (ng % G).to(tl.int64)
    # 2 addresses
    planes = x + n * stride_n + (g * CI + ci) * STRIDE_C
    ptrs = planes[:, None, None] + r0 * STRIDE_H + col[None, None, :] * STRIDE_W
    mask = (col < W)[None, None, :]
    co = tl.arange(0, BCO)
    w_ptrs = weight + ((g * CI + tile % CI) * CO + co) * (KH * KW)
    core_lo, core_hi, rim_lo, top, rims = split_rows(r0, rows, H, H_OUT, KH, SH, PH, DH)
    # 3 masked load, 4 accumulate. Weights, bias and multiplier come first: they arrive while the
    # plane streams.
    c = g * CO + co
    w = ()
    for tap in tl.static_range(KH * KW):
        live = co < CO
        if EMPTY:
            # A tensor, if of one element: Triton's interpreter makes integers of a scalar mask.
            at = tl.full((1,), tap, tl.int32)
            live &= lands(at // KW, at % KW, H, W, H_OUT, W_OUT, SH, SW, PH, PW, DH, DW)
        w += (tl.load(w_ptrs + tap_at(tap // KW, tap % KW, KH, KW, SWAPPED), mask=live, other=0),)
    if BIAS:
        b = tl.load(bias + c, mask=co < CO, other=0)
    if TENSOR:
        m = tl.load(multiplier + n * mult_n + c * mult_c, mask=co < CO, other=0)
    j = tl.arange(0, RIMS)
    first, first_row = load_rims(ptrs, mask, j, core_hi, rim_lo, top, rims, STRIDE_H)
    core = tl.sum(stream_rows(ptrs, mask, core_lo, core_hi, STRIDE_H, ACC, 1, BR, BC, UNROLL), 1)
    first = first.to(ACC)
    # 5 reduce. Every lane gets each sum and keeps its own outputs: no exchange for the product.
    inside = ()
    for kh in tl.static_range(KH):
        inside += (row_inside(first_row, kh, r0, rows, H, H_OUT, SH, PH, DH),)
    partial = tl.zeros((BCO,), ACC)
    for kw in tl.static_range(KW):
        core_sum, first_sums = tap_sums(core, first, col, kw, W, W_OUT, SW, PW, DW)
        for kh in tl.static_range(KH):
            total = core_sum + tl.sum(tl.where(inside[kh], first_sums, 0), 1)
            for j0 in range(RIMS, rims if MORE else RIMS, RIMS):
                more, row = load_rims(ptrs, mask, j0 + j, core_hi, rim_lo, top, rims, STRIDE_H)
                _, more_sums = tap_sums(core, more.to(ACC), col, kw, W, W_OUT, SW, PW, DW)
                more_inside = row_inside(row, kh, r0, rows, H, H_OUT, SH, PH, DH)
                total += tl.sum(tl.where(more_inside, more_sums, 0), 1)
            partial += tl.sum(total, 0) * w[kh * KW + kw].to(ACC)
    partials += ng.to(tl.int64) * CI * parts * BCO
    last, total = finish(partials, counters + ng, tile % CI * parts + part, CI * parts, co, co < CO, partial,
                         BCO, FR, ACC)  # fmt: skip
    if last:
        # 6 scale and bias
        total = (total * scale).to(ACC)
        if BIAS:
            total += (bias_scale * b.to(ACC)).to(ACC)
        if TENSOR:
            total *= m
        # 7 store
        tl.store(out + n * (G * CO) + c, narrow(total, out.dtype.element_ty), mask=co < CO)


@triton.jit
def expand(grad, weight, d, grad_n, grad_c, scale, N, G: tl.constexpr, CI: tl.constexpr,
           CO: tl.constexpr, ACC: tl.constexpr, KK: tl.constexpr, BN: tl.constexpr,
           BCO: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    # 1 who am I: block of (ci, tap) of one group, block of samples
    blocks = tl.cdiv(CI * KK, BK)
    g = (tl.program_id(1) // blocks).to(tl.int64)
    k = tl.program_id(1) % blocks * BK + tl.arange(0, BK)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    # 2 addresses
    ci = k // KK
    weight += ((g * CI + ci) * CO * KK + k % KK)[None, :]
    acc = tl.zeros((BN, BK), ACC)
    for co0 in range(0, CO, BCO):
        co = co0 + tl.arange(0, BCO)
        c = (g * CO + co)[None, :]
        mask = (n < N)[:, None] & (co < CO)[None, :]
        # 3 masked load
        v = tl.load(grad + n[:, None] * grad_n + c * grad_c, mask=mask, other=0)
        w_mask = (co < CO)[:, None] & (ci < CI)[None, :]
        w = tl.load(weight + co[:, None].to(tl.int64) * KK, mask=w_mask, other=0).to(ACC)
        # 4 accumulate, 5 reduce
        acc += tl.sum(v[:, :, None] * w[None, :, :], 1)
    # 6 scale, 7 store
    to = d + (n[:, None] * G + g) * (CI * KK) + k[None, :]
    tl.store(to, (acc * scale).to(ACC), mask=(n < N)[:, None] & (ci < CI)[None, :])


@triton.jit
def band_fill(d, dx, stride_n, G: tl.constexpr, CI: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
              H_OUT: tl.constexpr, W_OUT: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_H: tl.constexpr,
              STRIDE_W: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr,
              KW: tl.constexpr, KHP: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
              PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, SWAPPED: tl.constexpr, BP: tl.constexpr,
              BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    # 1 who am I
    tile, part, parts, n, c, r0, rows, col = locate(G * CI, H, W, ROWS, BP, BC)
    n = n.to(tl.int64)
    # 2 addresses
    planes = dx + n * stride_n + c.to(tl.int64) * STRIDE_C
    ptrs = planes[:, None, None] + r0 * STRIDE_H + col[None, None, :] * STRIDE_W
    mask = (c < G * CI)[:, None, None] & (col < W)[None, None, :]
    kh = tl.arange(0, KHP)[None, :, None]
    d += (n * (G * CI) + c)[:, None, None] * (KH * KW)
    columns = tl.zeros((BP, KHP, BC), ACC)
    for kw in range(KW):
        # 3 masked load, 4 accumulate
        lo, hi = band(kw, W, W_OUT, SW, PW, DW)
        inside = ((col >= lo) & (col < hi))[None, None, :]
        taps = d + tap_at(kh, kw, KH, KW, SWAPPED)
        columns += tl.where(inside, tl.load(taps, mask=(c < G * CI)[:, None, None] & (kh < KH), other=0), 0)
    # 7 store: every row of the core has the same values, the rows around it have fewer taps
    core_lo, core_hi, rim_lo, top, rims = split_rows(r0, rows, H, H_OUT, KH, SH, PH, DH)
    core = narrow(tl.sum(columns, 1)[:, None, :], dx.dtype.element_ty)
    row = tl.arange(0, BR)[None, :, None]
    for r in range(core_lo, core_hi, BR):
        tile_ptrs = ptrs + (r + row).to(tl.int64) * STRIDE_H
        tl.store(tile_ptrs, tl.broadcast_to(core, (BP, BR, BC)), mask=mask & (r + row < core_hi))
    lo, hi = band(kh, H, H_OUT, SH, PH, DH)
    lo, hi = clip(lo, hi, r0, rows)
    for i in range(rows - (core_hi - core_lo)):
        r = tl.where(i < core_lo, i, i + (core_hi - core_lo))
        rim = tl.sum(tl.where((r >= lo) & (r < hi), columns, 0), 1)[:, None, :]
        tl.store(ptrs + r.to(tl.int64) * STRIDE_H, narrow(rim, dx.dtype.element_ty), mask=mask)


@triton.jit
def weight_grad(grad, sums, dw, grad_n, grad_c, scale, N, G: tl.constexpr, CI: tl.constexpr,
                CO: tl.constexpr, H: tl.constexpr, W: tl.constexpr, H_OUT: tl.constexpr,
                W_OUT: tl.constexpr, EMPTY: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr,
                KW: tl.constexpr, KKP: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
                DH: tl.constexpr, DW: tl.constexpr, BN: tl.constexpr, BCO: tl.constexpr):  # fmt: skip
    # 1 who am I: input plane, block of the outputs of its group
    ci = tl.program_id(0).to(tl.int64)
    g = ci // CI
    co = tl.program_id(1) * BCO + tl.arange(0, BCO)
    # 2 addresses
    c = (g * CO + co)[None, :]
    tap = tl.arange(0, KKP)[None, :]
    live = tap < KH * KW
    if EMPTY:
        live &= lands(tap // KW, tap % KW, H, W, H_OUT, W_OUT, SH, SW, PH, PW, DH, DW)
    acc = tl.zeros((BCO, KKP), ACC)
    for n0 in range(0, N, BN):
        n = (n0 + tl.arange(0, BN)).to(tl.int64)[:, None]
        mask = (n < N) & (co < CO)[None, :]
        # 3 masked load
        v = tl.load(grad + n * grad_n + c * grad_c, mask=mask, other=0)
        t_ptrs = sums + (n * (G * CI) + ci) * (KH * KW) + tap
        t = tl.load(t_ptrs, mask=(n < N) & live, other=0)
        # 4 accumulate, 5 reduce
        acc += tl.sum(v[:, :, None] * t[:, None, :], 0)
    # 6 scale; a tap that lands nowhere has gradient 0 whatever grad holds, 7 store
    to = dw + (ci * CO + co[:, None]) * (KH * KW) + tap
    acc = tl.where(live, (acc * scale).to(ACC), 0)
    tl.store(to, narrow(acc, dw.dtype.element_ty), mask=(co < CO)[:, None] & (tap < KH * KW))
