// What kernels.cu finds on the CPU: the names of device.cuh, and the part of CUDA that the kernels use.
// The text of the kernels follows this file, inside an unnamed namespace: everything there then has
// internal linkage, so that shared arrays of inline and template functions may lie in one section too.
#pragma once
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "fibers.h"

using convgap_interpret::blockDim;
using convgap_interpret::blockIdx;
using convgap_interpret::gridDim;
using convgap_interpret::threadIdx;

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// One block runs at a time, so a static variable is a block's shared memory; the linker gathers all of
// them between two symbols, where they can be poisoned. `used` stops assumptions about who writes them.
#define __shared__ static __attribute__((section("cuda_shared"), used))
// As much as a block may ask for on every card that the kernels are written for.
#define DYNAMIC_SHARED(name) alignas(16) __shared__ unsigned char name[48 << 10]

// ---- synchronisation ---------------------------------------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) { convgap_interpret::barrier(line); }

inline bool __syncthreads_or(bool value, int line = __builtin_LINE()) {
    convgap_interpret::votes += value;
    convgap_interpret::barrier(line);
    bool any = convgap_interpret::votes != 0;
    convgap_interpret::barrier(line);
    if (threadIdx.x == 0) convgap_interpret::votes = 0;
    convgap_interpret::barrier(line);
    return any;
}

inline void __threadfence() {}  // blocks run one after another, and the host's memory is coherent

inline unsigned atomicAdd(unsigned* address, unsigned value) {
    unsigned old = *address;
    *address = old + value;
    return old;
}

namespace convgap_interpret {
template <class T>
T shuffle(unsigned mask, T value, unsigned source, int width, int line) {
    static_assert(std::is_arithmetic<T>::value && sizeof(T) <= sizeof(uint64_t), "no such warp shuffle");
    unsigned lane = threadIdx.x % 32, end = (lane & -unsigned(width)) + width;
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = exchange(mask, bits, source < end ? source : lane, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
}  // namespace convgap_interpret

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
    return convgap_interpret::shuffle(mask, value, threadIdx.x % 32 ^ unsigned(lanes), width, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    return convgap_interpret::shuffle(mask, value, threadIdx.x % 32 + delta, width, line);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    convgap_interpret::exchange(mask, 0, threadIdx.x % 32, line);
}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t)a * b >> 32); }

// ---- arithmetic --------------------------------------------------------------------------------------

// Declared here because <math.h> would double the time to compile, and there are many compilations.
extern "C" {
float fabsf(float) noexcept;
double fabs(double) noexcept;
float fmaf(float, float, float) noexcept;
double fma(double, double, double) noexcept;
}

template <class T>
T min(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) return T(__builtin_fmin(a, b));  // CUDA's: the number, not the NaN
    return b < a ? b : a;
}

template <class T>
T max(T a, T b) {
    if constexpr (std::is_floating_point<T>::value) return T(__builtin_fmax(a, b));
    return a < b ? b : a;
}

// ---- element types: the names of device.cuh ----------------------------------------------------------

struct half {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

namespace convgap_interpret {
inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
}  // namespace convgap_interpret

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return convgap_interpret::bits_to_float(uint32_t(x.bits) << 16); }
inline float widen(half x) {
    uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = (x.bits & 0x7fffu) << 13;
    if (magnitude >= 0x0f800000u) return convgap_interpret::bits_to_float(sign | 0x70000000u | magnitude);  // Inf, NaN
    // 2^112 moves the exponent from half's bias to float's, and makes subnormals of half normal.
    return convgap_interpret::bits_to_float(sign | convgap_interpret::float_to_bits(convgap_interpret::bits_to_float(magnitude) * 0x1p112f));
}

// To nearest, ties to even; what is too large becomes Inf; NaN becomes 0x7fff, as the GPU has it.
template <class T>
T narrow(float) = delete;
template <class T>
T narrow(double) = delete;
template <>
inline float narrow<float>(float x) {
    return x;
}
template <>
inline float narrow<float>(double x) {
    return float(x);
}
template <>
inline double narrow<double>(double x) {
    return x;
}
template <>
inline bfloat16 narrow<bfloat16>(float x) {
    uint32_t bits = convgap_interpret::float_to_bits(x);
    if (x != x) return {0x7fff};
    return {(unsigned short)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
template <>
inline half narrow<half>(float x) {
    uint32_t bits = convgap_interpret::float_to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (x != x) return {0x7fff};
    if (magnitude >= 0x477ff000u) return {(unsigned short)(sign | 0x7c00u)};  // 65520 and up
    if (magnitude < 0x38800000u) {
        // Below 2^-14. In [0.5, 1) the unit of float is 2^-24, the unit of half's subnormals: the sum rounds.
        uint32_t sum = convgap_interpret::float_to_bits(convgap_interpret::bits_to_float(magnitude) + 0.5f);
        return {(unsigned short)(sign | (sum - 0x3f000000u))};
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1) - 0x38000000u;
    return {(unsigned short)(sign | magnitude >> 13)};
}

template <>
inline half narrow<half>(double x) {
    return narrow<half>(float(x));
}
template <>
inline bfloat16 narrow<bfloat16>(double x) {
    return narrow<bfloat16>(float(x));
}

// Rounded twice: the C library's fma is slow where the host has no such instruction.
template <class T>
T mad(T a, T b, T c) {
    return a * b + c;
}

// ---- loads -------------------------------------------------------------------------------------------

template <class T, int N>
struct alignas(sizeof(T) * N) vec {
    T at[N];
};

namespace convgap_interpret {
template <class V>
const V* checked(const V* address, const char* name, int line) {
    if (reinterpret_cast<uintptr_t>(address) % sizeof(V)) misaligned(name, sizeof(V), line);
    if (!inside(address, sizeof(V))) outside(name, sizeof(V), line);
    return address;
}
}  // namespace convgap_interpret

template <class V>
V load_streaming(const V* address, int line = __builtin_LINE()) {
    static_assert(sizeof(V) <= 16, "a GPU loads at most 16 bytes at once");
    return *convgap_interpret::checked(address, "load_streaming", line);
}

template <class V>
void store_wide(V* address, const V& value, int line = __builtin_LINE()) {
    static_assert(sizeof(V) <= 16, "a GPU stores at most 16 bytes at once");
    convgap_interpret::checked(address, "store_wide", line);
    *address = value;
}

template <class T>
T load_coherent(const T* address, int line = __builtin_LINE()) {
    return *convgap_interpret::checked(address, "load_coherent", line);
}

template <class V>
V load_cached(const V* address, int line = __builtin_LINE()) {
    return *convgap_interpret::checked(address, "load_cached", line);
}

// A copy is done when it is asked for.
template <int BYTES>
void copy_begin(void* to, const void* from, int line = __builtin_LINE()) {
    using access = vec<unsigned char, BYTES>;
    memcpy(to, convgap_interpret::checked(static_cast<const access*>(from), "copy_begin", line), BYTES);
}

inline void copy_wait() {}

// Blocks run one after another: every earlier store has happened.
inline unsigned step(unsigned* counter) { return (*counter)++; }

// ---- the table of kernels, read by __init__.py -------------------------------------------------------

extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];

namespace convgap_interpret {

// One letter per parameter: upper case for pointers, V for a pointer to anything else.
template <class T>
constexpr char letter() {
    using std::is_same;
    if (std::is_pointer<T>::value) {
        using E = typename std::remove_cv<typename std::remove_pointer<T>::type>::type;
        return is_same<E, float>::value       ? 'F'
               : is_same<E, double>::value    ? 'D'
               : is_same<E, half>::value      ? 'H'
               : is_same<E, bfloat16>::value  ? 'B'
               : is_same<E, int>::value       ? 'I'
               : is_same<E, unsigned>::value  ? 'U'
               : is_same<E, long long>::value ? 'L'
                                              : 'V';
    }
    return is_same<T, float>::value       ? 'f'
           : is_same<T, double>::value    ? 'd'
           : is_same<T, int>::value       ? 'i'
           : is_same<T, long long>::value ? 'l'
                                          : '\0';
}

template <auto KERNEL>
struct Launch;

template <class... P, void (*KERNEL)(P...)>
struct Launch<KERNEL> {
    static_assert((letter<P>() && ...), "a kernel parameter is a pointer, int, long long, float or double");
    static constexpr char letters[] = {letter<P>()..., 0};

    template <size_t... I>
    static void call(void* const* arguments, std::index_sequence<I...>) {
        KERNEL(*static_cast<P*>(arguments[I])...);
    }
    static void run(void* const* arguments) { call(arguments, std::index_sequence_for<P...>()); }
};

constexpr unsigned bounds(unsigned threads = 1024, unsigned = 0) { return threads; }

struct KernelRow {
    const char *name, *parameters, *letters;
    void (*run)(void* const* arguments);
    unsigned max_threads;
};

}  // namespace convgap_interpret
