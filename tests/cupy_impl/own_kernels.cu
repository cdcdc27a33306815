// Kernels that the tests of the CUDA C++ interpreter run.

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    #pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    return value;
}

// A shared array in a template: one per type, and each is poisoned.
template <class T>
__device__ T block_sum(T value) {
    __shared__ T parts[32];
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    T sum = 0;
    for (int i = 0; i < blockDim.x / 32; ++i) sum += parts[i];
    __syncthreads();
    return sum;
}

extern "C" __global__ void add(const float* __restrict__ a, const float* __restrict__ b, float* out, long long n) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = a[i] + b[i];
}

extern "C" __global__ void __launch_bounds__(THREADS) sum_rows(const float* x, float* out, double* wide, int* ints, int n) {
    const float* row = x + (long long)blockIdx.x * n;
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i];
    float total = block_sum(sum);
    double wide_total = block_sum((double)sum);
    int threads = block_sum(1);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = total;
        wide[blockIdx.x] = wide_total;
        ints[blockIdx.x] = threads;
    }
}

// The last block to arrive adds what all have stored.
extern "C" __global__ __launch_bounds__(64, 2) void sum_by_last_block(const float* x, float* parts, unsigned* arrived, float* out) {
    __shared__ bool last;
    float sum = block_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    float total = block_sum(threadIdx.x < gridDim.x ? load_coherent(parts + threadIdx.x) : 0.0f);
    if (threadIdx.x == 0) {
        out[0] += total;
        *arrived = 0;
    }
}

extern "C" __global__ void ticket(unsigned* next, int* out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0) out[block] = (int)atomicAdd(next, 1u);
}

extern "C" __global__ void shift_down(const int* x, int* out, int delta, int width) {
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, x[threadIdx.x], delta, width);
}

// Half warps shuffle among themselves; the upper one is a step longer.
extern "C" __global__ void half_warps(int* out) {
    unsigned mask = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
    int value = threadIdx.x;
    for (int lanes = 1; lanes < (threadIdx.x % 32 < 16 ? 8 : 16); lanes *= 2) value += __shfl_xor_sync(mask, value, lanes);
    out[threadIdx.x] = value;
}

// Two votes: whether some thread is number `which`, and whether some thread heard otherwise than it should have.
extern "C" __global__ void vote(int* out, int which) {
    bool heard = __syncthreads_or((int)threadIdx.x == which);
    bool wrong = __syncthreads_or(heard != (which < (int)blockDim.x));
    out[threadIdx.x] = heard + 2 * wrong;
}

extern "C" __global__ void copy(const float* x, float* out, int count) {
    DYNAMIC_SHARED(held);
    for (int i = threadIdx.x * 4; i < count; i += blockDim.x * 4) copy_begin<16>(held + i * 4, x + i);
    copy_wait();
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = ((const float*)held)[i];
}

extern "C" __global__ void high_halves(const unsigned* x, unsigned* out) { out[threadIdx.x] = __umulhi(x[threadIdx.x], 0xc0000001u); }

extern "C" __global__ void widen_all(const half* h, const bfloat16* b, float* from_half, float* from_bfloat16) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    from_half[i] = widen(h[i]);
    from_bfloat16[i] = widen(b[i]);
}

extern "C" __global__ void narrow_all(const float* x, half* h, bfloat16* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = narrow<half>(x[i]);
    b[i] = narrow<bfloat16>(x[i]);
    static_assert(sizeof(vec<half, 8>) == 16 && alignof(vec<half, 8>) == 16, "a load of 16 bytes");
}

extern "C" __global__ void numbers(long long* l, double* d, float* f, int* i, long long a, double b, float c, int e) {
    *l = max(a, (long long)e), *d = narrow<double>(widen(b)), *f = narrow<float>(fma((double)widen(c), 2.0, -(double)c)), *i = min(e, 7);
}

extern "C" __global__ void any_pointer(const void* x, vec<float, 4>* y) {}

extern "C" __global__ void previous(int* out, int distance) {
    __shared__ int values[THREADS];
    values[threadIdx.x] = threadIdx.x;
#ifdef SYNCHRONISED
    __syncthreads();
#endif
    out[threadIdx.x] = values[threadIdx.x < distance ? threadIdx.x : threadIdx.x - distance];
}

extern "C" __global__ void unwritten(float* out) {
    __shared__ float values[64];
    if (blockIdx.x == 0) values[threadIdx.x] = 1.0f;
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void load_four(const float* x, float* out) {
    vec<float, 4> four = load_streaming(reinterpret_cast<const vec<float, 4>*>(x));
    out[0] = four.at[0] + four.at[1] + four.at[2] + four.at[3];
}

extern "C" __global__ void store_four(float* out) {
    store_wide(reinterpret_cast<vec<float, 4>*>(out), vec<float, 4>{1, 2, 3, 4});
}
