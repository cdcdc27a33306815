// The CUDA C++ kernels. triton_impl/kernels.py is the same file in Triton: same names, order, steps.
//
//     multiply_gap         out[n, c]  = multiplier / (H*W) * sum of y[n, c]
//     multiply_gap_flat    the same, for small planes that lie one behind the other
//     band_sums            T[n, ci, part, kh, kw] = sum of x[n, ci] over the band of tap (kh, kw)
//     contract             out[n, co] = multiplier * (bias[co] + 1/(Hout*Wout) * sum of T * weight)
//     band_sums_contract   both in one launch, for weights that are small beside the planes
//     expand               D[n, ci, kh, kw] = multiplier/(Hout*Wout) * sum over co of grad * weight
//     band_fill            dx[n, ci, h, w]  = sum of D[n, ci] over the taps whose band holds (h, w)
//     weight_grad          dweight[ci, co, kh, kw] = multiplier/(Hout*Wout) * sum over n of grad * T
//
// A block works on tiles of BP planes x BR rows x BC columns and walks down the rows, so that every
// thread keeps its columns: bands of columns cost nothing in the stream. A plane larger than ROWS x BC
// is cut in parts. A group of the convolution is a run of CI planes in and CO planes out, and
// everything but weight_grad treats (sample, group) as one index. Offsets up to the first row of a
// part are 64-bit; inside a part, row and column numbers are 32-bit.
//
// One compilation makes one kernel. What fixes its code are macros: KERNEL_<name>, ELEMENT and ACC
// (types), SIZE (int, or long long for planes past 2^31), THREADS and BLOCKS (resident blocks per
// multiprocessor to aim at), VEC elements per access along AXIS (1 planes, 2 rows, 3 columns), and
// the uppercase constants that Triton calls constexpr.

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

// red[COUNT][WIDTH] -> red[0][WIDTH], as a tree: one order, whatever the timing.
template <int COUNT, int WIDTH> __device__ __forceinline__ void reduce(ACC* red) {
    __syncthreads();
    for (int half = COUNT / 2; half > 0; half /= 2) {
        for (int i = threadIdx.x; i < half * WIDTH; i += THREADS) red[i] += red[i + half * WIDTH];
        __syncthreads();
    }
}

#ifdef KH
// Whether the tap's band holds anything: a weight that never meets x must not turn 0 into NaN.
__device__ __forceinline__ bool lands(int tap, SIZE H, SIZE W, SIZE H_OUT, SIZE W_OUT) {
    SIZE row_lo, row_hi, col_lo, col_hi;
    band(tap / KW, H, H_OUT, SH, PH, DH, row_lo, row_hi);
    band(tap % KW, W, W_OUT, SW, PW, DW, col_lo, col_hi);
    return row_lo < row_hi && col_lo < col_hi;
}
#endif

#ifdef BR
// Threads of a tile: AXIS runs fastest over the lanes, then what is left of planes, columns, rows.
constexpr int VP = AXIS == 1 ? VEC : 1, VR = AXIS == 2 ? VEC : 1, VC = AXIS == 3 ? VEC : 1;
constexpr int TP = BP / VP, TC = BC / VC, FREE = THREADS / (TP * TC);
constexpr int TR = FREE < BR / VR ? FREE : BR / VR, UNROLL = BR / (TR * VR);
static_assert(TP * TC <= THREADS && TR >= 1, "the tile does not fit the block");

struct Place {
    int tile, part, parts, ng, ci, rows;   // ci: first plane of the block
    index_t r0, col0;
    int p, r, c;                           // this thread's first plane, row, column in the tile
    bool active;
};

// Place of this block: parts run fastest, then blocks of BP planes, then (sample, group).
__device__ __forceinline__ Place locate(int CI, SIZE H, SIZE W) {
    Place at;
    int row_parts = (int)((H + ROWS - 1) / ROWS);
    at.parts = row_parts * (int)((W + BC - 1) / BC);
    at.part = blockIdx.x % at.parts;
    at.tile = blockIdx.x / at.parts;
    int blocks = (CI + BP - 1) / BP;
    at.ng = at.tile / blocks;
    at.ci = at.tile % blocks * BP;
    at.r0 = (index_t)(at.part % row_parts) * ROWS;
    at.col0 = (index_t)(at.part / row_parts) * BC;
    at.rows = (int)min((index_t)ROWS, H - at.r0);
    int t = threadIdx.x;
    at.active = t < TP * TC * TR;
    at.p = (AXIS == 1 ? t % TP : AXIS == 2 ? t / TR / TC : t / TC / TR) * VP;
    at.c = (AXIS == 1 ? t / TP % TC : AXIS == 2 ? t / TR % TC : t % TC) * VC;
    at.r = (AXIS == 1 ? t / TP / TC : AXIS == 2 ? t % TR : t / TC % TR) * VR;
    return at;
}

// Sum of rows [lo, hi) of the tile's planes and columns, still spread over the threads' rows.
__device__ __forceinline__ void stream_rows(const ELEMENT* thread, bool inside, int r, int lo, int hi,
                                            index_t stride_h, ACC (&acc)[VEC]) {
    typedef vec<ELEMENT, VEC> access;
    for (int e = 0; e < VEC; e++) acc[e] = 0;
    if (!inside) return;
    const ELEMENT* p = thread + (lo + r) * stride_h;
    for (int row = lo + r; row < hi; row += BR, p += BR * stride_h) {
        access tile[UNROLL];
        #pragma unroll
        for (int u = 0; u < UNROLL; u++)
            tile[u] = row + u * TR * VR < hi ? load_streaming((const access*)(p + u * TR * VR * stride_h))
                                             : access{};
        #pragma unroll
        for (int u = 0; u < UNROLL; u++)
            for (int e = 0; e < VEC; e++) acc[e] += widen(tile[u].at[e]);
    }
}

// The threads' accumulators, to red[row][BP][BC] or, with PLANES_LAST, to red[row][BC][BP].
template <bool PLANES_LAST> __device__ __forceinline__ void deposit(const Place& at, const ACC (&acc)[VEC], ACC* red) {
    constexpr int P = PLANES_LAST ? 1 : BC, C = PLANES_LAST ? BP : 1;
    if (!at.active) return;
    red += at.r / VR * BP * BC + at.p * P + at.c * C;
    if (AXIS == 2) {
        red[0] = acc[0];
        for (int e = 1; e < VEC; e++) red[0] += acc[e];
    } else {
        for (int e = 0; e < VEC; e++) red[e * (AXIS == 1 ? P : C)] = acc[e];
    }
}
#endif

#if defined(BR) && defined(KH)
// The rows in all row bands (the core), counted from r0. Both ends of a band fall as kh grows, so
// [lo(0), hi(KH - 1)) is in every band; the rows before and after are in some: the rims.
__device__ __forceinline__ void core_rows(const Place& at, SIZE H, SIZE H_OUT, int& core_lo, int& core_hi) {
    SIZE first_lo, last_hi, unused;
    band(0, H, H_OUT, SH, PH, DH, first_lo, unused);
    band(KH - 1, H, H_OUT, SH, PH, DH, unused, last_hi);
    clip(first_lo, max(first_lo, last_hi), at.r0, at.rows, core_lo, core_hi);
}

// columns[p][kh][c] = sum over the row band of kh, within this part. planes: row r0, column 0 of the
// block's first plane. red: scratch of TR * BP * BC elements.
__device__ __forceinline__ void column_sums(const Place& at, const ELEMENT* planes, int CI, SIZE H, SIZE W,
                                            SIZE H_OUT, index_t stride_c, index_t stride_h,
                                            index_t stride_w, ACC* red, ACC* columns) {
    int core_lo, core_hi;
    core_rows(at, H, H_OUT, core_lo, core_hi);
    // The rims are read after the stream: their first rows start for L2 now.
    for (int i = threadIdx.x; i < BP * BC; i += THREADS)
        if (at.ci + i / BC < CI && at.col0 + i % BC < W) {
            const ELEMENT* column = planes + i / BC * stride_c + (at.col0 + i % BC) * stride_w;
            if (core_lo > 0) prefetch(column + (core_lo - 1) * stride_h);
            if (core_hi < at.rows) prefetch(column + core_hi * stride_h);
        }
    ACC acc[VEC];
    bool inside = at.active && at.ci + at.p < CI && at.col0 + at.c < W;
    stream_rows(planes + at.p * stride_c + (at.col0 + at.c) * stride_w, inside, at.r, core_lo, core_hi,
                stride_h, acc);
    deposit<false>(at, acc, red);
    reduce<TR, BP * BC>(red);
    for (int i = threadIdx.x; i < BP * KH * BC; i += THREADS) {
        int p = i / BC / KH, kh = i / BC % KH, c = i % BC;
        ACC total = 0;
        if (at.ci + p < CI && at.col0 + c < W) {
            const ELEMENT* column = planes + p * stride_c + (at.col0 + c) * stride_w;
            SIZE lo, hi;
            int from, to;
            band(kh, H, H_OUT, SH, PH, DH, lo, hi);
            clip(lo, hi, at.r0, at.rows, from, to);
            for (int row = from; row < min(to, core_lo); row++) total += widen(column[row * stride_h]);
            for (int row = max(from, core_hi); row < to; row++) total += widen(column[row * stride_h]);
            total += red[p * BC + c];
        }
        columns[i] = total;
    }
    __syncthreads();
}

// Sum of columns[p][kh] over the column band of kw, by neighbouring lanes; every lane of them gets it.
constexpr int LANES = BC < 32 ? BC : 32;
__device__ __forceinline__ ACC band_sum(const Place& at, int item, SIZE W, SIZE W_OUT, const ACC* columns) {
    ACC total = 0;
    if (item < BP * KH * KW) {
        SIZE lo, hi;
        band(item % KW, W, W_OUT, SW, PW, DW, lo, hi);
        for (int c = threadIdx.x % LANES; c < BC; c += LANES)
            if (at.col0 + c >= lo && at.col0 + c < hi) total += columns[item / KW * BC + c];
    }
    for (int lanes = LANES / 2; lanes > 0; lanes /= 2) total += __shfl_xor_sync(0xffffffffu, total, lanes);
    return total;
}
#endif

#ifdef FR
// Store one row of partial outputs, of which thread t < WIDTH holds one. In the last block to come:
// true, and red[0..WIDTH) is the sum of all rows. The counter is back at 0 for the next launch. Rows
// are added in one order whoever comes last, so the bits do not depend on timing.
template <int WIDTH> __device__ __forceinline__ bool finish(ACC* partials, unsigned* counter, int row,
                                                            int rows, ACC value, ACC* red) {
    __shared__ bool last;
    if (threadIdx.x < WIDTH) partials[(index_t)row * WIDTH + threadIdx.x] = value;
    // The fence puts each thread's store before the counter's step, the second one the step before
    // the loads.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == rows - 1u;
    __syncthreads();
    if (!last) return false;
    __threadfence();
    constexpr int COUNT = THREADS / WIDTH;
    ACC total = 0;
    for (int from = threadIdx.x / WIDTH; from < rows; from += COUNT * FR) {
        ACC some[FR] = {};
        #pragma unroll
        for (int i = 0; i < FR; i++)
            if (from + i * COUNT < rows)
                some[i] = load_coherent(partials + (index_t)(from + i * COUNT) * WIDTH + threadIdx.x % WIDTH);
        #pragma unroll
        for (int i = 0; i < FR; i++) total += some[i];
    }
    red[threadIdx.x] = total;
    reduce<COUNT, WIDTH>(red);
    if (threadIdx.x == 0) *counter = 0;
    return true;
}
#endif

#ifdef KERNEL_multiply_gap
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_gap(
    const ELEMENT* y, ELEMENT* out, ACC* partials, unsigned* counters, const ACC* multiplier,
    index_t stride_n, index_t stride_c, index_t stride_h, index_t stride_w, index_t mult_n,
    index_t mult_c, double scale, int C, SIZE H, SIZE W) {
    __shared__ ACC red[TR * BP * BC > THREADS ? TR * BP * BC : THREADS];
    // 1 who am I
    Place at = locate(C, H, W);
    index_t n = at.ng;
    // 2 addresses
    const ELEMENT* thread = y + n * stride_n + (at.ci + at.p) * stride_c + at.r0 * stride_h +
                            (at.col0 + at.c) * stride_w;
    bool inside = at.active && at.ci + at.p < C && at.col0 + at.c < W;
    // 3 masked load, 4 accumulate
    ACC acc[VEC];
    stream_rows(thread, inside, at.r, 0, at.rows, stride_h, acc);
    // 5 reduce
    deposit<true>(at, acc, red);
    reduce<TR * BC, BP>(red);
    int c = at.ci + threadIdx.x;
    ACC total = threadIdx.x < BP ? red[threadIdx.x] : 0;
    if (!SINGLE) {
        __syncthreads();
        partials += (index_t)at.tile * at.parts * BP;
        if (!finish<BP>(partials, counters + at.tile, at.part, at.parts, total, red)) return;
        total = red[threadIdx.x];
    }
    if (threadIdx.x < BP && c < C) {
        // 6 scale
        total *= scale;
        if (TENSOR) total *= multiplier[n * mult_n + c * mult_c];
        // 7 store
        out[n * C + c] = narrow<ELEMENT>(total);
    }
}
#endif

#ifdef KERNEL_multiply_gap_flat
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) multiply_gap_flat(
    const ELEMENT* y, ELEMENT* out, const ACC* multiplier, index_t stride_n, index_t mult_n,
    index_t mult_c, double scale, int C) {
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
    const ELEMENT* x, ACC* sums, index_t stride_n, index_t stride_c, index_t stride_h, index_t stride_w,
    int C, SIZE H, SIZE W, SIZE H_OUT, SIZE W_OUT) {
    __shared__ ACC red[TR * BP * BC], columns[BP * KH * BC];
    // 1 who am I
    Place at = locate(C, H, W);
    index_t n = at.ng;
    // 2 addresses
    const ELEMENT* planes = x + n * stride_n + at.ci * stride_c + at.r0 * stride_h;
    // 3 masked load, 4 accumulate
    column_sums(at, planes, C, H, W, H_OUT, stride_c, stride_h, stride_w, red, columns);
    for (int from = 0; from < BP * KH * KW; from += THREADS / LANES) {
        // 5 reduce
        int item = from + threadIdx.x / LANES, p = item / (KH * KW);
        ACC total = band_sum(at, item, W, W_OUT, columns);
        // 7 store
        if (threadIdx.x % LANES == 0 && item < BP * KH * KW && at.ci + p < C)
            sums[((n * C + at.ci + p) * at.parts + at.part) * (KH * KW) + item % (KH * KW)] = total;
    }
}
#endif

#ifdef KERNEL_contract
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) contract(
    const ACC* sums, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* out, const ACC* multiplier,
    index_t mult_n, index_t mult_c, double scale, double bias_scale, int N, int G, int CI, int CO,
    int PARTS, SIZE H, SIZE W, SIZE H_OUT, SIZE W_OUT) {
    constexpr int COUNT = THREADS / BCO;
    __shared__ ACC red[COUNT * BN * BCO];
    // 1 who am I: block of outputs of one group, block of samples
    int blocks = (CO + BCO - 1) / BCO;
    index_t g = blockIdx.y / blocks, n0 = (index_t)blockIdx.x * BN;
    int co = blockIdx.y % blocks * BCO + threadIdx.x % BCO;
    // 2 addresses: k runs over (ci, tap)
    weight += (g * CI * CO + co) * (KH * KW);
    sums += (n0 * G + g) * CI * PARTS * (KH * KW);
    ACC acc[BN] = {};
    for (int k = threadIdx.x / BCO; k < CI * (KH * KW); k += COUNT) {
        int ci = k / (KH * KW), tap = k % (KH * KW);
        if (co >= CO || !lands(tap, H, W, H_OUT, W_OUT)) continue;
        // 3 masked load
        ACC w = widen(weight[(index_t)ci * CO * (KH * KW) + tap]);
        #pragma unroll
        for (int i = 0; i < BN; i++) {
            if (n0 + i >= N) break;
            const ACC* t = sums + ((index_t)i * G * CI + ci) * PARTS * (KH * KW) + tap;
            ACC total = 0;
            for (int part = 0; part < PARTS; part++) total += t[part * (KH * KW)];
            // 4 accumulate
            acc[i] += total * w;
        }
    }
    // 5 reduce
    for (int i = 0; i < BN; i++) red[(threadIdx.x / BCO * BN + i) * BCO + threadIdx.x % BCO] = acc[i];
    reduce<COUNT, BN * BCO>(red);
    for (int i = threadIdx.x / BCO; i < BN && n0 + i < N && co < CO; i += COUNT) {
        // 6 scale and bias
        index_t n = n0 + i, c = g * CO + co;
        ACC total = (ACC)(red[i * BCO + threadIdx.x % BCO] * scale);
        if (BIAS) total += bias_scale * widen(bias[c]);
        if (TENSOR) total *= multiplier[n * mult_n + c * mult_c];
        // 7 store
        out[n * (G * CO) + c] = narrow<ELEMENT>(total);
    }
}
#endif

#ifdef KERNEL_band_sums_contract
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) band_sums_contract(
    const ELEMENT* x, const ELEMENT* weight, const ELEMENT* bias, ELEMENT* out, ACC* partials,
    unsigned* counters, const ACC* multiplier, index_t stride_n, index_t stride_c, index_t stride_h,
    index_t stride_w, index_t mult_n, index_t mult_c, double scale, double bias_scale, int G, int CI,
    int CO, SIZE H, SIZE W, SIZE H_OUT, SIZE W_OUT) {
    __shared__ ACC red[TR * BC > THREADS ? TR * BC : THREADS], columns[KH * BC], totals[KH * KW];
    // 1 who am I: a part of one plane
    Place at = locate(CI, H, W);
    index_t n = at.ng / G, g = at.ng % G;
    // 2 addresses
    const ELEMENT* planes = x + n * stride_n + (g * CI + at.ci) * stride_c + at.r0 * stride_h;
    int co = threadIdx.x % BCO;
    const ELEMENT* weights = weight + (g * CI + at.ci) * CO * (KH * KW);
    // 3 masked load, 4 accumulate. The weights start for L2 now and are there when the plane is done.
    for (int i = threadIdx.x; i * 128 < CO * (KH * KW) * (int)sizeof(ELEMENT); i += THREADS)
        prefetch((const char*)weights + i * 128);
    column_sums(at, planes, CI, H, W, H_OUT, stride_c, stride_h, stride_w, red, columns);
    for (int from = 0; from < KH * KW; from += THREADS / LANES) {
        // 5 reduce
        int item = from + threadIdx.x / LANES;
        ACC total = band_sum(at, item, W, W_OUT, columns);
        if (threadIdx.x % LANES == 0 && item < KH * KW) totals[item] = total;
    }
    __syncthreads();
    ACC partial = 0;
    for (int tap = threadIdx.x / BCO; tap < KH * KW; tap += THREADS / BCO)
        if (co < CO && lands(tap, H, W, H_OUT, W_OUT))
            partial += totals[tap] * widen(weights[co * (KH * KW) + tap]);
    if (THREADS > BCO) {
        red[threadIdx.x] = partial;
        reduce<THREADS / BCO, BCO>(red);
        partial = red[co];
        __syncthreads();
    }
    int from = CI * at.parts;
    partials += (index_t)at.ng * from * BCO;
    if (!finish<BCO>(partials, counters + at.ng, at.ci * at.parts + at.part, from, partial, red)) return;
    if (threadIdx.x < CO) {
        // 6 scale and bias
        index_t c = g * CO + co;
        ACC total = (ACC)(red[co] * scale);
        if (BIAS) total += bias_scale * widen(bias[c]);
        if (TENSOR) total *= multiplier[n * mult_n + c * mult_c];
        // 7 store
        out[n * (G * CO) + c] = narrow<ELEMENT>(total);
    }
}
#endif

#ifdef KERNEL_expand
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) expand(
    const ACC* grad, const ELEMENT* weight, ACC* d, index_t grad_n, index_t grad_c, double scale, int N,
    int G, int CI, int CO) {
    constexpr int COUNT = THREADS / BK;
    __shared__ ACC red[COUNT * BN * BK];
    // 1 who am I: block of (ci, tap) of one group, block of samples
    int blocks = (CI * KK + BK - 1) / BK;
    index_t g = blockIdx.y / blocks, n0 = (index_t)blockIdx.x * BN;
    int k = blockIdx.y % blocks * BK + threadIdx.x % BK, ci = k / KK;
    // 2 addresses
    weight += (g * CI + ci) * CO * KK + k % KK;
    ACC acc[BN] = {};
    for (int co = threadIdx.x / BK; co < CO && ci < CI; co += COUNT) {
        // 3 masked load
        ACC w = widen(weight[(index_t)co * KK]);
        index_t c = g * CO + co;
        #pragma unroll
        for (int i = 0; i < BN; i++) {
            if (n0 + i >= N) break;
            // 4 accumulate
            acc[i] += grad[(n0 + i) * grad_n + c * grad_c] * w;
        }
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
    const ACC* d, ELEMENT* dx, index_t stride_n, index_t stride_c, index_t stride_h, index_t stride_w,
    int C, SIZE H, SIZE W, SIZE H_OUT, SIZE W_OUT) {
    typedef vec<ELEMENT, VEC> access;
    __shared__ ACC columns[BP * KH * BC];
    // 1 who am I
    Place at = locate(C, H, W);
    index_t n = at.ng;
    // 2 addresses
    ELEMENT* thread = dx + n * stride_n + (at.ci + at.p) * stride_c + at.r0 * stride_h +
                      (at.col0 + at.c) * stride_w;
    d += (n * C + at.ci) * (KH * KW);
    for (int i = threadIdx.x; i < BP * KH * BC; i += THREADS) {
        index_t col = at.col0 + i % BC;
        ACC total = 0;
        for (int kw = 0; kw < KW; kw++) {
            SIZE lo, hi;
            band(kw, W, W_OUT, SW, PW, DW, lo, hi);
            // 3 masked load, 4 accumulate
            if (at.ci + i / BC / KH < C && col >= lo && col < hi) total += d[i / BC * KW + kw];
        }
        columns[i] = total;
    }
    __syncthreads();
    int core_lo, core_hi;
    core_rows(at, H, H_OUT, core_lo, core_hi);
    access core;
    for (int e = 0; e < VEC; e++) {
        ACC total = 0;
        int p = at.p + (AXIS == 1 ? e : 0), c = at.c + (AXIS == 3 ? e : 0);
        for (int kh = 0; kh < KH && at.active; kh++) total += columns[(p * KH + kh) * BC + c];
        core.at[e] = narrow<ELEMENT>(total);
    }
    if (!at.active || at.ci + at.p >= C || at.col0 + at.c >= W) return;
    for (int row = at.r; row < at.rows; row += TR * VR) {
        access value = core;
        if (row < core_lo || row >= core_hi) {
            for (int e = 0; e < VEC; e++) {
                ACC total = 0;
                int p = at.p + (AXIS == 1 ? e : 0), c = at.c + (AXIS == 3 ? e : 0);
                for (int kh = 0; kh < KH; kh++) {
                    SIZE lo, hi;
                    band(kh, H, H_OUT, SH, PH, DH, lo, hi);
                    if (at.r0 + row >= lo && at.r0 + row < hi) total += columns[(p * KH + kh) * BC + c];
                }
                value.at[e] = narrow<ELEMENT>(total);
            }
        }
        // 7 store
        *(access*)(thread + row * stride_h) = value;
    }
}
#endif

#ifdef KERNEL_weight_grad
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) weight_grad(
    const ACC* grad, const ACC* sums, ELEMENT* dw, index_t grad_n, index_t grad_c, double scale, int N,
    int G, int CI, int CO, int PARTS, SIZE H, SIZE W, SIZE H_OUT, SIZE W_OUT) {
    // 1 who am I: input plane, thread per (co, tap) of the outputs of its group
    index_t ci = blockIdx.x, g = ci / CI;
    int k = blockIdx.y * THREADS + threadIdx.x, tap = k % (KH * KW);
    if (k >= CO * (KH * KW)) return;
    // 2 addresses
    index_t c = g * CO + k / (KH * KW);
    ACC acc = 0;
    // A tap that lands nowhere has gradient 0 whatever grad holds.
    for (index_t n = 0; n < N && lands(tap, H, W, H_OUT, W_OUT); n++) {
        // 3 masked load
        ACC total = 0;
        for (int part = 0; part < PARTS; part++)
            total += sums[((n * (G * CI) + ci) * PARTS + part) * (KH * KW) + tap];
        // 4 accumulate
        acc += grad[n * grad_n + c * grad_c] * total;
    }
    // 6 scale, 7 store
    dw[ci * CO * (KH * KW) + k] = narrow<ELEMENT>((ACC)(acc * scale));
}
#endif
