// The CUDA C++ kernels. triton_impl/kernels.py is the same file in Triton: same names, order, steps.
//
//     multiply_gap         out[n, c]  = multiplier / (H*W) * sum of y[n, c]
//     multiply_gap_flat    the same, for small planes that lie one behind the other
//     band_sums            T[n, ci, kh, kw] = sum of x[n, ci] over the band of tap (kh, kw)
//     contract             out[n, co] = multiplier * (bias[co] + 1/(Hout*Wout) * sum of T * weight)
//     band_sums_contract   both in one launch, for weights that are small beside the planes
//     expand               D[n, ci, kh, kw] = multiplier/(Hout*Wout) * sum over co of grad * weight
//     band_fill            dx[n, ci, h, w]  = sum of D[n, ci] over the taps whose band holds (h, w)
//     weight_grad          dweight[ci, co, kh, kw] = multiplier/(Hout*Wout) * sum over n of grad * T
//
// A block works on tiles of BP planes x BR rows x BC columns and walks down the rows, so that every
// thread keeps its columns: bands of columns cost nothing in the stream. A plane larger than ROWS x BC
// is cut in parts. A group of the convolution is a run of CI planes in and CO planes out, and
// everything but weight_grad treats (sample, group) as one index. Planes stored column by column come with
// rows and columns SWAPPED, and only the taps of sums and weights keep their places. Offsets up to the first row of a
// part are 64-bit; inside a part, row and column numbers are 32-bit.
//
// One compilation makes one kernel. What fixes its code are macros: KERNEL_<name>, ELEMENT and ACC
// (types), SIZE (int, or long long for planes past 2^31), THREADS and BLOCKS (resident blocks per
// multiprocessor to aim at), VEC elements per access along AXIS (1 planes, 2 rows, 3 columns), and
// the uppercase constants that Triton calls constexpr: all sizes and strides but those of the batch.

typedef long long index_t;

// Input interval [lo, hi) that kernel index k sends inside [0, out); / only sees numbers >= 0.
__device__ __forceinline__ void band(int k, SIZE size, SIZE out, int s, int p, int d, SIZE& lo, SIZE& hi) {
    lo = (max(p - k * d, 0) + s - 1) / s;
    hi = min(size, max(out - 1 + p - k * d + s, (SIZE)0) / s);
}

// [lo, hi) inside [start, start + length), counted from start.
__device__ __forceinline__ void clip(SIZE lo, SIZE hi, index_t start, int length, int& from, int& to) {
    from = (int)min(max(lo - start, 0LL), (index_t)length);
    to = (int)min(max(hi - start, 0LL), (index_t)length);
}

// red[COUNT][WIDTH] -> red[0][WIDTH], as a tree: one order, whatever the timing. Long loops that run once a
// block stay rolled, here and below: after a cold start the code itself comes from memory.
template <int COUNT, int WIDTH> __device__ __forceinline__ void reduce(ACC* red) {
    __syncthreads();
    #pragma unroll
    for (int half = COUNT / 2; half > 0; half /= 2) {
        #pragma unroll 1
        for (int i = threadIdx.x; i < half * WIDTH; i += THREADS) red[i] += red[i + half * WIDTH];
        __syncthreads();
    }
}

#ifdef KH
// Place of tap (kh, kw) in the sums and the weights of a plane.
__device__ __forceinline__ int tap_at(int kh, int kw) { return SWAPPED ? kw * KH + kh : kh * KW + kw; }

// Whether the tap's band holds anything: a weight that never meets x must not turn 0 into NaN.
__device__ __forceinline__ bool lands(int tap) {
    SIZE row_lo, row_hi, col_lo, col_hi;
    band(SWAPPED ? tap % KH : tap / KW, H, H_OUT, SH, PH, DH, row_lo, row_hi);
    band(SWAPPED ? tap / KH : tap % KW, W, W_OUT, SW, PW, DW, col_lo, col_hi);
    return row_lo < row_hi && col_lo < col_hi;
}
#endif

#ifdef BR
// Threads of a tile: AXIS runs fastest over the lanes, then what is left of planes, columns, rows.
constexpr int VP = AXIS == 1 ? VEC : 1, VR = AXIS == 2 ? VEC : 1, VC = AXIS == 3 ? VEC : 1;
constexpr int TP = BP / VP, TC = BC / VC, FREE = THREADS / (TP * TC);
constexpr int TR = FREE < BR / VR ? FREE : BR / VR, UNROLL = BR / (TR * VR);
static_assert(TP * TC <= THREADS && TR >= 1, "the tile does not fit the block");

// First row of thread t in the tile.
__device__ __forceinline__ int row_of(int t) { return (AXIS == 1 ? t / TP / TC : AXIS == 2 ? t : t / TC) % TR * VR; }

struct Place {
    int tile, part, parts, ng, ci, rows;   // ci: first plane of the block
    index_t r0, col0;
    int p, r, c;                           // this thread's first plane, row, column in the tile
    bool active;
};

// Place of this block: parts run fastest, then blocks of BP planes, then (sample, group).
__device__ __forceinline__ Place locate(int planes) {
    Place at;
    constexpr int row_parts = (int)(((index_t)H + ROWS - 1) / ROWS);
    at.parts = row_parts * (int)(((index_t)W + BC - 1) / BC);
    at.part = blockIdx.x % at.parts;
    at.tile = blockIdx.x / at.parts;
    int blocks = (planes + BP - 1) / BP;
    at.ng = at.tile / blocks;
    at.ci = at.tile % blocks * BP;
    at.r0 = (index_t)(at.part % row_parts) * ROWS;
    at.col0 = (index_t)(at.part / row_parts) * BC;
    at.rows = (int)min((index_t)ROWS, (index_t)H - at.r0);
    int t = threadIdx.x;
    at.active = t < TP * TC * TR;
    at.p = (AXIS == 1 ? t % TP : AXIS == 2 ? t / TR / TC : t / TC / TR) * VP;
    at.c = (AXIS == 1 ? t / TP % TC : AXIS == 2 ? t / TR % TC : t % TC) * VC;
    at.r = row_of(t);
    return at;
}

// Add one step of this thread's rows, the first at p. WHOLE tiles go without a mask: a load is one instruction then.
template <bool WHOLE> __device__ __forceinline__ void add_tile(const ELEMENT* p, int left, ACC (&acc)[VEC]) {
    typedef vec<ELEMENT, VEC> access;
    access tile[UNROLL];
    #pragma unroll
    for (int u = 0; u < UNROLL; u++)
        tile[u] = WHOLE || u * TR * VR < left ? load_streaming((const access*)(p + u * TR * VR * STRIDE_H)) : access{};
    #pragma unroll
    for (int u = 0; u < UNROLL; u++)
        for (int e = 0; e < VEC; e++) acc[e] += widen(tile[u].at[e]);
}

// Sum of rows [lo, hi) of the tile's planes and columns, still spread over the threads' rows.
__device__ __forceinline__ void stream_rows(const ELEMENT* thread, bool inside, int r, int lo, int hi, ACC (&acc)[VEC]) {
    for (int e = 0; e < VEC; e++) acc[e] = 0;
    if (!inside) return;
    // All lanes of a warp take a whole step, or none: else those of its first row would wait for what they load
    // before those of its last row, `behind` this one, load.
    int left = hi - lo - r, behind = row_of(threadIdx.x | 31) - r;
    const ELEMENT* p = thread + (lo + r) * STRIDE_H;
    #pragma unroll 1
    for (; left - behind > (UNROLL - 1) * TR * VR; left -= BR, p += BR * STRIDE_H) add_tile<true>(p, left, acc);
    if (left > 0) add_tile<false>(p, left, acc);
}
#endif

#if defined(BR) && defined(KH)
// Rows of a part that bands hold, counted from r0. Both ends of a band fall as kh grows, so
// [lo(0), hi(KH - 1)) is in every band: the core. The few rows before and after it are in some: the
// rims. Where the core is empty, the rims hold everything.
struct Rows {
    int core_lo, core_hi, rim_lo, top, rims;   // top: rims before the core
    __device__ __forceinline__ int rim(int j) const { return j < top ? rim_lo + j : core_hi + j - top; }
};

__device__ __forceinline__ Rows split_rows(const Place& at) {
    SIZE first_lo, first_hi, last_lo, last_hi;
    band(0, H, H_OUT, SH, PH, DH, first_lo, first_hi);
    band(KH - 1, H, H_OUT, SH, PH, DH, last_lo, last_hi);
    Rows rows;
    int rim_hi;
    clip(first_lo, max(first_lo, last_hi), at.r0, at.rows, rows.core_lo, rows.core_hi);
    clip(last_lo, first_hi, at.r0, at.rows, rows.rim_lo, rim_hi);
    rows.top = rows.core_lo - rows.rim_lo;
    rows.rims = rows.top + max(0, rim_hi - rows.core_hi);
    return rows;
}

// Lanes of a warp on neighbouring columns are NEXT apart; LANES of them add up before shared memory sees them.
constexpr int NEXT = AXIS == 1 ? TP : 1;
constexpr int LANES = NEXT >= 32 ? 1 : TC < 32 / NEXT ? TC : 32 / NEXT;
// Kernel columns that fit in 16 KiB of shared memory at a time, core and rims.
constexpr int ROOM = 16384 / (int)sizeof(ACC) / (2 * TC / LANES * TR * BP), KWC = KW < ROOM ? KW : ROOM;
constexpr int SLOTS = 2 * TR * BP * KWC, RED = TC / LANES * SLOTS;

// One row of the columns, over the column band of kw: into red[block of columns][half][row][plane][kw].
__device__ __forceinline__ void store_columns(const Place& at, const ACC (&column)[VEC], int half, int x, int left,
                                              int right, ACC* red) {
    ACC* own = red + at.c / VC / LANES * SLOTS + ((half * TR + at.r) * BP + at.p) * KWC + x;
    bool first = at.active && at.c / VC % LANES == 0;
    ACC total = 0;
    for (int e = 0; e < VEC; e++) {
        bool counts = AXIS == 3 ? e >= left && e < right : left <= 0 && right > 0;
        total = counts ? total + column[e] : total;
        if (AXIS != 1 && e < VEC - 1) continue;
        for (int lanes = LANES / 2; lanes > 0; lanes /= 2)
            total += __shfl_xor_sync(0xffffffffu, total, lanes * NEXT);
        if (first) own[AXIS == 1 ? e * KWC : 0] = total;
        total = 0;
    }
}

// sink(p, tap, sum of plane p over the band of the tap), within this part, from as many threads as there
// are sums. thread: row r0 of this thread's plane and column. red: RED elements.
template <class Sink> __device__ __forceinline__ void sum_bands(const Place& at, const ELEMENT* thread, int planes,
                                                                ACC* red, Sink sink) {
    typedef vec<ELEMENT, VEC> access;
    constexpr int SUMS = BP * KH * KWC, PER = (SUMS + THREADS - 1) / THREADS;
    Rows rows = split_rows(at);
    bool inside = at.active && at.ci + at.p < planes && at.col0 + at.c < W;
    auto load_rim = [&](int j) {
        return inside && j < rows.rims ? load_streaming((const access*)(thread + rows.rim(j) * STRIDE_H)) : access{};
    };
    // The first rim row of a thread is asked for before the stream and used after it; most have one.
    access first = load_rim(at.r);
    ACC core[VEC];
    stream_rows(thread, inside, at.r, rows.core_lo, rows.core_hi, core);
    #pragma unroll 1
    for (int kw0 = 0; kw0 < KW; kw0 += KWC) {
        ACC totals[PER] = {};
        #pragma unroll 1
        for (int j0 = 0; j0 == 0 || j0 < rows.rims; j0 += TR) {
            access rim = j0 == 0 ? first : load_rim(j0 + at.r);
            ACC wide[VEC];
            for (int e = 0; e < VEC; e++) wide[e] = widen(rim.at[e]);
            // Columns first: that costs what there are rows, the core and the rims, and not per kh.
            #pragma unroll
            for (int x = 0; x < KWC; x++) {
                SIZE lo, hi;
                band(kw0 + x, W, W_OUT, SW, PW, DW, lo, hi);
                int left = (int)max(lo - at.col0, 0LL) - at.c, right = (int)min(hi - at.col0, (index_t)BC) - at.c;
                store_columns(at, core, 0, x, left, right, red);
                store_columns(at, wide, 1, x, left, right, red);
            }
            reduce<TC / LANES, SLOTS>(red);
            #pragma unroll
            for (int u = 0; u < PER; u++) {
                int i = threadIdx.x + u * THREADS, p = i / (KH * KWC), kh = i / KWC % KH, x = i % KWC, from, to;
                if (i >= SUMS) break;
                SIZE lo, hi;
                band(kh, H, H_OUT, SH, PH, DH, lo, hi);
                clip(lo, hi, at.r0, at.rows, from, to);
                #pragma unroll 8
                for (int r = 0; r < TR; r++) {
                    int row = rows.rim(j0 + r);
                    if (j0 == 0) totals[u] += red[(r * BP + p) * KWC + x];
                    if (j0 + r < rows.rims && row >= from && row < to) totals[u] += red[((TR + r) * BP + p) * KWC + x];
                }
            }
            __syncthreads();
        }
        #pragma unroll
        for (int u = 0; u < PER; u++) {
            int i = threadIdx.x + u * THREADS, kw = kw0 + i % KWC;
            if (i < SUMS && kw < KW) sink(i / (KH * KWC), tap_at(i / KWC % KH, kw), totals[u]);
        }
    }
}
#endif

#ifdef FR
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

// Sum of column i over rows from, from + by, ... of partials[rows][width]: in one order, whoever is last,
// so that bits do not depend on timing. Others wrote them: read from L2.
__device__ __forceinline__ ACC add_rows(const ACC* partials, int from, int by, int rows, int width, int i) {
    ACC total = 0;
    #pragma unroll 1
    for (; from < rows; from += by * FR) {
        ACC some[FR];
        #pragma unroll
        for (int f = 0; f < FR; f++) {
            int row = from + f * by;
            some[f] = row < rows ? load_coherent(partials + (index_t)row * width + i) : 0;
        }
        #pragma unroll
        for (int f = 0; f < FR; f++) total += some[f];
    }
    return total;
}

// Store red[0..WIDTH) as one row of partial outputs. In the last block to come: true, and red[0..WIDTH) is
// the sum of all rows. red has room for THREADS and for WIDTH.
template <int WIDTH> __device__ __forceinline__ bool finish(ACC* partials, unsigned* counter, int row, int rows,
                                                            ACC* red) {
    // COUNT threads share a column, or a thread has several.
    constexpr int COUNT = WIDTH < THREADS ? THREADS / WIDTH : 1;
    #pragma unroll 1
    for (int i = threadIdx.x; i < WIDTH; i += THREADS) partials[(index_t)row * WIDTH + i] = red[i];
    if (!arrive(counter, rows)) return false;
    #pragma unroll 1
    for (int i = threadIdx.x; i < COUNT * WIDTH; i += THREADS)
        red[i] = add_rows(partials, COUNT == 1 ? 0 : i / WIDTH, COUNT, rows, WIDTH, i % WIDTH);
    reduce<COUNT, WIDTH>(red);
    return true;
}
#endif

#ifdef KERNEL_multiply_gap
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_gap(
    const ELEMENT* y, ELEMENT* out, ACC* partials, unsigned* counters, const ACC* multiplier,
    index_t stride_n, index_t mult_n, index_t mult_c, double scale) {
    __shared__ ACC red[THREADS * VP];
    // 1 who am I
    Place at = locate(C);
    index_t n = at.ng;
    // 2 addresses
    const ELEMENT* thread = y + n * stride_n + (at.ci + at.p) * STRIDE_C + at.r0 * STRIDE_H +
                            (at.col0 + at.c) * STRIDE_W;
    bool inside = at.active && at.ci + at.p < C && at.col0 + at.c < W;
    // 3 masked load, 4 accumulate
    ACC acc[VEC];
    stream_rows(thread, inside, at.r, 0, at.rows, acc);
    // 5 reduce
    if (at.active) {
        ACC* own = red + ((at.r / VR * TC + at.c / VC) * BP + at.p);
        ACC total = acc[0];
        for (int e = 1; e < VEC && AXIS != 1; e++) total += acc[e];
        own[0] = total;
        for (int e = 1; e < VEC && AXIS == 1; e++) own[e] = acc[e];
    }
    reduce<TR * TC, BP>(red);
    partials += (index_t)at.tile * at.parts * BP;
    if (!SINGLE && !finish<BP>(partials, counters + at.tile, at.part, at.parts, red)) return;
    int c = at.ci + threadIdx.x;
    if (threadIdx.x < BP && c < C) {
        // 6 scale
        ACC total = (ACC)(red[threadIdx.x] * scale);
        if (TENSOR) total *= multiplier[n * mult_n + c * mult_c];
        // 7 store
        out[n * C + c] = narrow<ELEMENT>(total);
    }
}
#endif

#ifdef KERNEL_multiply_gap_flat
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_gap_flat(
    const ELEMENT* y, ELEMENT* out, const ACC* multiplier, index_t stride_n, index_t mult_n,
    index_t mult_c, double scale) {
    typedef vec<ELEMENT, VEC> access;
    constexpr int LOADS = (BP * PLANE / VEC + THREADS - 1) / THREADS, PIECES = PLANE / FOLD;
    constexpr int LANES = THREADS / BP < 1 ? 1 : THREADS / BP > 32 ? 32 : THREADS / BP;
    __shared__ ACC pieces[BP * PIECES];
    // 1 who am I: BP small planes that lie one behind the other
    int blocks = (C + BP - 1) / BP;
    index_t n = blockIdx.x / blocks;
    int first = blockIdx.x % blocks * BP;
    // 2 addresses: one run of memory, read in wide loads whatever the size of a plane
    const access* run = (const access*)(y + n * stride_n + (index_t)first * PLANE);
    int length = min(BP, C - first) * PLANE / VEC;
    // 3 masked load
    access held[LOADS];
    #pragma unroll
    for (int u = 0; u < LOADS; u++) {
        int i = threadIdx.x + u * THREADS;
        held[u] = i < length ? load_streaming(run + i) : access{};
    }
    // 4 accumulate what is sure to belong to one plane
    #pragma unroll
    for (int u = 0; u < LOADS; u++) {
        int i = threadIdx.x + u * THREADS;
        if (i >= BP * PLANE / VEC) break;
        for (int e = 0; e < VEC; e += FOLD) {
            ACC piece = widen(held[u].at[e]);
            for (int f = 1; f < FOLD; f++) piece += widen(held[u].at[e + f]);
            pieces[(i * VEC + e) / FOLD] = piece;
        }
    }
    __syncthreads();
    // 5 regroup by plane and reduce
    for (int from = 0; from < BP; from += THREADS / LANES) {
        int p = from + threadIdx.x / LANES, c = first + p;
        ACC total = 0;
        if (p < BP)
            for (int i = threadIdx.x % LANES; i < PIECES; i += LANES) total += pieces[p * PIECES + i];
        for (int lanes = LANES / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(0xffffffffu, total, lanes);
        if (threadIdx.x % LANES == 0 && p < BP && c < C) {
            // 6 scale
            total = (ACC)(total * scale);
            if (TENSOR) total *= multiplier[n * mult_n + c * mult_c];
            // 7 store
            out[n * C + c] = narrow<ELEMENT>(total);
        }
    }
}
#endif

#ifdef KERNEL_band_sums
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) band_sums(
    const ELEMENT* x, ACC* sums, ACC* partials, unsigned* counters, index_t stride_n) {
    constexpr int WIDTH = BP * KH * KW;
    __shared__ ACC red[RED];
    // 1 who am I
    Place at = locate(G * CI);
    index_t n = at.ng;
    // 2 addresses
    const ELEMENT* thread = x + n * stride_n + (at.ci + at.p) * STRIDE_C + at.r0 * STRIDE_H +
                            (at.col0 + at.c) * STRIDE_W;
    int live = min(BP, G * CI - at.ci) * (KH * KW);
    sums += (n * (G * CI) + at.ci) * (KH * KW);
    partials += (index_t)at.tile * at.parts * WIDTH;
    ACC* to = at.parts > 1 ? partials + (index_t)at.part * WIDTH : sums;
    // 3 masked load, 4 accumulate, 5 reduce, 7 store
    sum_bands(at, thread, G * CI, red, [&](int p, int tap, ACC total) {
        int i = p * (KH * KW) + tap;
        if (i < live) to[i] = total;
    });
    if (at.parts == 1 || !arrive(counters + at.tile, at.parts)) return;
    #pragma unroll 1
    for (int i = threadIdx.x; i < live; i += THREADS) {
        sums[i] = add_rows(partials, 0, 1, at.parts, WIDTH, i);
    }
}
#endif

#ifdef KERNEL_contract
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) contract(
    const ACC* sums, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* out, ACC* partials,
    unsigned* counters, const ACC* multiplier, index_t mult_n, index_t mult_c, double scale,
    double bias_scale, int N) {
    // A thread has every BK-th k of all samples and of PER outputs, OUTS apart; in the end, OWN outputs of one sample.
    constexpr int KK = KH * KW, LENGTH = CI * KK, STEP = STEPS * BK, OUTS = THREADS / BK, PER = BCO / OUTS;
    constexpr int WIDTH = BN * BCO, OWN = WIDTH / THREADS, LOADS = BN * STEP / THREADS, NEAR = BCO / OWN;
    static_assert(OWN * THREADS == WIDTH && PER % OWN == 0 && LOADS * THREADS == BN * STEP,
                  "every thread has as much as the others");
    // Lanes of neighbouring k meet different banks.
    constexpr int ROW = THREADS + 32 / BK, RED = BK * ROW > BN * STEP ? BK * ROW : BN * STEP;
    __shared__ ACC red[RED > WIDTH ? RED : WIDTH];
    // 1 who am I: slice of the products of an output, block of outputs of one group, block of samples
    constexpr int splits = (LENGTH + SLICE - 1) / SLICE, blocks = (CO + BCO - 1) / BCO;
    int split = blockIdx.y % splits, block = blockIdx.y / splits;
    index_t g = block / blocks, n0 = (index_t)blockIdx.x * BN;
    int co0 = block % blocks * BCO, lane = threadIdx.x % BK, o = threadIdx.x / BK;
    index_t n = n0 + threadIdx.x / NEAR;
    int co = co0 + threadIdx.x % NEAR;
    // 2 addresses: k runs over (ci, tap)
    weight += (g * CI * CO + co0 + o) * KK;
    sums += (n0 * G + g) * LENGTH;
    ACC acc[BN][PER] = {};
    ELEMENT b[OWN];
    #pragma unroll
    for (int r = 0; r < OWN; r++) b[r] = BIAS && co + r * NEAR < CO ? bias[g * CO + co + r * NEAR] : ELEMENT{};
    int end = min(split * SLICE + SLICE, LENGTH);
    #pragma unroll 1
    for (int k0 = split * SLICE; k0 < end; k0 += STEP) {
        // 3 masked load, all of it before the first store: a load may not pass a store that it might
        // alias. The weights come first, for they are farther away.
        ELEMENT w[STEPS][PER];
        ACC t[LOADS];
        #pragma unroll
        for (int i = 0; i < STEPS; i++) {
            int k = k0 + i * BK + lane, ci = k / KK, tap = k % KK;
            bool live = k < LENGTH && (!EMPTY || lands(tap));
            for (int u = 0; u < PER; u++)
                w[i][u] = live && co0 + o + u * OUTS < CO ? weight[((index_t)ci * CO + u * OUTS) * KK + tap] : ELEMENT{};
        }
        #pragma unroll
        for (int j = 0; j < LOADS; j++) {
            int i = threadIdx.x + j * THREADS, s = i / STEP, k = k0 + i % STEP;
            t[j] = k < LENGTH && n0 + s < N ? sums[(index_t)s * (G * LENGTH) + k] : 0;
        }
        #pragma unroll
        for (int j = 0; j < LOADS; j++) red[threadIdx.x + j * THREADS] = t[j];
        __syncthreads();
        // 4 accumulate
        #pragma unroll
        for (int i = 0; i < STEPS; i++)
            for (int s = 0; s < BN; s++)
                for (int u = 0; u < PER; u++) acc[s][u] += red[s * STEP + i * BK + lane] * widen(w[i][u]);
        __syncthreads();
    }
    // 5 reduce, one output of every thread at a time
    ACC own[OWN] = {};
    #pragma unroll
    for (int r = 0; r < OWN; r++) {
        for (int s = 0; s < BN; s++)
            for (int u = 0; u < PER / OWN; u++)
                red[lane * ROW + s * NEAR + u * OUTS + o] = acc[s][r * (PER / OWN) + u];
        __syncthreads();
        for (int k = 0; k < BK; k++) own[r] += red[k * ROW + threadIdx.x];
        __syncthreads();
    }
    for (int r = 0; r < OWN; r++) red[threadIdx.x + r * THREADS] = own[r];
    index_t tile = (index_t)blockIdx.x * (gridDim.y / splits) + block;
    partials += tile * splits * WIDTH;
    if (splits > 1 && !finish<WIDTH>(partials, counters + tile, split, splits, red)) return;
    for (int r = 0; r < OWN && n < N && co + r * NEAR < CO; r++) {
        index_t c = g * CO + co + r * NEAR;
        // 6 scale and bias
        ACC total = (ACC)(red[threadIdx.x + r * THREADS] * scale);
        if (BIAS) total += bias_scale * widen(b[r]);
        if (TENSOR) total *= multiplier[n * mult_n + c * mult_c];
        // 7 store
        out[n * (G * CO) + c] = narrow<ELEMENT>(total);
    }
}
#endif

#ifdef KERNEL_band_sums_contract
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) band_sums_contract(
    const ELEMENT* x, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* out, ACC* partials,
    unsigned* counters, const ACC* multiplier, index_t stride_n, index_t mult_n, index_t mult_c, double scale,
    double bias_scale) {
    // COUNT threads share the taps of one output.
    constexpr int COUNT = THREADS / BCO, TAPS = (KH * KW + COUNT - 1) / COUNT;
    __shared__ ACC red[RED > THREADS ? RED : THREADS];
    // Aligned, so that no wide read of it holds a number that another thread may write.
    alignas(16) __shared__ ACC totals[KH * KW];
    __shared__ bool live[KH * KW];
    // 1 who am I: a part of one plane, or the same part of PLANES planes, one after the other
    Place at = locate(CI / PLANES);
    index_t n = at.ng / G, g = at.ng % G;
    int row = at.ci * at.parts + at.part, rows = CI / PLANES * at.parts;
    at.ci *= PLANES;
    int co = threadIdx.x % BCO, first = COUNT == 1 ? 0 : threadIdx.x / BCO;
    // 2 addresses
    const ELEMENT* thread = x + n * stride_n + (g * CI + at.ci) * STRIDE_C + at.r0 * STRIDE_H +
                            (at.col0 + at.c) * STRIDE_W;
    weight += ((g * CI + at.ci) * CO + co) * (KH * KW);
    // 3 masked load, 4 accumulate. Bias and weights come first: they arrive while the plane streams.
    ELEMENT b{};
    if (BIAS && threadIdx.x < CO) b = bias[g * CO + co];
    #pragma unroll 1
    for (int tap = threadIdx.x; EMPTY && tap < KH * KW; tap += THREADS) live[tap] = lands(tap);
    ACC partial = 0;
    #pragma unroll 1
    for (int p = 0; p < PLANES; p++, thread += STRIDE_C, weight += CO * KH * KW) {
        ELEMENT w[TAPS];
        #pragma unroll
        for (int i = 0; i < TAPS; i++)
            w[i] = co < CO && first + i * COUNT < KH * KW ? weight[first + i * COUNT] : ELEMENT{};
        // 5 reduce
        sum_bands(at, thread, CI, red, [&](int, int tap, ACC total) { totals[tap] = total; });
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < TAPS; i++) {
            int tap = first + i * COUNT;
            if (tap < KH * KW && (!EMPTY || live[tap])) partial += totals[tap] * widen(w[i]);
        }
    }
    red[threadIdx.x] = partial;
    reduce<COUNT, BCO>(red);
    partials += (index_t)at.ng * rows * BCO;
    if (!finish<BCO>(partials, counters + at.ng, row, rows, red)) return;
    if (threadIdx.x < CO) {
        // 6 scale and bias
        ACC total = (ACC)(red[co] * scale);
        if (BIAS) total += bias_scale * widen(b);
        index_t c = g * CO + co;
        if (TENSOR) total *= multiplier[n * mult_n + c * mult_c];
        // 7 store
        out[n * (G * CO) + c] = narrow<ELEMENT>(total);
    }
}
#endif

#ifdef KERNEL_expand
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) expand(
    const ACC* grad, const ELEMENT* weight, ACC* d, index_t grad_n, index_t grad_c, double scale, int N) {
    // COUNT threads share the outputs of one (ci, tap), and load STEPS of them at a time.
    constexpr int COUNT = THREADS / BK, STEPS = BCO / COUNT;
    __shared__ ACC red[COUNT * BN * BK];
    // 1 who am I: block of (ci, tap) of one group, block of samples
    int blocks = (CI * KK + BK - 1) / BK;
    index_t g = blockIdx.y / blocks, n0 = (index_t)blockIdx.x * BN;
    int k = blockIdx.y % blocks * BK + threadIdx.x % BK, ci = k / KK;
    // 2 addresses
    weight += (g * CI + ci) * CO * KK + k % KK;
    ACC acc[BN] = {};
    #pragma unroll 1
    for (int co0 = threadIdx.x / BK; co0 < CO; co0 += BCO) {
        // 3 masked load
        ELEMENT w[STEPS];
        ACC v[STEPS][BN];
        #pragma unroll
        for (int u = 0; u < STEPS; u++) {
            int co = co0 + u * COUNT;
            bool live = co < CO && ci < CI;
            w[u] = live ? weight[(index_t)co * KK] : ELEMENT{};
            for (int i = 0; i < BN; i++)
                v[u][i] = live && n0 + i < N ? grad[(n0 + i) * grad_n + (g * CO + co) * grad_c] : 0;
        }
        // 4 accumulate
        #pragma unroll
        for (int u = 0; u < STEPS; u++)
            for (int i = 0; i < BN; i++) acc[i] += v[u][i] * widen(w[u]);
    }
    // 5 reduce
    for (int i = 0; i < BN; i++) red[(threadIdx.x / BK * BN + i) * BK + threadIdx.x % BK] = acc[i];
    reduce<COUNT, BN * BK>(red);
    // 6 scale, 7 store
    for (int i = threadIdx.x / BK; i < BN && n0 + i < N && ci < CI; i += COUNT)
        d[((n0 + i) * G + g) * (CI * KK) + k] = red[i * BK + threadIdx.x % BK] * scale;
}
#endif

#ifdef KERNEL_band_fill
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) band_fill(
    const ACC* d, ELEMENT* dx, index_t stride_n) {
    typedef vec<ELEMENT, VEC> access;
    __shared__ ACC columns[BP * KH * BC];
    // 1 who am I
    Place at = locate(G * CI);
    index_t n = at.ng;
    // 2 addresses
    ELEMENT* thread = dx + n * stride_n + (at.ci + at.p) * STRIDE_C + at.r0 * STRIDE_H +
                      (at.col0 + at.c) * STRIDE_W;
    d += (n * (G * CI) + at.ci) * (KH * KW);
    for (int i = threadIdx.x; i < BP * KH * BC; i += THREADS) {
        index_t col = at.col0 + i % BC;
        ACC total = 0;
        for (int kw = 0; kw < KW; kw++) {
            SIZE lo, hi;
            band(kw, W, W_OUT, SW, PW, DW, lo, hi);
            // 3 masked load, 4 accumulate
            if (at.ci + i / BC / KH < G * CI && col >= lo && col < hi)
                total += d[i / BC / KH * (KH * KW) + tap_at(i / BC % KH, kw)];
        }
        columns[i] = total;
    }
    __syncthreads();
    Rows rows = split_rows(at);
    access core;
    for (int e = 0; e < VEC; e++) {
        ACC total = 0;
        int p = at.p + (AXIS == 1 ? e : 0), c = at.c + (AXIS == 3 ? e : 0);
        for (int kh = 0; kh < KH && at.active; kh++) total += columns[(p * KH + kh) * BC + c];
        core.at[e] = narrow<ELEMENT>(total);
    }
    if (!at.active || at.ci + at.p >= G * CI || at.col0 + at.c >= W) return;
    // 7 store: every row of the core has the same values, the rows around it have fewer taps
    int length = rows.core_hi - rows.core_lo;
    for (int row = at.r; row < length; row += TR) store_wide((access*)(thread + (rows.core_lo + row) * STRIDE_H), core);
    #pragma unroll 1
    for (int i = at.r; i < at.rows - length; i += TR) {
        int row = i < rows.core_lo ? i : i + length;
        access rim;
        for (int e = 0; e < VEC; e++) {
            ACC total = 0;
            int p = at.p + (AXIS == 1 ? e : 0), c = at.c + (AXIS == 3 ? e : 0);
            for (int kh = 0; kh < KH; kh++) {
                SIZE lo, hi;
                band(kh, H, H_OUT, SH, PH, DH, lo, hi);
                if (at.r0 + row >= lo && at.r0 + row < hi) total += columns[(p * KH + kh) * BC + c];
            }
            rim.at[e] = narrow<ELEMENT>(total);
        }
        store_wide((access*)(thread + row * STRIDE_H), rim);
    }
}
#endif

#ifdef KERNEL_weight_grad
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) weight_grad(
    const ACC* grad, const ACC* sums, ELEMENT* dw, index_t grad_n, index_t grad_c, double scale, int N) {
    // 1 who am I: input plane, thread per (co, tap) of the outputs of its group
    index_t ci = blockIdx.x, g = ci / CI;
    int k = blockIdx.y * THREADS + threadIdx.x, tap = k % (KH * KW);
    if (k >= CO * (KH * KW)) return;
    // 2 addresses
    index_t c = g * CO + k / (KH * KW);
    ACC acc = 0;
    // A tap that lands nowhere has gradient 0 whatever grad holds.
    #pragma unroll 1
    for (index_t n0 = 0; n0 < N && (!EMPTY || lands(tap)); n0 += BN) {
        // 3 masked load
        ACC v[BN], t[BN];
        #pragma unroll
        for (int i = 0; i < BN; i++) {
            index_t n = n0 + i;
            v[i] = n < N ? grad[n * grad_n + c * grad_c] : 0;
            t[i] = n < N ? sums[(n * (G * CI) + ci) * (KH * KW) + tap] : 0;
        }
        // 4 accumulate
        #pragma unroll
        for (int i = 0; i < BN; i++) acc += v[i] * t[i];
    }
    // 6 scale, 7 store
    dw[ci * CO * (KH * KW) + k] = narrow<ELEMENT>((ACC)(acc * scale));
}
#endif
