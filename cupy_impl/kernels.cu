// The CUDA C++ kernels. triton_impl/kernels.py is the same file in Triton: same names, order, steps.
//
//     multiply_gap         out[n, c]  = multiplier / (H*W) * sum of y[n, c]
//     multiply_gap_flat    the same, for small planes that lie one behind the other
//     band_sums            T[n, ci, rb, cb] = sum of x[n, ci] over row band rb and column band cb
//     contract             out[n, co] = multiplier * (bias[co] + 1/(Hout*Wout) * sum of T * weight)
//     band_sums_contract   both in one launch, for weights that are small beside the planes
//     planes_contract      both in one launch, for small planes: a matrix product, one operand made of x on the way in
//     expand               d[n, ci, rb, cb] = multiplier/(Hout*Wout) * sum over co of grad * weight
//     band_fill            dx[n, ci, h, w]  = sum of d[n, ci] over the bands that hold (h, w)
//     weight_grad          dweight[ci, co, kh, kw] = multiplier/(Hout*Wout) * sum over n of grad * T,
//                          dbias[co] = multiplier * sum over n of grad
//
// Sizes and strides are arguments. One compilation makes one kernel, and what fixes its code are macros: KERNEL_<name>,
// ELEMENT and ACC (types), THREADS (most threads of a block), the bands (BEFORE_H, AFTER_H, TAPS_H and the same of W),
// and the uppercase constants that each part names.
//
// Row band rb is rows [before_h[rb], H - after_h[rb]) of the input, and what the kernel rows [taps_h[rb], taps_h[rb + 1])
// see; columns likewise. before falls and after grows with the band. Weights of taps with equal bands are added before
// they meet T. Planes stored column by column come with rows and columns SWAPPED: only in T and in the weights do bands and
// taps keep the tensor's order.

typedef long long index_t;

// Threads of this block: a constant where sizes are.
#ifndef BLOCK
#define BLOCK (int)blockDim.x
#endif

__device__ __forceinline__ bool finite(ACC value) { return value - value == 0; }

// i / d for 0 <= i < 2^31, of `by`, which prepare.divisor makes of d: three instructions, where a division takes 30.
__device__ __forceinline__ int quotient(int i, index_t by) {
    return (int)(__umulhi((unsigned)i << 1, (unsigned)by) >> (unsigned)(by >> 32));
}

#ifdef BEFORE_H
// LIMIT is int, unless planes have 2^30 rows or columns or more, or some band leaves out as many.
typedef LIMIT limit_t;
__device__ constexpr limit_t before_h[] = {BEFORE_H}, after_h[] = {AFTER_H}, before_w[] = {BEFORE_W}, after_w[] = {AFTER_W};
__device__ constexpr int taps_h[] = {TAPS_H}, taps_w[] = {TAPS_W};
constexpr int RB = sizeof(before_h) / sizeof(limit_t), CB = sizeof(before_w) / sizeof(limit_t), SUMS = RB * CB;

// Place of bands (rb, cb) in the sums of a plane.
__device__ __forceinline__ int sum_at(int rb, int cb) { return SWAPPED ? cb * RB + rb : rb * CB + cb; }

// Whether the bands hold anything: a weight that never meets x must not turn 0 into NaN.
__device__ __forceinline__ bool lands(int rb, int cb, index_t H, index_t W) {
    return (index_t)before_h[rb] + after_h[rb] < H && (index_t)before_w[cb] + after_w[cb] < W;
}

struct Range { int lo, hi; };

// A part of an axis: `length` of its places, from one that has `start` before it and `rest` behind it, itself among them.
struct Part {
    limit_t start, rest;
    int length;
    __device__ __forceinline__ Part(index_t from, index_t size, int most) : start((limit_t)from), rest((limit_t)(size - from)) {
        length = (int)min(rest, (limit_t)most);
    }
    // What of [before, size - after) is in it, counted from its first place.
    __device__ __forceinline__ Range cut(limit_t before, limit_t after) const {
        return {(int)min(max(before - start, (limit_t)0), (limit_t)length),
                (int)min(max(rest - after, (limit_t)0), (limit_t)length)};
    }
    // What every band holds, an empty range where there is no such place; what some band may hold.
    __device__ __forceinline__ Range core(const limit_t* before, const limit_t* after, int bands) const {
        Range found = cut(before[0], after[bands - 1]);
        found.hi = max(found.lo, found.hi);
        return found;
    }
    __device__ __forceinline__ Range all(const limit_t* before, const limit_t* after, int bands) const {
        return cut(before[bands - 1], after[0]);
    }
};
#endif

#ifdef KH
constexpr int KK = KH * KW;

// Band of each kernel index.
template <int K> struct Inverse { int of[K]; };
template <int K> __device__ constexpr Inverse<K> invert(const int* taps) {
    Inverse<K> band{};
    for (int k = 0, b = 0; k < K; k++) {
        if (k == taps[b + 1]) b++;
        band.of[k] = b;
    }
    return band;
}
__device__ constexpr Inverse<KH> band_h = invert<KH>(taps_h);
__device__ constexpr Inverse<KW> band_w = invert<KW>(taps_w);

// Place of tap (kh, kw) in the weights of a pair of planes.
__device__ __forceinline__ int tap_at(int kh, int kw) { return SWAPPED ? kw * KH + kh : kh * KW + kw; }

// total + t * weight for one tap of the bands after the other: where t or the sum of the weights is infinite or NaN, that
// sum must not be used.
__device__ __noinline__ ACC add_taps(ACC total, ACC t, const ELEMENT* weight, int rb, int cb) {
    #pragma unroll 1
    for (int kh = taps_h[rb]; kh < taps_h[rb + 1]; kh++)
        #pragma unroll 1
        for (int kw = taps_w[cb]; kw < taps_w[cb + 1]; kw++) total = mad(t, widen(weight[tap_at(kh, kw)]), total);
    return total;
}
#endif

// ---- Reading planes ----------------------------------------------------------------------------------------------------
//
// A block has `planes` planes of one sample, and walks down `rows` rows of `cols` columns of them: a part. Threads
// are dealt out in one of two ways.
//
// AXIS 3: VEC elements of a row. `lanes` threads share a plane. A step is `step` whole rows, that is `accesses`
// accesses, one for each of the first lanes: so a thread keeps its columns, and bands of columns cost nothing in the stream.
// Where a plane is one RUN of memory, the accesses of a step run on from one row to the next. If it may begin anywhere (RUN 2),
// the stream begins at the first aligned place, and what the lanes have added up then goes to those that would have had it
// otherwise: so bits do not depend on the address.
// AXIS 1: VEC planes at one place (channels_last). The core is a rectangle, and all around it are rims.
//
// The core is what every band holds: [before(0), size - after(last)). The rims are what is in some bands.

#ifdef AXIS
// Words of an access, as loaded: the compiler may keep a register for each half of a word that it sees as two elements.
template <bool WORDS> struct Loaded { typedef vec<unsigned, VEC * sizeof(ELEMENT) / 4> type; };
template <> struct Loaded<false> { typedef vec<ELEMENT, VEC> type; };
typedef vec<ELEMENT, VEC> access;
typedef Loaded<sizeof(access) >= 4>::type words;
union Access { words loaded; access elements; };
constexpr int RIMS = AXIS == 1 ? 1 : 3;   // that a thread asks for early
constexpr int OWN = AXIS == 1 ? VEC : 1, TURN = PLANES / OWN;   // planes of a thread; threads of all planes at one place
typedef vec<ELEMENT, OWN> rim_access;

struct Place {
    int n, tile, part, first, p, lane;   // first: plane of the block; p: this thread's plane, from there
    index_t r0, c0;
};

// Place of this block and thread: parts run fastest, then blocks of planes, then samples. A thread's plane is t >> shift.
__device__ __forceinline__ Place locate(index_t blocks_by, index_t parts_by, index_t cuts_by, int blocks, int parts, int cuts,
                                        int rows, int cols, int planes, int shift) {
    Place at;
    at.tile = quotient(blockIdx.x, parts_by);
    at.part = blockIdx.x - at.tile * parts;
    int n = quotient(at.tile, blocks_by), across = quotient(at.part, cuts_by), t = threadIdx.x;
    at.n = n;
    at.first = (at.tile - n * blocks) * planes;
    at.r0 = (index_t)(at.part - across * cuts) * rows;
    at.c0 = (index_t)across * cols;
    at.p = AXIS == 1 ? t % TURN * VEC : t >> shift;
    at.lane = AXIS == 1 ? t / TURN : t - (at.p << shift);
    return at;
}

// acc plus `count` accesses by the threads of a plane, of which this has numbers lane, lane + by, ...; next(p) moves on by
// `by`. All lanes take a whole round of UNROLL, or none does: then a load is one instruction, without a mask. Once the first
// loads are under way, `meanwhile` runs.
template <class Next, class Meanwhile> __device__ __forceinline__ void stream(
    const ELEMENT* p, bool busy, int lane, int by, int count, ACC (&acc)[VEC], Next next, Meanwhile meanwhile) {
    #pragma unroll 1
    for (bool first = true; first || count > 0; first = false, count -= UNROLL * by) {
        words held[UNROLL];
        if (busy && count >= UNROLL * by) {
            #pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                held[u] = load_streaming((const words*)p);
                next(p);
            }
        } else {
            #pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                held[u] = busy && lane + u * by < count ? load_streaming((const words*)p) : words{};
                next(p);
            }
        }
        if (first) meanwhile();
        #pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            Access one;
            one.loaded = held[u];
            for (int e = 0; e < VEC; e++) acc[e] += widen(one.elements.at[e]);
        }
    }
}

// Sums made at a time, each in a register: as many as leave room for the stream's.
constexpr int CBC = CB < 4 ? CB : 4, ROOM = 16 / OWN / CBC, RBC = RB < ROOM ? RB : ROOM < 1 ? 1 : ROOM, CHUNK = RBC * CBC;
// Warps, or groups of fewer than 32 lanes, that each have a sum of their own in the end.
constexpr int GROUPS = 32, RED = GROUPS * CHUNK * PLANES;

// sink(p, rb, cb, sum of plane p of the block over these bands), within this part, once for each. `plane`: the part's first
// element in this thread's plane. red: RED elements.
template <class Sink> __device__ __forceinline__ void sum_bands(
    const Place& at, const Part& down, const Part& across, const ELEMENT* plane, bool live, int planes, index_t stride_h,
    index_t stride_w, int cols, index_t cols_by, int step, int accesses, int lanes, ACC* red, Sink sink) {
    Range core = down.core(before_h, after_h, RB), rims = down.all(before_h, after_h, RB);
    Range middle = across.core(before_w, after_w, CB);
    int width = AXIS == 1 ? middle.hi - middle.lo : across.length;
    if (width == 0) core.hi = core.lo;
    // Rims: whole rows before and after the core, then what lies beside it. Row and column of number j:
    constexpr bool CROPPED = before_h[0] || after_h[RB - 1] || AXIS == 1 && (before_w[0] || after_w[CB - 1]);
    int top = core.lo - rims.lo, outer = CROPPED ? (top + max(0, rims.hi - core.hi)) * cols : 0;
    int all = CROPPED ? outer + (across.length - width) * (core.hi - core.lo) : 0;
    auto rim_at = [&](int j, int& row, int& col) {
        bool beside = AXIS == 1 && j >= outer;
        int length = beside ? across.length - width : cols;
        j -= beside ? outer : 0;
        row = beside ? j / length : quotient(j, cols_by);
        col = j - row * length;
        if (beside && col >= middle.lo) col += width;
        row += beside ? core.lo : row < top ? rims.lo : core.hi - top;
    };
    auto load_rim = [&](int j) {
        if (!CROPPED || !live || j >= all) return rim_access{};
        int row, col;
        rim_at(j, row, col);
        if (col >= across.length) return rim_access{};
        return load_streaming((const rim_access*)(plane + row * stride_h + col * stride_w));
    };
    // The first rims of a thread are asked for while the stream begins, and used after it.
    rim_access early[RIMS];
    auto load_rims = [&] {
        #pragma unroll
        for (int i = 0; i < RIMS; i++) early[i] = load_rim(at.lane + i * lanes);
    };
    ACC own[VEC] = {};
    int col = 0;   // of own[0]
    if (AXIS == 3) {
        int q = at.lane * VEC, row = quotient(q, cols_by), length = (core.hi - core.lo) * cols;
        col = q - row * cols;
        const ELEMENT* p = plane + core.lo * stride_h;
        int shift = RUN == 2 ? min(length, (int)-((index_t)p / (int)sizeof(ELEMENT)) & (VEC - 1)) : 0;
        int count = (length - shift) / VEC, tail = length - shift - count * VEC;
        index_t hop = RUN ? accesses * VEC : step * stride_h;
        const ELEMENT* end = p + shift + count * VEC;
        bool busy = live && at.lane < accesses && (RUN || col < across.length);
        // What comes before the first aligned place is first in the sums of the last lane.
        for (int e = 0; e < VEC && RUN == 2; e++)
            if (busy && at.lane == accesses - 1 && e >= VEC - shift) own[e] = widen(p[shift + e - VEC]);
        p += RUN ? shift + q : row * stride_h + col * stride_w;
        stream(p, busy, at.lane, accesses, count, own, [&](const ELEMENT*& at) { at += hop; }, load_rims);
        if (RUN == 2) {
            // And a part of an access may be left, for the lane whose turn it is.
            int over = count;
            while (over >= accesses) over -= accesses;
            for (int e = 0; e < VEC - 1; e++)
                if (busy && at.lane == over && e < tail) own[e] += widen(end[e]);
            __shared__ ACC turned[THREADS * VEC];
            ACC* mine = turned + at.p * lanes * VEC;
            for (int e = 0; e < VEC; e++)
                if (at.lane < accesses)
                    mine[q + e + shift < accesses * VEC ? q + e + shift : q + e + shift - accesses * VEC] = own[e];
            __syncthreads();
            for (int e = 0; e < VEC; e++)
                if (at.lane < accesses) own[e] = mine[q + e];
        }
    } else {
        int turn = max(width, 1), row = at.lane / turn, rows = lanes / turn, rest = lanes - rows * turn;
        int c = at.lane - row * turn;
        index_t hop = rows * stride_h + rest * stride_w, wrap = stride_h - width * stride_w;
        stream(
            plane + (core.lo + row) * stride_h + (middle.lo + c) * stride_w, live, at.lane, lanes,
            (core.hi - core.lo) * width, own,
            [&](const ELEMENT*& at) {
                at += hop;
                c += rest;
                if (c >= width) c -= width, at += wrap;
            },
            load_rims);
    }
    #pragma unroll 1
    for (int rb0 = 0; rb0 < RB; rb0 += RBC)
        #pragma unroll 1
        for (int cb0 = 0; cb0 < CB; cb0 += CBC) {
            ACC sums[CHUNK][OWN];
            Range columns[CBC], lines[RBC];
            #pragma unroll
            for (int x = 0; x < CBC; x++) {
                int cb = min(cb0 + x, CB - 1);
                columns[x] = across.cut(before_w[cb], after_w[cb]);
            }
            #pragma unroll
            for (int r = 0; r < RBC; r++) {
                int rb = min(rb0 + r, RB - 1);
                lines[r] = down.cut(before_h[rb], after_h[rb]);
            }
            // The core is in every band of rows; in AXIS 1, of columns too.
            #pragma unroll
            for (int x = 0; x < CBC; x++) {
                ACC total = 0;
                int c = col;
                #pragma unroll
                for (int e = 0; e < VEC && AXIS == 3; e++) {
                    total = c >= columns[x].lo && c < columns[x].hi ? total + own[e] : total;
                    c = c + 1 == cols ? 0 : c + 1;
                }
                #pragma unroll
                for (int r = 0; r < RBC; r++)
                    for (int e = 0; e < OWN; e++) sums[r * CBC + x][e] = AXIS == 3 ? total : own[e];
            }
            #pragma unroll 1
            for (int j = at.lane, i = 0; CROPPED && j < all; j += lanes, i++) {
                rim_access rim = early[0];
                #pragma unroll
                for (int k = 1; k < RIMS; k++)
                    if (i == k) rim = early[k];
                if (i >= RIMS) rim = load_rim(j);
                int row, c;
                rim_at(j, row, c);
                #pragma unroll
                for (int x = 0; x < CBC; x++)
                    #pragma unroll
                    for (int r = 0; r < RBC; r++) {
                        bool counts = c >= columns[x].lo && c < columns[x].hi && row >= lines[r].lo && row < lines[r].hi;
                        for (int e = 0; e < OWN; e++) {
                            ACC& sum = sums[r * CBC + x][e];
                            sum = counts ? sum + widen(rim.at[e]) : sum;
                        }
                    }
            }
            // Over the lanes of a warp, then over its plane's warps: one order, whatever the timing.
            int near = AXIS == 1 ? 32 / TURN : min(lanes, 32);
            #pragma unroll 1
            for (int l = near / 2; l > 0; l /= 2)
                #pragma unroll
                for (int i = 0; i < CHUNK; i++)
                    for (int e = 0; e < OWN; e++)
                        sums[i][e] += __shfl_xor_sync(0xffffffffu, sums[i][e], AXIS == 1 ? l * TURN : l);
            // red[group of lanes][plane][sum]; a group is `near` lanes of a plane, and they are `groups` of a plane.
            int warp = threadIdx.x / 32, groups = AXIS == 1 ? BLOCK / 32 : (lanes + 31) / 32;
            int group = AXIS == 1 ? warp * PLANES + at.p : lanes < 32 ? at.p : warp;
            if (AXIS == 1 ? threadIdx.x % 32 < TURN : (at.lane & near - 1) == 0)
                #pragma unroll
                for (int i = 0; i < CHUNK; i++)
                    for (int e = 0; e < OWN; e++) red[(group + e) * CHUNK + i] = sums[i][e];
            __syncthreads();
            #pragma unroll 1
            for (int i = threadIdx.x; i < planes * CHUNK; i += BLOCK) {
                int p = i / CHUNK, sum = i % CHUNK, rb = rb0 + sum / CBC, cb = cb0 + sum % CBC;
                const ACC* from = red + (AXIS == 1 ? i : p * groups * CHUNK + sum);
                ACC total = 0;
                #pragma unroll 1
                for (int g = 0; g < groups; g++, from += AXIS == 1 ? PLANES * CHUNK : CHUNK) total += *from;
                if (rb < RB && cb < CB) sink(p, rb, cb, total);
            }
            __syncthreads();
        }
}
#endif

// ---- Work that is cut in parts -------------------------------------------------------------------------------------------

// True in the last of `blocks` blocks to come here, which sees all that the others stored before they
// came. The counter is back at 0 for the next launch.
__device__ __forceinline__ bool arrive(unsigned* counter, int blocks) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        last = step(counter) == blocks - 1u;
        if (last) *counter = 0;
    }
    __syncthreads();
    return last;
}

// Sum over rows from, from + by, ... of a column of partials[rows][width]: in one order, whoever is last, so that bits do
// not depend on timing. Others wrote them: read from L2.
__device__ __forceinline__ ACC add_rows(const ACC* column, int from, int by, int rows, int width) {
    constexpr int FAR = 64 / (int)sizeof(ACC);
    ACC total = 0;
    column += (index_t)from * width;
    index_t hop = (index_t)by * width;
    #pragma unroll 1
    for (; from < rows; from += by * FAR) {
        ACC some[FAR];
        #pragma unroll
        for (int f = 0; f < FAR; f++, column += hop) some[f] = from + f * by < rows ? load_coherent(column) : 0;
        #pragma unroll
        for (int f = 0; f < FAR; f++) total += some[f];
    }
    return total;
}

// sink(column, its sum) for `count` columns of partials[rows][count], once each, from the block that came last. 1 << shift
// threads are side by side, and `shares` threads share a column. held: THREADS elements.
template <class Sink> __device__ __forceinline__ void add_parts(const ACC* partials, int rows, int count, int shift, int shares,
                                                                ACC* held, Sink sink) {
    int t = threadIdx.x, share = t >> shift, side = t - (share << shift);
    #pragma unroll 1
    for (int column = side; column - side < count; column += 1 << shift) {
        bool live = column < count && share < shares;
        ACC total = live ? add_rows(partials + column, share, shares, rows, count) : 0;
        if (shares > 1) {
            held[t] = total;
            __syncthreads();
            #pragma unroll 1
            for (int s = 1; s < shares && share == 0; s++) total += held[(s << shift) + side];
            __syncthreads();
        }
        if (live && share == 0) sink(column, total);
    }
}

// Steps 6 and 7 of one output: worked out in double and rounded once, for a scale may be beyond float.
__device__ __forceinline__ void scale_and_store(ACC total, ELEMENT* out, const ELEMENT* bias, const ACC* multiplier,
                                                double scale, double bias_scale) {
    // 6 scale and bias
    double value = (double)total * scale;
    if (bias) value += bias_scale * (double)widen(*bias);
    if (multiplier) value *= (double)*multiplier;
    // 7 store
    *out = narrow<ELEMENT>(value);
}

#ifdef KERNEL_multiply_gap
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_gap(
    const ELEMENT* y, ELEMENT* out, ACC* partials, unsigned* counters, const ACC* multiplier, index_t mult_n, index_t mult_c,
    double scale, int C, index_t H, index_t W, index_t stride_n, index_t stride_c, index_t stride_h, index_t stride_w,
    int rows, int cols, index_t cols_by, int step, int accesses, int lanes, int shift, int planes, int blocks,
    index_t blocks_by, int parts, index_t parts_by, int cuts, index_t cuts_by, int wide_shift, int shares,
    int tensor) {
    __shared__ ACC red[RED > THREADS ? RED : THREADS], totals[GROUPS * OWN];
    // 1 who am I
    Place at = locate(blocks_by, parts_by, cuts_by, blocks, parts, cuts, rows, cols, planes, shift);
    Part down(at.r0, H, rows), across(at.c0, W, cols);
    // 2 addresses
    int c = at.first + at.p;
    const ELEMENT* plane = y + (index_t)at.n * stride_n + c * stride_c + at.r0 * stride_h + at.c0 * stride_w;
    partials += (index_t)at.tile * parts * planes;
    ACC* to = parts == 1 ? totals : partials + at.part * planes;
    // 3 masked load, 4 accumulate, 5 reduce: a plane is one band
    sum_bands(at, down, across, plane, c < C, planes, stride_h, stride_w, cols, cols_by, step, accesses, lanes, red,
              [&](int p, int, int, ACC total) { to[p] = total; });
    auto finish = [&](int p, ACC total) {
        index_t c = at.first + p;
        if (c < C)
            scale_and_store(total, out + (index_t)at.n * C + c, nullptr,
                            tensor ? multiplier + at.n * mult_n + c * mult_c : nullptr, scale, 0);
    };
    if (parts > 1) {
        if (arrive(counters + at.tile, parts)) add_parts(partials, parts, planes, wide_shift, shares, red, finish);
        return;
    }
    if (threadIdx.x < planes) finish(threadIdx.x, totals[threadIdx.x]);
}
#endif

#ifdef KERNEL_multiply_gap_flat
// FOLD neighbours are sure to belong to one plane.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_gap_flat(
    const ELEMENT* y, ELEMENT* out, ACC* partials, unsigned* counters, const ACC* multiplier, index_t mult_n, index_t mult_c, double scale, int C,
    int plane, index_t stride_n, int planes, int blocks, index_t blocks_by, int lanes_shift, int tensor) {
    typedef vec<ELEMENT, VEC> access;
    __shared__ ACC pieces[(LOADS * THREADS + 1) * VEC / FOLD];
    // 1 who am I: some small planes that lie one behind the other
    int sample = quotient(blockIdx.x, blocks_by), first = (blockIdx.x - sample * blocks) * planes;
    index_t n = sample;
    // 2 addresses: one run of memory, read in wide loads from the last aligned place before it, whatever the size of a plane
    const ELEMENT* run = y + n * stride_n + (index_t)first * plane;
    int length = min(planes, C - first) * plane, skip = (index_t)run / (int)sizeof(ELEMENT) & (VEC - 1);
    run -= skip;
    length += skip;
    // 3 masked load; what an access at either end has of others' elements is not read
    access held[LOADS];
    #pragma unroll
    for (int u = 0; u < LOADS; u++) {
        int i = (threadIdx.x + u * THREADS) * VEC;
        held[u] = access{};
        if (i >= skip && i + VEC <= length) held[u] = load_streaming((const access*)(run + i));
        else
            for (int e = 0; e < VEC; e++)
                if (i + e >= skip && i + e < length) held[u].at[e] = run[i + e];
    }
    // 4 accumulate what is sure to belong to one plane
    #pragma unroll
    for (int u = 0; u < LOADS; u++)
        #pragma unroll
        for (int e = 0; e < VEC; e += FOLD) {
            ACC piece = widen(held[u].at[e]);
            for (int f = 1; f < FOLD; f++) piece += widen(held[u].at[e + f]);
            pieces[((threadIdx.x + u * THREADS) * VEC + e) / FOLD] = piece;
        }
    __syncthreads();
    // 5 regroup by plane and reduce
    int lanes = 1 << lanes_shift, lane = threadIdx.x & lanes - 1, count = plane / FOLD;
    #pragma unroll 1
    for (int p0 = 0; p0 < planes; p0 += THREADS >> lanes_shift) {
        int p = p0 + (threadIdx.x >> lanes_shift);
        ACC total = 0;
        #pragma unroll 1
        for (int i = lane; i < count && p < planes; i += lanes) total += pieces[skip / FOLD + p * count + i];
        #pragma unroll 1
        for (int l = lanes / 2; l > 0; l /= 2) total += __shfl_xor_sync(0xffffffffu, total, l);
        index_t c = first + p;
        if (lane == 0 && p < planes && c < C)
            scale_and_store(total, out + n * C + c, nullptr, tensor ? multiplier + n * mult_n + c * mult_c : nullptr, scale, 0);
    }
}
#endif

#ifdef KERNEL_band_sums
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) band_sums(
    const ELEMENT* x, ACC* sums, ACC* partials, unsigned* counters, int C, index_t H, index_t W, index_t stride_n,
    index_t stride_c, index_t stride_h, index_t stride_w, int rows, int cols, index_t cols_by, int step, int accesses, int lanes,
    int shift, int planes, int blocks, index_t blocks_by, int parts, index_t parts_by, int cuts, index_t cuts_by,
    int wide_shift, int shares) {
    __shared__ ACC red[RED > THREADS ? RED : THREADS];
    // 1 who am I
    Place at = locate(blocks_by, parts_by, cuts_by, blocks, parts, cuts, rows, cols, planes, shift);
    Part down(at.r0, H, rows), across(at.c0, W, cols);
    // 2 addresses
    int c = at.first + at.p, mine = min(planes, C - at.first) * SUMS, wide = planes * SUMS;
    const ELEMENT* plane = x + (index_t)at.n * stride_n + c * stride_c + at.r0 * stride_h + at.c0 * stride_w;
    sums += ((index_t)at.n * C + at.first) * SUMS;
    partials += (index_t)at.tile * parts * wide;
    ACC* to = parts == 1 ? sums : partials + (index_t)at.part * wide;
    // 3 masked load, 4 accumulate, 5 reduce, 7 store
    sum_bands(at, down, across, plane, c < C, planes, stride_h, stride_w, cols, cols_by, step, accesses, lanes, red,
              [&](int p, int rb, int cb, ACC total) {
                  int i = p * SUMS + sum_at(rb, cb);
                  if (i < mine) to[i] = total;
              });
    if (parts == 1 || !arrive(counters + at.tile, parts)) return;
    add_parts(partials, parts, wide, wide_shift, shares, red, [&](int i, ACC total) {
        if (i < mine) sums[i] = total;
    });
}
#endif

#ifdef KERNEL_band_sums_contract
// Begins to copy `count` elements into shared memory, by all threads of the block: in whole aligned accesses, and one by one
// what an access at either end has of others', for these may lie where there is no memory. Returns how many elements lie
// between the access that the first one is in and the first one. copy_wait, and a barrier, end it.
template <class T> __device__ __forceinline__ int copy_async(unsigned char* to, const T* from, int count) {
    constexpr int WIDE = 16 / (int)sizeof(T);
    int before = (index_t)from % 16 / (int)sizeof(T);
    #pragma unroll 1
    for (int i = threadIdx.x * WIDE - before; i < count; i += BLOCK * WIDE) {
        T* place = (T*)to + before + i;
        if (i >= 0 && i + WIDE <= count) {
            copy_begin<16>(place, from + i);
            continue;
        }
        #pragma unroll 1
        for (int e = max(i, 0); e < min(i + WIDE, count); e++) copy_begin<sizeof(T)>((T*)to + before + e, from + e);
    }
    return before;
}

// The folded weights of one output against the sums of a plane, of every count-th pair of bands from the share-th on.
__device__ __forceinline__ ACC add_products(ACC total, const ACC* sums, const ELEMENT* weight, int share, int count, index_t H,
                                            index_t W) {
    auto add = [&](int rb, int cb, ACC folded) {
        ACC t = sums[rb * CB + cb];
        if (!lands(rb, cb, H, W)) return;
        total = finite(t) && finite(folded) ? mad(t, folded, total) : add_taps(total, t, weight, rb, cb);
    };
    if (KK <= 49) {
        ACC folded[SUMS] = {};
        #pragma unroll
        for (int kh = 0; kh < KH; kh++)
            #pragma unroll
            for (int kw = 0; kw < KW; kw++) folded[band_h.of[kh] * CB + band_w.of[kw]] += widen(weight[tap_at(kh, kw)]);
        #pragma unroll
        for (int b = 0; b < SUMS; b++)
            if ((b & (count - 1)) == share) add(b / CB, b % CB, folded[b]);
    } else {
        #pragma unroll 1
        for (int b = share; b < SUMS; b += count) {
            int rb = b / CB, cb = b % CB;
            ACC folded = 0;
            #pragma unroll 1
            for (int kh = taps_h[rb]; kh < taps_h[rb + 1]; kh++)
                #pragma unroll 4
                for (int kw = taps_w[cb]; kw < taps_w[cb + 1]; kw++) folded += widen(weight[tap_at(kh, kw)]);
            add(rb, cb, folded);
        }
    }
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) band_sums_contract(
    const ELEMENT* x, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* out, ACC* partials, unsigned* counters,
    const ACC* multiplier, index_t mult_n, index_t mult_c, double scale, double bias_scale, int G, int CI, int CO, index_t H,
    index_t W, index_t stride_n, index_t stride_c, index_t stride_h, index_t stride_w, int rows, int cols, index_t cols_by,
    int step, int accesses, int turns, int blocks, index_t blocks_by, int parts, index_t parts_by, int cuts, index_t cuts_by,
    index_t G_by, int width_shift, int count, int biased, int tensor) {
    __shared__ ACC red[RED > THREADS ? RED : THREADS];
    // Aligned, so that no wide read of it holds a number that another thread may write.
    alignas(16) __shared__ ACC totals[SUMS];
    DYNAMIC_SHARED(staged);
    // 1 who am I: a part of one plane, or the same part of `turns` planes, one after the other
    int lanes = BLOCK;
    Place at = locate(blocks_by, parts_by, cuts_by, blocks, parts, cuts, rows, cols, 1, 31);
    Part down(at.r0, H, rows), across(at.c0, W, cols);
    int sample = quotient(at.n, G_by), g = at.n - sample * G, row = at.first * parts + at.part, all = blocks * parts;
    index_t n = sample, pair = at.n;
    int share = threadIdx.x >> width_shift, width = 1 << width_shift, co = threadIdx.x & width - 1;
    // 2 addresses
    index_t ci = (index_t)g * CI + at.first * turns;
    const ELEMENT* plane = x + n * stride_n + ci * stride_c + at.r0 * stride_h + at.c0 * stride_w;
    weight += ci * CO * KK;
    // 3 masked load, 4 accumulate. Weights come first: they arrive in shared memory while the plane streams.
    ACC partial = 0;
    #pragma unroll 1
    for (int turn = 0; turn < turns; turn++, plane += stride_c, weight += CO * KK) {
        int before = copy_async(staged, weight, CO * KK);
        // 5 reduce
        sum_bands(at, down, across, plane, true, 1, stride_h, stride_w, cols, cols_by, step, accesses, lanes, red,
                  [&](int, int rb, int cb, ACC total) { totals[rb * CB + cb] = total; });
        copy_wait();
        __syncthreads();
        if (co < CO && share < count)
            partial = add_products(partial, totals, (const ELEMENT*)staged + before + co * KK, share, count, H, W);
        __syncthreads();
    }
    red[threadIdx.x] = partial;
    __syncthreads();
    // One row of partial outputs; the last block of a sample adds all of them.
    partials += pair * all * CO;
    #pragma unroll 1
    for (int i = threadIdx.x; i < CO; i += BLOCK) {
        ACC total = red[i];
        #pragma unroll 1
        for (int s = 1; s < count; s++) total += red[s * width + i];
        partials[(index_t)row * CO + i] = total;
    }
    if (!arrive(counters + pair, all)) return;
    add_parts(partials, all, CO, width_shift, count, red, [&](int o, ACC total) {
        index_t c = (index_t)g * CO + o;
        scale_and_store(total, out + n * ((index_t)G * CO) + c, biased ? bias + c : nullptr,
                        tensor ? multiplier + n * mult_n + c * mult_c : nullptr, scale, bias_scale);
    });
}
#endif

// ---- Products ------------------------------------------------------------------------------------------------------------
//
// A block makes BM x BN numbers: sums over k of a[k][m] * b[k][n]. Both operands go through shared memory, KS of k at a step;
// what the next step needs is loaded into registers while this one is multiplied. Every warp makes all numbers, a thread PM x PN
// of them, of every WARPS-th k, and in the end the warps' sums are added. So each number that comes from shared
// memory is used eight times, and the order of additions depends on KS and WARPS alone: bits do not depend on how many
// samples there are.

#ifdef BM
constexpr int WARPS = THREADS / 32, TN = BN / PN, TM = 32 / TN, PM = BM / TM;
static_assert(PM * TM == BM && PN * TN == BN, "every thread has as much as the others");
constexpr int WIDE_M = PM < 4 ? PM : 4, WIDE_N = PN < 4 ? PN : 4;
constexpr int TIMES = (KS + WARPS - 1) / WARPS, ROUND = TIMES % 6 == 0 ? 6 : TIMES % 4 == 0 ? 4 : 2;   // of k: short code

// Place of number i in row k of a matrix of rows of LENGTH: where neighbouring lanes store neighbouring rows, these are to
// meet different banks.
template <int LENGTH, bool SWIZZLED = true> __device__ __forceinline__ int bank(int k, int i) {
    return k * LENGTH + (SWIZZLED ? i ^ (k & (LENGTH < 16 ? 1 : 3)) * 4 : i);
}
#ifdef KERNEL_expand
constexpr bool B_SWIZZLED = true;
#else
constexpr bool B_SWIZZLED = false;
#endif

// `made` is where the block puts what it has made, and what half of its warps have.
union Matrices {
    struct { alignas(32) ACC a[KS * BM], b[KS * BN]; };
    ACC made[WARPS / 2][BM * BN];
};

// load(step) loads into registers what store(step, a, b) puts in place, which says whether all of it is finite. Where it is
// not, slow(step, k, m, n, a, b, total) gives total + a * b. In the end shared.made[0] holds the numbers, row by row.
template <class Load, class Store, class Slow> __device__ __forceinline__ void products(
    Matrices& shared, int steps, Load load, Store store, Slow slow) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m = lane / TN * PM, n = lane % TN * PN;
    const ACC *a = shared.a, *b = shared.b;
    ACC acc[PM][PN] = {};
    load(0);
    #pragma unroll 1
    for (int step = 0; step < steps; step++) {
        __syncthreads();
        bool wild = !store(step, shared.a, shared.b);
        wild = __syncthreads_or(wild);
        if (step + 1 < steps) load(step + 1);
        if (!wild) {
            // What the next k needs comes from shared memory while this one is multiplied.
            ACC left[2][PM], right[2][PN];
            auto fetch = [&](int i) {
                int k = warp + i * WARPS;
                #pragma unroll
                for (int q = 0; q < PM; q += WIDE_M)
                    *(vec<ACC, WIDE_M>*)(left[i & 1] + q) = *(const vec<ACC, WIDE_M>*)(a + bank<BM>(k, m + q));
                #pragma unroll
                for (int q = 0; q < PN; q += WIDE_N)
                    *(vec<ACC, WIDE_N>*)(right[i & 1] + q) = *(const vec<ACC, WIDE_N>*)(b + bank<BN, B_SWIZZLED>(k, n + q));
            };
            fetch(0);
            #pragma unroll ROUND
            for (int i = 0; i < TIMES; i++) {
                if (warp + (i + 1) * WARPS < KS) fetch(i + 1);
                if (KS % WARPS && warp + i * WARPS >= KS) break;
                #pragma unroll
                for (int y = 0; y < PM; y++)
                    for (int x = 0; x < PN; x++) acc[y][x] = mad(left[i & 1][y], right[i & 1][x], acc[y][x]);
            }
            continue;
        }
        // One number after the other by the same code: the first is worked on, and all move on by one.
        #pragma unroll 1
        for (int k = warp; k < KS; k += WARPS)
            #pragma unroll 1
            for (int i = 0; i < PM * PN; i++) {
                int row = m + i / PN, column = n + i % PN;
                ACC first = slow(step, k, row, column, a[bank<BM>(k, row)], b[bank<BN, B_SWIZZLED>(k, column)], acc[0][0]);
                #pragma unroll
                for (int j = 1; j < PM * PN; j++) acc[(j - 1) / PN][(j - 1) % PN] = acc[j / PN][j % PN];
                acc[PM - 1][PN - 1] = first;
            }
    }
    // 5 reduce: half of the warps hand over to the other half, until one has it all
    #pragma unroll 1
    for (int half = WARPS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (warp >= half && warp < 2 * half)
            #pragma unroll
            for (int i = 0; i < PM * PN; i++) shared.made[warp - half][i * 32 + lane] = acc[i / PN][i % PN];
        __syncthreads();
        if (warp < half)
            #pragma unroll
            for (int i = 0; i < PM * PN; i++) acc[i / PN][i % PN] += shared.made[warp][i * 32 + lane];
    }
    __syncthreads();
    if (warp == 0)
        #pragma unroll
        for (int i = 0; i < PM * PN; i++) shared.made[0][(m + i / PN) * BN + n + i % PN] = acc[i / PN][i % PN];
    __syncthreads();
}

// Slices of a sum of products: each block stores its own COUNT numbers, of which the first `live` count, and the block that
// comes last adds them up in their order. True in that block, whose `made` then holds the sums.
template <int COUNT> __device__ __forceinline__ bool add_slices(ACC* made, int live, ACC* partials, unsigned* counters,
                                                                int number, int split, int slices) {
    constexpr int LONG = 16 / sizeof(ACC), SIZE = COUNT / LONG, AHEAD = 16;
    static_assert(SIZE * LONG == COUNT, "whole accesses");
    typedef vec<ACC, LONG> wide;
    if (slices == 1) return true;
    wide* all = (wide*)partials + (index_t)number * slices * SIZE;
    #pragma unroll 1
    for (int i = threadIdx.x; i < live / LONG; i += THREADS) store_wide(all + split * SIZE + i, ((wide*)made)[i]);
    if (!arrive(counters + number, slices)) return false;
    #pragma unroll 1
    for (int i = threadIdx.x; i < live / LONG; i += THREADS) {
        wide total{};
        const wide* from = all + i;
        #pragma unroll 1
        for (int s = 0; s < slices; s += AHEAD) {
            wide some[AHEAD];
            #pragma unroll
            for (int f = 0; f < AHEAD; f++, from += SIZE) some[f] = s + f < slices ? load_coherent(from) : wide{};
            #pragma unroll
            for (int f = 0; f < AHEAD; f++)
                for (int e = 0; e < LONG; e++) total.at[e] += some[f].at[e];
        }
        ((wide*)made)[i] = total;
    }
    __syncthreads();
    return true;
}

__device__ constexpr int common(int a, int b) { return b ? common(b, a % b) : a; }

// KS numbers of each of BM rows, on their way: a warp loads four rows by eight numbers at a time.
constexpr int WARPS_DOWN = BM / 4 < WARPS ? BM / 4 : WARPS, DOWN = BM / 4 / WARPS_DOWN;
constexpr int EIGHT = 8 * WARPS / WARPS_DOWN, ALONG = (KS + EIGHT - 1) / EIGHT;
struct Rows {
    ACC held[DOWN][ALONG];
    int m, k;
    __device__ __forceinline__ Rows() {
        int warp = threadIdx.x / 32 % WARPS;
        m = warp % WARPS_DOWN * 4 + threadIdx.x % 4;
        k = warp / WARPS_DOWN * 8 + threadIdx.x % 32 / 4;
    }
    // number k of row m is from[m * stride_m + k * stride_k], or 0 from `rows` or `length` on
    __device__ __forceinline__ void load(const ACC* from, index_t stride_m, index_t stride_k, int rows, int length) {
        from += m * stride_m + k * stride_k;
        #pragma unroll
        for (int i = 0; i < DOWN; i++, from += 4 * WARPS_DOWN * stride_m)
            #pragma unroll
            for (int j = 0; j < ALONG; j++)
                held[i][j] = m + i * 4 * WARPS_DOWN < rows && k + j * EIGHT < length ? from[j * EIGHT * stride_k] : 0;
    }
    // Says whether all are finite.
    __device__ __forceinline__ bool store(ACC* a) const {
        ACC check = 0;
        #pragma unroll
        for (int i = 0; i < DOWN; i++) {
            ACC* to = a + bank<BM>(k, m + i * 4 * WARPS_DOWN);
            #pragma unroll
            for (int j = 0; j < ALONG; j++) {
                check = mad(held[i][j], (ACC)0, check);
                if (KS % EIGHT == 0 || k + j * EIGHT < KS) to[j * EIGHT * BM] = held[i][j];
            }
        }
        return check == 0;
    }
};
#endif

#ifdef OUTS
// Folded weights of PLANES planes by OUTS outputs, all bands of a pair or BANDS of them at a time. Small kernels are held in
// registers, one pair of planes a thread; the taps of a large one are shared by LANES threads.
constexpr bool HELD = KK <= 25;
constexpr int CHUNKS = (SUMS + BANDS - 1) / BANDS, PAIRS = PLANES * OUTS, B_LOADS = (PAIRS + THREADS - 1) / THREADS;
constexpr int WIDE = 16 / (int)sizeof(ELEMENT);

// total + t * folded, or tap by tap.
__device__ __noinline__ ACC add_product(ACC total, ACC t, ACC folded, const ELEMENT* weight, int band, index_t H, index_t W) {
    if (band >= SUMS || !lands(band / CB, band % CB, H, W)) return total;
    if (finite(t) && finite(folded)) return mad(t, folded, total);
    return add_taps(total, t, weight, band / CB, band % CB);
}

// Kernels of 17 to 25 taps that have no wide access come one number at a time, neighbouring threads neighbouring numbers, and
// pass through `staged`: in shared memory a thread may read numbers that lie apart. Not in planes_contract, which has few
// steps and would have more code than they save.
constexpr int NUMBERS = OUTS * KK, STAGES = (NUMBERS + THREADS - 1) / THREADS;
#ifdef KERNEL_planes_contract
constexpr bool STAGED = false;
#else
constexpr bool STAGED = HELD && KK > 16 && common(KK, WIDE) == 1;
#endif
struct Folded {
    static constexpr int ACCESS = common(KK, WIDE);
    vec<ELEMENT, ACCESS> held[STAGED ? 1 : B_LOADS][HELD ? KK / ACCESS : 1];
    ELEMENT apart[STAGED ? PLANES : 1][STAGED ? STAGES : 1];
    const ELEMENT* weight;   // of the first plane and output of the group
    ELEMENT* staged;
    int CO;
    index_t H, W;
    unsigned landing;   // a bit for each band that holds anything, where all bands are made at a time

    __device__ __forceinline__ Folded(const ELEMENT* weight, ELEMENT* staged, int CO, index_t H, index_t W)
        : weight(weight), staged(staged), CO(CO), H(H), W(W) {
        landing = 0;
        #pragma unroll
        for (int b = 0; b < SUMS && HELD; b++) landing |= (unsigned)lands(b / CB, b % CB, H, W) << b;
    }
    __device__ __forceinline__ const ELEMENT* at(index_t ci, int co) const { return weight + (ci * CO + co) * KK; }

    // planes, outs: how many there are in this step, from weight[ci][co] on
    __device__ __forceinline__ void load(index_t ci, int co, int planes, int outs) {
        if (!HELD) return;
        if (STAGED) {
            #pragma unroll
            for (int p = 0; p < PLANES; p++)
                #pragma unroll
                for (int j = 0; j < STAGES; j++) {
                    int i = threadIdx.x + j * THREADS;
                    apart[p][j] = p < planes && i < min(outs, OUTS) * KK ? load_cached(at(ci + p, co) + i) : ELEMENT{};
                }
            return;
        }
        #pragma unroll
        for (int j = 0; j < B_LOADS; j++) {
            int i = threadIdx.x + j * THREADS, o = i % OUTS, p = i / OUTS;
            auto from = (const vec<ELEMENT, ACCESS>*)at(ci + p, co + o);
            #pragma unroll
            for (int v = 0; v < KK / ACCESS; v++)
                held[j][v] = p < planes && o < outs ? load_cached(from + v) : vec<ELEMENT, ACCESS>{};
        }
    }

    // put(plane, out, band - b0, folded weight), for all bands from b0 on; 0 where there is none. Says whether all are finite.
    template <class Put> __device__ __forceinline__ bool store(index_t ci, int co, int planes, int outs, int b0, Put put) {
        ACC check = 0;
        if (STAGED) {
            #pragma unroll
            for (int p = 0; p < PLANES; p++)
                #pragma unroll
                for (int j = 0; j < STAGES; j++) {
                    int i = threadIdx.x + j * THREADS;
                    if (NUMBERS % THREADS == 0 || i < NUMBERS) staged[p * NUMBERS + i] = apart[p][j];
                }
            __syncthreads();
        }
        if (HELD) {
            #pragma unroll
            for (int j = 0; j < B_LOADS; j++) {
                int i = threadIdx.x + j * THREADS, o = i % OUTS, p = i / OUTS;
                if (PAIRS % THREADS && i >= PAIRS) break;
                ACC folded[SUMS] = {};
                #pragma unroll
                for (int k = 0; k < KK; k++)
                    folded[band_h.of[k / KW] * CB + band_w.of[k % KW]] +=
                        widen(STAGED ? staged[i * KK + k] : held[STAGED ? 0 : j][k / ACCESS].at[k % ACCESS]);
                #pragma unroll
                for (int b = 0; b < SUMS; b++) {
                    ACC value = landing >> b & 1 ? folded[b] : 0;
                    check = mad(value, (ACC)0, check);
                    put(p, o, b, value);
                }
            }
            return check == 0;
        }
        #pragma unroll 1
        for (int first = 0; first < PAIRS * BANDS; first += THREADS / LANES) {
            int i = first + threadIdx.x / LANES, b = b0 + i % BANDS, o = i / BANDS % OUTS, p = i / BANDS / OUTS;
            bool counts = i < PAIRS * BANDS && p < planes && o < outs && b < SUMS && lands(b / CB, b % CB, H, W);
            ACC value = counts ? add_band(at(ci + p, co + o), b / CB, b % CB) : 0;
            for (int lanes = LANES / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
            check = mad(value, (ACC)0, check);
            if (threadIdx.x % LANES == 0 && i < PAIRS * BANDS) put(p, o, b - b0, value);
        }
        return check == 0;
    }

    // This lane's share of the taps of one band. Where all columns are one band, its taps lie one behind the other.
    static __device__ __forceinline__ ACC add_band(const ELEMENT* w, int rb, int cb) {
        constexpr int ACCESS = CB == 1 ? common(KW, WIDE) : 1, AHEAD = 16 / ACCESS > 4 ? 16 / ACCESS : 4;
        int across = (taps_w[cb + 1] - taps_w[cb]) / ACCESS, count = (taps_h[rb + 1] - taps_h[rb]) * across;
        w += taps_h[rb] * KW + taps_w[cb];
        ACC total = 0;
        #pragma unroll 1
        for (int i = threadIdx.x % LANES; i < count; i += LANES * AHEAD) {
            vec<ELEMENT, ACCESS> some[AHEAD];
            #pragma unroll
            for (int u = 0; u < AHEAD; u++) {
                int at = i + u * LANES, row = CB == 1 ? 0 : at / across, column = at - row * across;
                const ELEMENT* from = w + row * KW + column * ACCESS;
                some[u] = at < count ? load_cached((const vec<ELEMENT, ACCESS>*)from) : vec<ELEMENT, ACCESS>{};
            }
            #pragma unroll
            for (int u = 0; u < AHEAD; u++)
                for (int e = 0; e < ACCESS; e++) total += widen(some[u].at[e]);
        }
        return total;
    }

};
#endif

#if defined(KERNEL_contract) || defined(KERNEL_planes_contract)
// Place of a block: blocks of samples run fastest, then slices of the input planes, outputs, groups.
struct Tile {
    index_t n0, g;
    int co0, split, from, to, number;
};
__device__ __forceinline__ Tile tile_of(int CI, int slice, int slices, index_t slices_by, int tiles, index_t tiles_by,
                                        int samples, index_t samples_by) {
    Tile at;
    int rest = quotient(blockIdx.x, samples_by), row = blockIdx.x - rest * samples, outer = quotient(rest, slices_by);
    int g = quotient(outer, tiles_by);
    at.split = rest - outer * slices;
    at.g = g;
    at.co0 = (outer - g * tiles) * BN;
    at.n0 = (index_t)row * BM;
    at.from = at.split * slice;
    at.to = min(CI, at.from + slice);
    at.number = outer * samples + row;
    return at;
}

// Stores a block's share of a tile, and scales and stores outputs in the block that comes last.
__device__ __forceinline__ void finish_products(
    const Tile& at, ACC* made, const ELEMENT* bias, ELEMENT* out, ACC* partials, unsigned* counters, const ACC* multiplier,
    index_t mult_n, index_t mult_c, double scale, double bias_scale, int N, int G, int CO, int slices) {
    int live = (int)min((index_t)BM, N - at.n0) * BN;
    if (!add_slices<BM * BN>(made, live, partials, counters, at.number, at.split, slices)) return;
    #pragma unroll 1
    for (int i = threadIdx.x; i < live; i += THREADS) {
        index_t n = at.n0 + i / BN, c = at.g * CO + at.co0 + i % BN;
        if (at.co0 + i % BN < CO)
            scale_and_store(made[i], out + n * ((index_t)G * CO) + c, bias ? bias + c : nullptr,
                            multiplier ? multiplier + n * mult_n + c * mult_c : nullptr, scale, bias_scale);
    }
}
#endif

#ifdef KERNEL_contract
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) contract(
    const ACC* sums, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* out, ACC* partials, unsigned* counters,
    const ACC* multiplier, index_t mult_n, index_t mult_c, double scale, double bias_scale, int N, int G, int CI, int CO,
    index_t H, index_t W, int slice, int slices, index_t slices_by, int tiles, index_t tiles_by, int samples,
    index_t samples_by, int biased, int tensor) {
    __shared__ Matrices shared;
    // 1 who am I: a slice of the input planes, a block of outputs of one group, a block of samples
    Tile at = tile_of(CI, slice, slices, slices_by, tiles, tiles_by, samples, samples_by);
    int steps = (at.to - at.from + PLANES - 1) / PLANES * CHUNKS;
    // 2 addresses: k runs over (ci, rb, cb)
    index_t across = (index_t)G * CI * SUMS;
    sums += at.n0 * across + at.g * CI * SUMS;
    int samples_left = (int)min((index_t)BM, N - at.n0);
    Rows rows;
    __shared__ ELEMENT staged[STAGED ? PLANES * NUMBERS : 1];
    Folded folded(weight + (at.g * CI * CO) * KK, staged, CO, H, W);
    products(
        shared, steps,
        [&](int step) {
            // 3 masked load
            int ci = at.from + step / CHUNKS * PLANES, b0 = step % CHUNKS * BANDS;
            int length = CHUNKS == 1 ? (at.to - ci) * SUMS : min(BANDS, SUMS - b0);
            const ACC* from = sums + (index_t)ci * SUMS + b0;
            rows.load(from, across, 1, samples_left, length);
            folded.load(ci, at.co0, at.to - ci, CO - at.co0);
        },
        [&](int step, ACC* a, ACC* b) {
            int ci = at.from + step / CHUNKS * PLANES, b0 = step % CHUNKS * BANDS;
            bool good = rows.store(a);
            return folded.store(ci, at.co0, at.to - ci, CO - at.co0, b0, [&](int p, int o, int band, ACC value) {
                b[bank<BN, B_SWIZZLED>(p * BANDS + band, o)] = value;
            }) && good;
        },
        [&](int step, int k, int, int o, ACC t, ACC value, ACC total) {
            int ci = at.from + step / CHUNKS * PLANES + k / BANDS, band = step % CHUNKS * BANDS + k % BANDS;
            return ci < at.to && at.co0 + o < CO
                       ? add_product(total, t, value, folded.at(ci, at.co0 + o), band, H, W)
                       : total;
        });
    finish_products(at, shared.made[0], biased ? bias : nullptr, out, partials, counters, tensor ? multiplier : nullptr, mult_n, mult_c,
                    scale, bias_scale, N, G, CO, slices);
}
#endif

#ifdef KERNEL_planes_contract
// SHARE threads have a plane, each up to LOADS accesses of ACROSS neighbours in a row.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) planes_contract(
    const ELEMENT* x, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* out, ACC* partials, unsigned* counters,
    const ACC* multiplier, index_t mult_n, index_t mult_c, double scale, double bias_scale, int N, int G, int CI, int CO,
    int H, int W, index_t W_by, index_t stride_n, index_t stride_c, index_t stride_h, index_t stride_w, int slice, int slices, index_t slices_by, int tiles,
    index_t tiles_by, int samples, index_t samples_by, int biased, int tensor) {
    typedef vec<ELEMENT, ACROSS> access;
    constexpr int MINE = BM * PLANES * SHARE / THREADS;
    static_assert(MINE * THREADS == BM * PLANES * SHARE, "every thread has as many planes as the others");
    __shared__ Matrices shared;
    // 1 who am I: a slice of the input planes, a block of outputs of one group, a block of samples
    Tile at = tile_of(CI, slice, slices, slices_by, tiles, tiles_by, samples, samples_by);
    int steps = (at.to - at.from + PLANES - 1) / PLANES, lane = threadIdx.x % SHARE;
    // 2 addresses. A thread has the same places of every plane, in the same bands.
    x += at.n0 * stride_n + at.g * CI * stride_c;
    int row[LOADS], col[LOADS];
    #pragma unroll
    for (int u = 0; u < LOADS; u++) {
        int i = (lane + u * SHARE) * ACROSS;
        row[u] = quotient(i, W_by);
        col[u] = i - row[u] * W;
    }
    access held[MINE][LOADS];
    __shared__ ELEMENT staged[STAGED ? PLANES * NUMBERS : 1];
    Folded folded(weight + (at.g * CI * CO) * KK, staged, CO, H, W);
    auto plane_at = [&](int j, int& m, int& p) {
        int i = threadIdx.x / SHARE + j * (THREADS / SHARE);
        p = i % PLANES;
        m = i / PLANES;
    };
    products(
        shared, steps,
        [&](int step) {
            // 3 masked load
            int ci = at.from + step * PLANES;
            #pragma unroll
            for (int j = 0; j < MINE; j++) {
                int m, p;
                plane_at(j, m, p);
                const ELEMENT* plane = x + m * stride_n + (ci + p) * stride_c;
                bool live = at.n0 + m < N && ci + p < at.to;
                #pragma unroll
                for (int u = 0; u < LOADS; u++)
                    held[j][u] = live && row[u] < H ? load_streaming((const access*)(plane + row[u] * stride_h + col[u] * stride_w)) : access{};
            }
            folded.load(ci, at.co0, at.to - ci, CO - at.co0);
        },
        [&](int step, ACC* a, ACC* b) {
            int ci = at.from + step * PLANES;
            ACC check = 0;
            #pragma unroll
            for (int j = 0; j < MINE; j++) {
                // 4 accumulate: columns first, then the rows
                ACC sums[SUMS] = {};
                #pragma unroll
                for (int u = 0; u < LOADS; u++) {
                    ACC columns[CB] = {};
                    #pragma unroll
                    for (int cb = 0; cb < CB; cb++)
                        for (int e = 0; e < ACROSS; e++) {
                            bool inside = col[u] + e >= before_w[cb] && col[u] + e < W - after_w[cb];
                            columns[cb] = inside ? columns[cb] + widen(held[j][u].at[e]) : columns[cb];
                        }
                    #pragma unroll
                    for (int rb = 0; rb < RB; rb++) {
                        bool inside = row[u] >= before_h[rb] && row[u] < H - after_h[rb];
                        for (int cb = 0; cb < CB; cb++) {
                            ACC& sum = sums[rb * CB + cb];
                            sum = inside ? sum + columns[cb] : sum;
                        }
                    }
                }
                // 5 reduce
                for (int lanes = SHARE / 2; lanes > 0; lanes /= 2)
                    for (int b = 0; b < SUMS; b++) sums[b] += __shfl_xor_sync(0xffffffffu, sums[b], lanes);
                int m, p;
                plane_at(j, m, p);
                if (lane == 0)
                    #pragma unroll
                    for (int b = 0; b < SUMS; b++) {
                        check = mad(sums[b], (ACC)0, check);
                        a[bank<BM>(p * SUMS + b, m)] = sums[b];
                    }
            }
            return folded.store(ci, at.co0, at.to - ci, CO - at.co0, 0, [&](int p, int o, int band, ACC value) {
                b[bank<BN, B_SWIZZLED>(p * SUMS + band, o)] = value;
            }) && check == 0;
        },
        [&](int step, int k, int, int o, ACC t, ACC value, ACC total) {
            int ci = at.from + step * PLANES + k / SUMS;
            return ci < at.to && at.co0 + o < CO
                       ? add_product(total, t, value, folded.at(ci, at.co0 + o), k % SUMS, H, W)
                       : total;
        });
    finish_products(at, shared.made[0], biased ? bias : nullptr, out, partials, counters, tensor ? multiplier : nullptr, mult_n, mult_c,
                    scale, bias_scale, N, G, CO, slices);
}
#endif

#ifdef KERNEL_expand
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) expand(
    const ACC* grad, const ELEMENT* weight, ACC* d, ACC* partials, unsigned* counters, index_t grad_n, index_t grad_c,
    double scale, int N, int G, int CI, int CO, index_t H, index_t W, int slice, int slices, index_t slices_by, int tiles,
    int samples) {
    __shared__ Matrices shared;
    // 1 who am I: some input planes of one group, or some bands of one; a slice of the outputs, which k runs over; a block of
    // samples
    int rest = blockIdx.x / samples, tile = quotient(rest, slices_by), split = rest - tile * slices, outer = tile / CHUNKS;
    index_t n0 = (index_t)(blockIdx.x - rest * samples) * BM, g = outer / tiles;
    int ci = (outer - (int)g * tiles) * PLANES, planes = CI - ci, b0 = (tile - outer * CHUNKS) * BANDS;
    int from = split * slice, to = from + min(CO - from, slice);
    // 2 addresses
    grad += n0 * grad_n + g * CO * grad_c;
    int samples_left = (int)min((index_t)BM, N - n0);
    Rows rows;
    __shared__ ELEMENT staged[STAGED ? PLANES * NUMBERS : 1];
    Folded folded(weight + (g * CI * CO) * KK, staged, CO, H, W);
    products(
        shared, (to - from + KS - 1) / KS,
        [&](int step) {
            // 3 masked load
            int co = from + step * KS;
            rows.load(grad + co * grad_c, grad_n, grad_c, samples_left, min(KS, to - co));
            folded.load(ci, co, planes, to - co);
        },
        [&](int step, ACC* a, ACC* b) {
            int co = from + step * KS;
            bool good = rows.store(a);
            return folded.store(ci, co, planes, to - co, b0, [&](int p, int o, int band, ACC value) {
                b[bank<BN, B_SWIZZLED>(o, p * BANDS + band)] = value;
            }) && good;
        },
        [&](int step, int k, int, int column, ACC t, ACC value, ACC total) {
            int co = from + step * KS + k, p = column / BANDS, band = b0 + column % BANDS;
            return co < to && p < planes && p < PLANES
                       ? add_product(total, t, value, folded.at(ci + p, co), band, H, W)
                       : total;
        });
    int number = tile * samples + (int)(n0 / BM);
    if (!add_slices<BM * BN>(shared.made[0], samples_left * BN, partials, counters, number, split, slices)) return;
    // 6 scale, 7 store
    #pragma unroll 1
    for (int i = threadIdx.x; i < samples_left * BN; i += THREADS) {
        int column = i % BN, p = column / BANDS, b = b0 + column % BANDS;
        if (p < PLANES && p < planes && b < SUMS)
            d[(((n0 + i / BN) * G + g) * CI + ci + p) * SUMS + b] = (ACC)(shared.made[0][i] * scale);
    }
}
#endif

#ifdef KERNEL_band_fill
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) band_fill(
    const ACC* d, ELEMENT* dx, int C, index_t H, index_t W, index_t stride_n, index_t stride_c, index_t stride_h,
    index_t stride_w, int rows, int cols, index_t cols_by, int step, int accesses, int lanes, int shift, int planes, int blocks,
    index_t blocks_by, int parts, index_t parts_by, int cuts, index_t cuts_by) {
    __shared__ ACC kept[KEPT];
    // 1 who am I
    Place at = locate(blocks_by, parts_by, cuts_by, blocks, parts, cuts, rows, cols, planes, shift);
    Part down(at.r0, H, rows), across(at.c0, W, cols);
    int mine = min(planes, C - at.first), c = at.first + at.p;
    // 2 addresses
    ELEMENT* plane = dx + (index_t)at.n * stride_n + c * stride_c + at.r0 * stride_h + at.c0 * stride_w;
    d += ((index_t)at.n * C + at.first) * SUMS;
    // 3 masked load
    if (planes * SUMS <= KEPT) {
        #pragma unroll 1
        for (int i = threadIdx.x; i < mine * SUMS; i += BLOCK) kept[i] = d[i];
        d = kept;
    }
    __syncthreads();
    if (c >= C) return;
    // 4 accumulate. Where bands are few the loop is written out: their edges are then constants, not loads that wait for each
    // other.
    constexpr int WRITTEN_OUT = SUMS <= 25 ? SUMS : 1;
    auto fill = [&](index_t row, index_t col, ACC (&total)[VEC]) {
        #pragma unroll
        for (int e = 0; e < VEC; e++) total[e] = 0;
        #pragma unroll WRITTEN_OUT
        for (int b = 0; b < SUMS; b++) {
            int rb = b / CB, cb = b % CB;
            bool holds = row >= before_h[rb] && row < H - after_h[rb];
            #pragma unroll
            for (int e = 0; e < VEC; e++) {
                index_t column = col + (AXIS == 1 ? 0 : e);
                ACC value = d[(at.p + (AXIS == 1 ? e : 0)) * SUMS + sum_at(rb, cb)];
                if (holds && column >= before_w[cb] && column < W - after_w[cb]) total[e] += value;
            }
        }
    };
    auto store = [&](int row, int col, const ACC (&total)[VEC]) {
        access wide;
        for (int e = 0; e < VEC; e++) wide.at[e] = narrow<ELEMENT>(total[e]);
        store_wide((access*)(plane + row * stride_h + col * stride_w), wide);
    };
    // 7 store: every row of the core has the same values, and in AXIS 1 every place of it
    Range core = down.core(before_h, after_h, RB), middle = across.core(before_w, after_w, CB);
    ACC same[VEC], other[VEC];
    if (AXIS == 3) {
        int i = at.lane * VEC, row = quotient(i, cols_by), col = i - row * cols;
        if (at.lane >= accesses || col >= across.length) return;
        fill(at.r0 + core.lo, at.c0 + col, same);
        #pragma unroll 1
        for (; row < down.length; row += step) {
            if (row >= core.lo && row < core.hi) {
                store(row, col, same);
                continue;
            }
            fill(at.r0 + row, at.c0 + col, other);
            store(row, col, other);
        }
        return;
    }
    fill(at.r0 + core.lo, at.c0 + middle.lo, same);
    #pragma unroll 1
    for (int i = at.lane; i < down.length * across.length; i += lanes) {
        int row = across.length == cols ? quotient(i, cols_by) : i / across.length, col = i - row * across.length;
        if (row >= core.lo && row < core.hi && col >= middle.lo && col < middle.hi) {
            store(row, col, same);
            continue;
        }
        fill(at.r0 + row, at.c0 + col, other);
        store(row, col, other);
    }
}
#endif

#ifdef KERNEL_weight_grad
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) weight_grad(
    const ACC* grad, const ACC* sums, ELEMENT* dw, ELEMENT* db, ACC* partials, unsigned* counters, index_t grad_n, index_t grad_c,
    double scale, double bias_scale, int wants_bias, int N, int G, int CI, int CO, index_t H, index_t W, int slice, int slices,
    index_t slices_by, int tiles, int outputs, int cuts) {
    constexpr int CHUNKS = (SUMS + BANDS - 1) / BANDS, A_LOADS = KS * BM / THREADS, B_LOADS = KS * BN / THREADS;
    static_assert(A_LOADS * THREADS == KS * BM && B_LOADS * THREADS == KS * BN, "every thread loads as much as the others");
    __shared__ Matrices shared;
    // 1 who am I: some input planes of one group, or some bands of one; a block of outputs, some taps; a slice of the samples,
    // which k runs over
    int number = quotient(blockIdx.x, slices_by), split = blockIdx.x - number * slices;
    int rest = number / cuts, cut = number - rest * cuts, outer = rest / outputs, co0 = (rest - outer * outputs) * BM;
    int from = split * slice, to = from + min(N - from, slice);
    int pair = outer / CHUNKS, b0 = (outer - pair * CHUNKS) * BANDS;
    index_t g = pair / tiles;
    int ci = (pair - (int)g * tiles) * PLANES, planes = min(PLANES, CI - ci);
    // 2 addresses
    index_t across = (index_t)G * CI * SUMS;
    grad += (g * CO + co0) * grad_c;
    sums += (g * CI + ci) * SUMS + b0;
    int length = CHUNKS == 1 ? planes * SUMS : min(BANDS, SUMS - b0);
    ACC left[A_LOADS], right[B_LOADS], added = 0;
    products(
        shared, (to - from + KS - 1) / KS,
        [&](int step) {
            // 3 masked load
            index_t n0 = from + step * KS;
            #pragma unroll
            for (int j = 0; j < A_LOADS; j++) {
                int i = threadIdx.x + j * THREADS, m = i % BM;
                index_t n = n0 + i / BM;
                left[j] = n < to && co0 + m < CO ? grad[n * grad_n + m * grad_c] : 0;
            }
            #pragma unroll
            for (int j = 0; j < B_LOADS; j++) {
                int i = threadIdx.x + j * THREADS, o = i % BN;
                index_t n = n0 + i / BN;
                right[j] = n < to && o < length ? sums[n * across + o] : 0;
            }
        },
        [&](int, ACC* a, ACC* b) {
            #pragma unroll
            for (int j = 0; j < A_LOADS; j++) {
                int i = threadIdx.x + j * THREADS;
                a[bank<BM>(i / BM, i % BM)] = left[j];
                added += left[j];
            }
            #pragma unroll
            for (int j = 0; j < B_LOADS; j++) {
                int i = threadIdx.x + j * THREADS;
                b[bank<BN, B_SWIZZLED>(i / BN, i % BN)] = right[j];
            }
            return true;
        },
        // 4 accumulate: a product of two numbers, whatever they are
        [&](int, int, int, int, ACC a, ACC b, ACC total) { return mad(a, b, total); });
    // A thread has loaded one output's grad alone, so the bias's gradient has been added up on the way: BM more numbers, which
    // lie behind the others. Of all blocks that have loaded these outputs, the first stores it.
    static_assert(THREADS % BM == 0 && WARPS >= 4 && BM * BN >= THREADS, "made[1] holds a number of every thread");
    ACC *bias = shared.made[1], total = 0;
    bias[threadIdx.x] = added;
    __syncthreads();
    if (threadIdx.x < BM)
        for (int i = threadIdx.x; i < THREADS; i += BM) total += bias[i];
    __syncthreads();
    if (threadIdx.x < BM) bias[threadIdx.x] = total;
    __syncthreads();
    if (!add_slices<BM * (BN + 1)>(shared.made[0], BM * (BN + 1), partials, counters, number, split, slices)) return;
    if (wants_bias && ci == 0 && b0 == 0 && cut == 0 && threadIdx.x < BM && co0 + threadIdx.x < CO)
        db[g * CO + co0 + threadIdx.x] = narrow<ELEMENT>((ACC)(bias[threadIdx.x] * bias_scale));
    // 6 scale each number once, however many taps store it
    ACC* made = shared.made[0];
    #pragma unroll 1
    for (int i = threadIdx.x; i < BM * BN; i += THREADS) made[i] = (ACC)(made[i] * scale);
    // Where a tap has its number: NONE in another block, ZERO nowhere, for it lands nowhere, and its gradient is 0 whatever
    // grad holds.
    constexpr int TAPS = KK < CUT ? KK : CUT, NONE = -1, ZERO = -2;
    __shared__ int place[TAPS];
    #pragma unroll 1
    for (int i = threadIdx.x; i < TAPS; i += THREADS) {
        int tap = cut * CUT + i, rb = tap < KK ? band_h.of[tap / KW] : 0, cb = tap < KK ? band_w.of[tap % KW] : 0;
        int b = rb * CB + cb - b0;
        place[i] = tap >= KK || b < 0 || b >= BANDS ? NONE : lands(rb, cb, H, W) ? b : ZERO;
    }
    __syncthreads();
    // 7 store: taps of one input plane and neighbouring outputs lie one behind the other
    constexpr int ACCESS = CHUNKS > 1 ? 1 : common(KK, 16 / (int)sizeof(ELEMENT)), EACH = TAPS / ACCESS;
    dw += ((g * CI + ci) * CO + co0) * KK + cut * CUT;
    #pragma unroll 1
    for (int i = threadIdx.x; i < planes * BM * EACH; i += THREADS) {
        int p = i / (BM * EACH), o = i / EACH % BM, tap = i % EACH * ACCESS;
        if (co0 + o >= CO || place[tap] == NONE) continue;
        vec<ELEMENT, ACCESS> wide;
        #pragma unroll
        for (int e = 0; e < ACCESS; e++) {
            int b = place[tap + e];
            wide.at[e] = narrow<ELEMENT>(b == ZERO ? 0 : made[o * BN + p * BANDS + b]);
        }
        *(vec<ELEMENT, ACCESS>*)(dw + ((index_t)p * CO + o) * KK + tap) = wide;
    }
}
#endif
