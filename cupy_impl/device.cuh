// What kernels.cu needs of the GPU beyond CUDA C++ itself. No header is included: half and bfloat16
// are 16 bits of storage here, so compiling needs no CUDA toolkit headers and a third of the time.

struct half { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

template <class T, int N> struct alignas(sizeof(T) * N) vec { T at[N]; };

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
__device__ __forceinline__ float widen(bfloat16 value) { return __uint_as_float((unsigned)value.bits << 16); }

template <class T, class A> __device__ __forceinline__ T narrow(A value);
template <> __device__ __forceinline__ float narrow<float, float>(float value) { return value; }
template <> __device__ __forceinline__ float narrow<float, double>(double value) { return (float)value; }
template <> __device__ __forceinline__ double narrow<double, double>(double value) { return value; }
template <> __device__ __forceinline__ half narrow<half, float>(float value) {
    half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
template <> __device__ __forceinline__ bfloat16 narrow<bfloat16, float>(float value) {
    bfloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

// From double by way of float.
template <> __device__ __forceinline__ half narrow<half, double>(double value) { return narrow<half>((float)value); }
template <> __device__ __forceinline__ bfloat16 narrow<bfloat16, double>(double value) { return narrow<bfloat16>((float)value); }

// a * b + c, rounded once.
__device__ __forceinline__ float mad(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ double mad(double a, double b, double c) { return __fma_rn(a, b, c); }

// Read-only path, and out of L1 first: every element of a plane is used once. Volatile, or the compiler would take a load
// out of the condition under which there is memory.
template <int BYTES> struct load_bits;
template <> struct load_bits<2> { static __device__ __forceinline__ void at(const void* p, void* to) {
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(*(unsigned short*)to) : "l"(p)); } };
template <> struct load_bits<4> { static __device__ __forceinline__ void at(const void* p, void* to) {
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(*(unsigned*)to) : "l"(p)); } };
template <> struct load_bits<8> { static __device__ __forceinline__ void at(const void* p, void* to) {
    unsigned* word = (unsigned*)to;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "l"(p)); } };
template <> struct load_bits<16> { static __device__ __forceinline__ void at(const void* p, void* to) {
    unsigned* word = (unsigned*)to;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3]) : "l"(p)); } };
template <class V> __device__ __forceinline__ V load_streaming(const V* p) {
    V value;
    load_bits<sizeof(V)>::at(p, &value);
    return value;
}

// An access of memory that is read more than once.
template <class V> __device__ __forceinline__ V load_cached(const V* p) { return *p; }

// In one instruction: left to itself the compiler may store what it holds in several registers piece by piece.
template <int BYTES> struct store_bits;
template <> struct store_bits<2> { static __device__ __forceinline__ void at(void* p, const void* from) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(p), "h"(*(const unsigned short*)from) : "memory"); } };
template <> struct store_bits<4> { static __device__ __forceinline__ void at(void* p, const void* from) {
    asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(*(const unsigned*)from) : "memory"); } };
template <> struct store_bits<8> { static __device__ __forceinline__ void at(void* p, const void* from) {
    const unsigned* word = (const unsigned*)from;
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(word[0]), "r"(word[1]) : "memory"); } };
template <> struct store_bits<16> { static __device__ __forceinline__ void at(void* p, const void* from) {
    const unsigned* word = (const unsigned*)from;
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 ::"l"(p), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]) : "memory"); } };
template <class V> __device__ __forceinline__ void store_wide(V* p, const V& value) {
    store_bits<sizeof(V)>::at(p, &value);
}

// One step of a counter; returns where it stood. What this thread has seen before, its whole block's
// stores after a barrier included, is seen by whoever reads this step or a later one, and comes after.
__device__ __forceinline__ unsigned step(unsigned* counter) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// From L2, past an L1 that may be stale: for what other blocks of this launch have stored.
__device__ __forceinline__ float load_coherent(const float* p) {
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(p) : "memory");
    return value;
}
__device__ __forceinline__ double load_coherent(const double* p) {
    double value;
    asm volatile("ld.global.cg.f64 %0, [%1];" : "=d"(value) : "l"(p) : "memory");
    return value;
}
template <class T> __device__ __forceinline__ vec<T, 16 / sizeof(T)> load_coherent(const vec<T, 16 / sizeof(T)>* p) {
    vec<T, 16 / sizeof(T)> value;
    unsigned* word = (unsigned*)&value;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3]) : "l"(p) : "memory");
    return value;
}
template <class T> __device__ __forceinline__ vec<T, 1> load_coherent(const vec<T, 1>* p) { return {load_coherent(&p->at[0])}; }

// Shared memory of as many bytes as the launch says.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// Begins to copy one access of BYTES into shared memory; copy_wait, and a barrier, end it. The GPU has no such copy of 2
// bytes: that one is over at once.
template <int BYTES> __device__ __forceinline__ void copy_begin(void* to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
                 "n"(BYTES) : "memory");
}
template <> __device__ __forceinline__ void copy_begin<16>(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}
template <> __device__ __forceinline__ void copy_begin<2>(void* to, const void* from) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "h"(*(const unsigned short*)from) : "memory");
}
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
