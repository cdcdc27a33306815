"""The Triton kernels. cupy_impl/kernels.cu is the same file in CUDA C++: same names, order, steps.

    multiply_gap         out[n, c]  = multiplier / (H*W) * sum of y[n, c]
    multiply_gap_flat    the same, for small planes that lie one behind the other
    band_sums            T[n, ci, part, kh, kw] = sum of x[n, ci] over the band of tap (kh, kw)
    contract             out[n, co] = multiplier * (bias[co] + 1/(Hout*Wout) * sum of T * weight)
    band_sums_contract   both in one launch, for weights that are small beside the planes
    expand               D[n, ci, kh, kw] = multiplier/(Hout*Wout) * sum over co of grad * weight
    band_fill            dx[n, ci, h, w]  = sum of D[n, ci] over the taps whose band holds (h, w)
    weight_grad          dweight[ci, co, kh, kw] = multiplier/(Hout*Wout) * sum over n of grad * T

A program works on tiles of BP planes x BR rows x BC columns and walks down the rows, so that every
thread keeps its columns: bands of columns cost nothing in the stream. A plane larger than ROWS x BC
is cut in parts. A group of the convolution is a run of CI planes in and CO planes out, and
everything but `weight_grad` treats (sample, group) as one index. Offsets up to the first row of a
part are 64-bit; inside a part, row and column numbers are 32-bit.
"""

import triton
import triton.language as tl


@triton.jit
def band(k, SIZE, OUT, S: tl.constexpr, P: tl.constexpr, D: tl.constexpr):
    """Input interval [lo, hi) that kernel index k sends inside [0, OUT); // only sees numbers >= 0."""
    lo = (tl.maximum(P - k * D, 0) + S - 1) // S
    hi = tl.minimum(SIZE, tl.maximum(OUT - 1 + P - k * D + S, 0) // S)
    return lo, hi


@triton.jit
def clip(lo, hi, start, length):
    """[lo, hi) inside [start, start + length), counted from start."""
    lo = tl.minimum(tl.maximum(lo - start, 0), length)
    hi = tl.minimum(tl.maximum(hi - start, 0), length)
    return lo.to(tl.int32), hi.to(tl.int32)


@triton.jit
def lands(tap, H, W, H_OUT, W_OUT, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
          PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr):  # fmt: skip
    """Whether the tap's band holds anything: a weight that never meets x must not turn 0 into NaN."""
    row_lo, row_hi = band(tap // KW, H, H_OUT, SH, PH, DH)
    col_lo, col_hi = band(tap % KW, W, W_OUT, SW, PW, DW)
    return (row_lo < row_hi) & (col_lo < col_hi)


@triton.jit
def locate(CI, H, W, ROWS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):
    """Place of this program: parts run fastest, then blocks of BP planes, then (sample, group)."""
    row_parts = tl.cdiv(H, ROWS).to(tl.int32)
    parts = row_parts * tl.cdiv(W, BC).to(tl.int32)
    part = tl.program_id(0) % parts
    tile = tl.program_id(0) // parts
    blocks = tl.cdiv(CI, BP)
    ng = tile // blocks
    ci = tile % blocks * BP + tl.arange(0, BP)
    r0 = (part % row_parts).to(tl.int64) * ROWS
    col = (part // row_parts).to(tl.int64) * BC + tl.arange(0, BC)
    rows = tl.minimum(H - r0, ROWS).to(tl.int32)
    return tile, part, parts, ng, ci, r0, rows, col


@triton.jit
def core_rows(r0, rows, H, H_OUT, KH: tl.constexpr, SH: tl.constexpr, PH: tl.constexpr,
              DH: tl.constexpr):  # fmt: skip
    """The rows in all row bands (the core), counted from r0.

    Both ends of a band fall as kh grows, so [lo(0), hi(KH - 1)) is in every band; the rows before
    and after it are in some: the rims. Where the core is empty, the rims hold everything.
    """
    first_lo, unused = band(0, H, H_OUT, SH, PH, DH)
    unused, last_hi = band(KH - 1, H, H_OUT, SH, PH, DH)
    return clip(first_lo, tl.maximum(first_lo, last_hi), r0, rows)


@triton.jit
def stream_rows(ptrs, mask, lo, hi, stride_h, ACC: tl.constexpr, BP: tl.constexpr, BR: tl.constexpr,
                BC: tl.constexpr):  # fmt: skip
    """Sum of rows [lo, hi) of BP planes x BC columns, still spread over BR: [BP, BR, BC]."""
    acc = tl.zeros((BP, BR, BC), ACC)
    rows = tl.arange(0, BR)[None, :, None]
    tile = ptrs + (lo + rows).to(tl.int64) * stride_h
    # Whole tiles go without a row mask: it would keep the compiler from wide loads along the rows.
    full = lo + (hi - lo) // BR * BR
    for _ in range(lo, full, BR):
        acc += tl.load(tile, mask=mask, other=0).to(ACC)
        tile += BR * stride_h
    if full < hi:
        acc += tl.load(tile, mask=mask & (full + rows < hi), other=0).to(ACC)
    return acc


@triton.jit
def column_sums(ptrs, mask, r0, rows, H, H_OUT, stride_h, ACC: tl.constexpr, KH: tl.constexpr,
                KHP: tl.constexpr, SH: tl.constexpr, PH: tl.constexpr, DH: tl.constexpr,
                BP: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Per column, the sum over the row band of each kh, within rows [r0, r0 + rows): [BP, KHP, BC]."""
    core_lo, core_hi = core_rows(r0, rows, H, H_OUT, KH, SH, PH, DH)
    last_lo, unused = band(KH - 1, H, H_OUT, SH, PH, DH)
    unused, first_hi = band(0, H, H_OUT, SH, PH, DH)
    rim_lo, rim_hi = clip(last_lo, first_hi, r0, rows)
    kh = tl.arange(0, KHP)[None, :, None]
    lo, hi = band(kh, H, H_OUT, SH, PH, DH)
    lo, hi = clip(lo, hi, r0, rows)
    hi = tl.where(kh < KH, hi, 0)
    rims = tl.zeros((BP, KHP, BC), ACC)
    for i in range(tl.maximum(core_lo - rim_lo, rim_hi - core_hi)):
        above = lo + i
        below = tl.maximum(lo, core_hi) + i
        above_mask = mask & (above < tl.minimum(hi, core_lo))
        below_mask = mask & (below < hi)
        rims += tl.load(ptrs + above.to(tl.int64) * stride_h, mask=above_mask, other=0).to(ACC)
        rims += tl.load(ptrs + below.to(tl.int64) * stride_h, mask=below_mask, other=0).to(ACC)

    core = tl.sum(stream_rows(ptrs, mask, core_lo, core_hi, stride_h, ACC, BP, BR, BC), 1)
    return rims + core[:, None, :]


@triton.jit
def tap_sums(columns, col, W, W_OUT, KW: tl.constexpr, KWP: tl.constexpr, SW: tl.constexpr,
             PW: tl.constexpr, DW: tl.constexpr):  # fmt: skip
    """Sum of columns [BP, KHP, BC] over the column band of each kw: [BP, KHP, KWP]."""
    kw = tl.arange(0, KWP)[:, None]
    lo, hi = band(kw, W, W_OUT, SW, PW, DW)
    inside = (kw < KW) & (col[None, :] >= lo) & (col[None, :] < hi)
    return tl.sum(tl.where(inside[None, None, :, :], columns[:, :, None, :], 0), 3)


@triton.jit
def finish(partials, counter, row, ROWS, col, mask, value, WIDTH: tl.constexpr, FR: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """Store one row of partial outputs. The last program to come gets (True, the sum of all rows).

    The counter is back at 0 for the next launch. Rows are added in one order whoever comes last, so
    the bits do not depend on timing.
    """
    tl.store(partials + row * WIDTH + col, value, mask=mask)
    # The barrier puts all threads' stores before one thread's release, and its acquire before
    # all threads' loads.
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == ROWS - 1
    total = tl.zeros((FR, WIDTH), ACC)
    if last:
        r = tl.arange(0, FR)[:, None]
        for start in range(0, ROWS, FR):
            ptrs = partials + (start + r) * WIDTH + col[None, :]
            # Other multiprocessors wrote these rows: .cg reads them from L2, past a stale L1.
            total += tl.load(ptrs, mask=(start + r < ROWS) & mask[None, :], other=0, cache_modifier=".cg")
        tl.store(counter, 0)
    return last, tl.sum(total, 0)


@triton.jit
def multiply_gap(y, out, partials, counters, multiplier, stride_n, stride_c, stride_h, stride_w,
                 mult_n, mult_c, scale, C, H, W, ROWS: tl.constexpr, TENSOR: tl.constexpr,
                 SINGLE: tl.constexpr, ACC: tl.constexpr, BP: tl.constexpr, BR: tl.constexpr,
                 BC: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    # 1 who am I
    tile, part, parts, n, c, r0, rows, col = locate(C, H, W, ROWS, BP, BC)
    n = n.to(tl.int64)
    # 2 addresses
    planes = y + n * stride_n + c.to(tl.int64) * stride_c
    ptrs = planes[:, None, None] + r0 * stride_h + col[None, None, :] * stride_w
    mask = (c < C)[:, None, None] & (col < W)[None, None, :]
    # 3 masked load, 4 accumulate
    acc = stream_rows(ptrs, mask, 0, rows, stride_h, ACC, BP, BR, BC)
    # 5 reduce
    total = tl.sum(tl.reshape(acc, (BP, BR * BC)), 1)
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
        tl.store(out + n * C + c, total.to(out.dtype.element_ty), mask=c < C)


@triton.jit
def multiply_gap_flat(y, out, multiplier, stride_n, mult_n, mult_c, scale, C, PLANE: tl.constexpr,
                      TENSOR: tl.constexpr, ACC: tl.constexpr, FOLD: tl.constexpr, BP: tl.constexpr,
                      RUN: tl.constexpr, PIECES: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    # 1 who am I: BP small planes that lie one behind the other
    blocks = tl.cdiv(C, BP)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BP
    c = first + tl.arange(0, BP)
    # 2 addresses: one run of memory, read in wide loads whatever the size of a plane
    i = tl.arange(0, RUN)
    length = tl.multiple_of(tl.minimum(BP, C - first) * PLANE, VEC)
    # 3 masked load
    run = tl.load(y + n * stride_n + first * PLANE + i, mask=i < length, other=0).to(ACC)
    # 4 accumulate what is sure to belong to one plane, 5 regroup by plane and reduce
    run = tl.sum(tl.reshape(run, (RUN // FOLD, FOLD)), 1)
    piece = tl.arange(0, PIECES)[None, :]
    if PIECES * FOLD == PLANE:
        total = tl.sum(tl.reshape(run, (BP, PIECES)), 1)
    else:
        index = tl.arange(0, BP)[:, None] * (PLANE // FOLD) + tl.minimum(piece, PLANE // FOLD - 1)
        planes = tl.reshape(tl.gather(run, tl.reshape(index, (BP * PIECES,)), 0), (BP, PIECES))
        total = tl.sum(tl.where(piece < PLANE // FOLD, planes, 0), 1)
    # 6 scale
    total = (total * scale).to(ACC)
    if TENSOR:
        total *= tl.load(multiplier + n * mult_n + c.to(tl.int64) * mult_c, mask=c < C, other=0).to(ACC)
    # 7 store
    tl.store(out + n * C + c, total.to(out.dtype.element_ty), mask=c < C)


@triton.jit
def band_sums(x, sums, stride_n, stride_c, stride_h, stride_w, C, H, W, H_OUT, W_OUT,
              ROWS: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
              KHP: tl.constexpr, KWP: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
              PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
              BP: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    # 1 who am I
    tile, part, parts, n, c, r0, rows, col = locate(C, H, W, ROWS, BP, BC)
    n = n.to(tl.int64)
    # 2 addresses
    planes = x + n * stride_n + c.to(tl.int64) * stride_c
    ptrs = planes[:, None, None] + r0 * stride_h + col[None, None, :] * stride_w
    mask = (c < C)[:, None, None] & (col < W)[None, None, :]
    kh = tl.arange(0, KHP)[None, :, None]
    kw = tl.arange(0, KWP)[None, None, :]
    # 3 masked load, 4 accumulate
    columns = column_sums(ptrs, mask, r0, rows, H, H_OUT, stride_h, ACC, KH, KHP, SH, PH, DH, BP, BR, BC)
    # 5 reduce
    total = tap_sums(columns, col, W, W_OUT, KW, KWP, SW, PW, DW)
    # 7 store
    to = sums + ((n * C + c) * parts + part)[:, None, None] * (KH * KW) + kh * KW + kw
    tl.store(to, total, mask=(c < C)[:, None, None] & (kh < KH) & (kw < KW))


@triton.jit
def contract(sums, weight, bias, out, multiplier, mult_n, mult_c, scale, bias_scale, N, G, CI, CO,
             PARTS, H, W, H_OUT, W_OUT, TENSOR: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr,
             KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
             PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
             BN: tl.constexpr, BCO: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    # 1 who am I: block of outputs of one group, block of samples
    blocks = tl.cdiv(CO, BCO)
    g = (tl.program_id(1) // blocks).to(tl.int64)
    co = tl.program_id(1) % blocks * BCO + tl.arange(0, BCO)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    # 2 addresses: k runs over (ci, tap)
    k = tl.arange(0, BK)
    weight += g * CI * CO * (KH * KW) + co[:, None].to(tl.int64) * (KH * KW)
    sums += (n[:, None] * G + g) * CI * PARTS * (KH * KW)
    acc = tl.zeros((BN, BCO), ACC)
    for k0 in range(0, CI * (KH * KW), BK):
        ci = ((k0 + k) // (KH * KW))[None, :]
        tap = ((k0 + k) % (KH * KW))[None, :]
        live = (ci < CI) & lands(tap, H, W, H_OUT, W_OUT, KW, SH, SW, PH, PW, DH, DW)
        # 3 masked load
        w_ptrs = weight + ci.to(tl.int64) * CO * (KH * KW) + tap
        w = tl.load(w_ptrs, mask=(co < CO)[:, None] & live, other=0).to(ACC)
        t = tl.zeros((BN, BK), ACC)
        for part in range(PARTS):
            t_ptrs = sums + (ci.to(tl.int64) * PARTS + part) * (KH * KW) + tap
            t += tl.load(t_ptrs, mask=(n < N)[:, None] & live, other=0)
        # 4 accumulate, 5 reduce
        acc += tl.sum(t[:, None, :] * w[None, :, :], 2)
    # 6 scale and bias
    c = (g * CO + co)[None, :]
    mask = (n < N)[:, None] & (co < CO)[None, :]
    acc = (acc * scale).to(ACC)
    if BIAS:
        acc += (bias_scale * tl.load(bias + c, mask=(co < CO)[None, :], other=0)).to(ACC)
    if TENSOR:
        acc *= tl.load(multiplier + n[:, None] * mult_n + c * mult_c, mask=mask, other=0).to(ACC)
    # 7 store
    tl.store(out + n[:, None] * (G * CO) + c, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def band_sums_contract(x, weight, bias, out, partials, counters, multiplier, stride_n, stride_c,
                       stride_h, stride_w, mult_n, mult_c, scale, bias_scale, G, CI, CO, H, W,
                       H_OUT, W_OUT, ROWS: tl.constexpr, TENSOR: tl.constexpr, BIAS: tl.constexpr,
                       ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, KHP: tl.constexpr,
                       KWP: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
                       PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BR: tl.constexpr,
                       BC: tl.constexpr, BCO: tl.constexpr, FR: tl.constexpr):  # fmt: skip
    # 1 who am I: a part of one plane
    tile, part, parts, ng, ci, r0, rows, col = locate(CI, H, W, ROWS, 1, BC)
    n = (ng // G).to(tl.int64)
    g = (ng % G).to(tl.int64)
    # 2 addresses
    planes = x + n * stride_n + (g * CI + ci) * stride_c
    ptrs = planes[:, None, None] + r0 * stride_h + col[None, None, :] * stride_w
    mask = (col < W)[None, None, :]
    co = tl.arange(0, BCO)
    kh = tl.arange(0, KHP)[None, :, None]
    kw = tl.arange(0, KWP)[None, None, :]
    tap = kh * KW + kw
    live = (kh < KH) & (kw < KW) & lands(tap, H, W, H_OUT, W_OUT, KW, SH, SW, PH, PW, DH, DW)
    w_ptrs = weight + ((g * CI + tile % CI) * CO + co)[:, None, None] * (KH * KW) + tap
    # 3 masked load, 4 accumulate. The weights come first: they arrive while the plane streams.
    w = tl.load(w_ptrs, mask=live & (co < CO)[:, None, None], other=0)
    columns = column_sums(ptrs, mask, r0, rows, H, H_OUT, stride_h, ACC, KH, KHP, SH, PH, DH, 1, BR, BC)
    # 5 reduce
    total = tap_sums(columns, col, W, W_OUT, KW, KWP, SW, PW, DW)
    partial = tl.sum(tl.sum(total * w.to(ACC), 2), 1)
    FROM = CI * parts
    partials += ng.to(tl.int64) * FROM * BCO
    last, total = finish(partials, counters + ng, tile % CI * parts + part, FROM, co, co < CO, partial,
                         BCO, FR, ACC)  # fmt: skip
    if last:
        # 6 scale and bias
        c = g * CO + co
        total = (total * scale).to(ACC)
        if BIAS:
            total += (bias_scale * tl.load(bias + c, mask=co < CO, other=0)).to(ACC)
        if TENSOR:
            total *= tl.load(multiplier + n * mult_n + c * mult_c, mask=co < CO, other=0).to(ACC)
        # 7 store
        tl.store(out + n * (G * CO) + c, total.to(out.dtype.element_ty), mask=co < CO)


@triton.jit
def expand(grad, weight, d, grad_n, grad_c, scale, N, G, CI, CO, ACC: tl.constexpr, KK: tl.constexpr,
           BN: tl.constexpr, BCO: tl.constexpr, BK: tl.constexpr):  # fmt: skip
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
def band_fill(d, dx, stride_n, stride_c, stride_h, stride_w, C, H, W, H_OUT, W_OUT,
              ROWS: tl.constexpr, ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
              KHP: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
              PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BP: tl.constexpr,
              BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    # 1 who am I
    tile, part, parts, n, c, r0, rows, col = locate(C, H, W, ROWS, BP, BC)
    n = n.to(tl.int64)
    # 2 addresses
    planes = dx + n * stride_n + c.to(tl.int64) * stride_c
    ptrs = planes[:, None, None] + r0 * stride_h + col[None, None, :] * stride_w
    mask = (c < C)[:, None, None] & (col < W)[None, None, :]
    kh = tl.arange(0, KHP)[None, :, None]
    d += (n * C + c)[:, None, None] * (KH * KW) + kh * KW
    columns = tl.zeros((BP, KHP, BC), ACC)
    for kw in range(KW):
        # 3 masked load, 4 accumulate
        lo, hi = band(kw, W, W_OUT, SW, PW, DW)
        inside = ((col >= lo) & (col < hi))[None, None, :]
        columns += tl.where(inside, tl.load(d + kw, mask=(c < C)[:, None, None] & (kh < KH), other=0), 0)
    # 7 store: every row of the core has the same values, the rows around it have fewer taps
    core_lo, core_hi = core_rows(r0, rows, H, H_OUT, KH, SH, PH, DH)
    core = tl.sum(columns, 1)[:, None, :].to(dx.dtype.element_ty)
    row = tl.arange(0, BR)[None, :, None]
    for r in range(core_lo, core_hi, BR):
        tile_ptrs = ptrs + (r + row).to(tl.int64) * stride_h
        tl.store(tile_ptrs, tl.broadcast_to(core, (BP, BR, BC)), mask=mask & (r + row < core_hi))
    lo, hi = band(kh, H, H_OUT, SH, PH, DH)
    lo, hi = clip(lo, hi, r0, rows)
    for i in range(rows - (core_hi - core_lo)):
        r = tl.where(i < core_lo, i, i + (core_hi - core_lo))
        rim = tl.sum(tl.where((r >= lo) & (r < hi), columns, 0), 1)[:, None, :]
        tl.store(ptrs + r.to(tl.int64) * stride_h, rim.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def weight_grad(grad, sums, dw, grad_n, grad_c, scale, N, G, CI, CO, PARTS, H, W, H_OUT, W_OUT,
                ACC: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, KKP: tl.constexpr,
                SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
                DH: tl.constexpr, DW: tl.constexpr, BN: tl.constexpr, BCO: tl.constexpr):  # fmt: skip
    # 1 who am I: input plane, block of the outputs of its group
    ci = tl.program_id(0).to(tl.int64)
    g = ci // CI
    co = tl.program_id(1) * BCO + tl.arange(0, BCO)
    # 2 addresses
    c = (g * CO + co)[None, :]
    tap = tl.arange(0, KKP)[None, :]
    live = (tap < KH * KW) & lands(tap, H, W, H_OUT, W_OUT, KW, SH, SW, PH, PW, DH, DW)
    acc = tl.zeros((BCO, KKP), ACC)
    for n0 in range(0, N, BN):
        n = (n0 + tl.arange(0, BN)).to(tl.int64)[:, None]
        mask = (n < N) & (co < CO)[None, :]
        # 3 masked load
        v = tl.load(grad + n * grad_n + c * grad_c, mask=mask, other=0)
        t = tl.zeros((BN, KKP), ACC)
        for part in range(PARTS):
            t_ptrs = sums + ((n * (G * CI) + ci) * PARTS + part) * (KH * KW) + tap
            t += tl.load(t_ptrs, mask=(n < N) & live, other=0)
        # 4 accumulate, 5 reduce
        acc += tl.sum(v[:, :, None] * t[:, None, :], 0)
    # 6 scale; a tap that lands nowhere has gradient 0 whatever grad holds, 7 store
    to = dw + (ci * CO + co[:, None]) * (KH * KW) + tap
    acc = tl.where(live, (acc * scale).to(ACC), 0)
    tl.store(to, acc.to(dw.dtype.element_ty), mask=(co < CO)[:, None] & (tap < KH * KW))
