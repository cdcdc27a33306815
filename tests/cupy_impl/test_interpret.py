"""The CUDA C++ interpreter against kernels of its own: what it computes, and which mistakes it reports."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cupy_impl.interpret import Kernel, Module, unavailable

ROOT = Path(__file__).parents[2]
ORDERS = ("forward", "reverse", "shuffled")
REASON = unavailable()

needs_compiler = pytest.mark.skipif(REASON is not None, reason=str(REASON))

SOURCE = r"""
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
"""

# Lines are part of the report, so these kernels stand apart.
HANGS = """\
extern "C" __global__ void leave_early(int limit) {
    if (threadIdx.x >= limit && blockIdx.x == 1) return;
    __syncthreads();
}
extern "C" __global__ void two_barriers() {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}
extern "C" __global__ void barrier_against_shuffle(float* out) {
    if (threadIdx.x == 5)
        __syncthreads();
    else
        out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
extern "C" __global__ void not_in_mask(float* out) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1);
}
extern "C" __global__ void masks_disagree(float* out) {
    unsigned mask = threadIdx.x % 32 < 16 ? 0xffffffffu : 0xffff0000u;
    out[threadIdx.x] = __shfl_xor_sync(mask, 1.0f, 1);
    __syncthreads();
}
extern "C" __global__ void exited_lane(float* out) {
    if (threadIdx.x == 5) return;
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
"""


def kernel(name: str, threads: int = 256, *options: str) -> Kernel:
    return Module(SOURCE, (f"-DTHREADS={threads}", *options)).function(name)


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CONVGAP_INTERPRET_ORDER", request.param)
    return request.param


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVGAP_INTERPRET_ORDER", "forward")


# ---- what it computes --------------------------------------------------------------------------------


@needs_compiler
def test_vector_add(order: str) -> None:
    n = 1000  # not a multiple of the block
    a, b = torch.rand(2, n, generator=torch.Generator().manual_seed(1)).unbind()
    out = torch.full((n + 24,), torch.nan)
    kernel("add")((4,), 256, (a, b, out, n))
    assert torch.equal(out[:n], a + b)
    assert out[n:].isnan().all()


@needs_compiler
@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_block_sum(order: str, threads: int) -> None:
    n = 2000
    x = torch.randint(
        -100, 100, (3, n), generator=torch.Generator().manual_seed(2)
    ).float()  # every sum is exact
    out, wide, ints = torch.zeros(3), torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int32)
    kernel("sum_rows", 1024)((3,), threads, (x, out, wide, ints, n))
    assert torch.equal(out, x.sum(1))
    assert torch.equal(wide, x.double().sum(1))
    assert ints.tolist() == [threads] * 3


@needs_compiler
def test_last_block(order: str) -> None:
    x = torch.arange(40 * 64, dtype=torch.float32)  # exact: the sum is below 2^24
    parts, out, arrived = torch.zeros(40), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    for launches in (1, 2):  # the counter resets itself
        kernel("sum_by_last_block")((40,), 64, (x, parts, arrived, out))
        assert out.item() == launches * x.sum().item()
        assert arrived.item() == 0


@needs_compiler
def test_order_of_blocks(order: str) -> None:
    def tickets() -> list[int]:
        out = torch.full((24,), -1, dtype=torch.int32)
        kernel("ticket")((4, 3, 2), 32, (torch.zeros(1, dtype=torch.int32), out))
        return out.tolist()

    if order == "shuffled":
        assert sorted(tickets()) == list(range(24))
        assert tickets() not in (list(range(24)), list(range(23, -1, -1)))
    else:
        assert tickets() == list(range(24))[:: -1 if order == "reverse" else 1]
    assert tickets() == tickets()


@needs_compiler
@pytest.mark.parametrize("width", [32, 8])
def test_shuffle_down(order: str, width: int) -> None:
    x = torch.arange(64, dtype=torch.int32) * 10
    out = torch.zeros_like(x)
    kernel("shift_down")((1,), 64, (x, out, 3, width))
    assert out.tolist() == [10 * (i + 3 if i % width + 3 < width else i) for i in range(64)]


@needs_compiler
def test_half_warps_shuffle_on_their_own(order: str) -> None:
    out = torch.zeros(32, dtype=torch.int32)
    kernel("half_warps")((1,), 32, (out,))
    lower = [sum(range(i // 8 * 8, i // 8 * 8 + 8)) for i in range(16)]
    assert out.tolist() == lower + [sum(range(16, 32))] * 16


@needs_compiler
@pytest.mark.parametrize("which", [0, 37, 99, 100])
def test_votes_of_a_block(order: str, which: int) -> None:
    out = torch.zeros(100, dtype=torch.int32)
    kernel("vote")((1,), 100, (out, which))
    assert out.tolist() == [which < 100] * 100


@needs_compiler
@pytest.mark.parametrize("count", [4, 64, 1000])
def test_asynchronous_copies(order: str, count: int) -> None:
    x, out = torch.rand(count), torch.zeros(count)
    kernel("copy")((1,), 64, (x, out, count))
    assert torch.equal(out, x)


@needs_compiler
def test_a_wide_access_partly_outside_a_tensor_is_refused() -> None:
    """The last access of 9 elements has 12 bytes of others', which nobody would see in what comes out."""
    x, out = torch.rand(12), torch.zeros(9)
    start = x.data_ptr()
    with pytest.raises(RuntimeError, match=r"copy_begin of 16 bytes that are not all inside a tensor"):
        kernel("copy")((1,), 64, (x, out, 9), [(start, start + 36)])
    kernel("copy")((1,), 64, (x, out, 9), [(0, 8), (start, start + 48)])
    assert torch.equal(out, x[:9])


@needs_compiler
def test_high_halves_of_products() -> None:
    numbers = [0, 1, 2**31, 2**32 - 1, 123456789]
    x = torch.tensor([n - 2**32 if n >= 2**31 else n for n in numbers], dtype=torch.int32)
    out = torch.zeros_like(x)
    kernel("high_halves")((1,), len(numbers), (x, out))
    assert [n % 2**32 for n in out.tolist()] == [n * 0xC0000001 >> 32 for n in numbers]


@needs_compiler
def test_block_smaller_than_a_warp(order: str) -> None:
    x = torch.arange(8, dtype=torch.int32)
    out = torch.zeros_like(x)
    kernel("shift_down")((1,), 8, (x, out, 3, 32))
    # -1, all bits set: those lanes do not exist, and CUDA leaves their values undefined.
    assert out.tolist() == [3, 4, 5, 6, 7, -1, -1, -1]


@needs_compiler
def test_widen_every_pattern() -> None:
    patterns = torch.arange(65536).to(torch.int16)
    half, bfloat16 = patterns.view(torch.float16), patterns.view(torch.bfloat16)
    from_half, from_bfloat16 = torch.zeros(65536), torch.zeros(65536)
    kernel("widen_all")((256,), 256, (half, bfloat16, from_half, from_bfloat16))
    for got, wanted in ((from_half, half.float()), (from_bfloat16, bfloat16.float())):
        assert torch.equal(got.isnan(), wanted.isnan())
        numbers = ~wanted.isnan()
        assert torch.equal(got.view(torch.int32)[numbers], wanted.view(torch.int32)[numbers])


def floats_to_narrow() -> torch.Tensor:
    """Random float32 patterns, and every tie of float16 and bfloat16 with its two neighbours, of both signs."""
    patterns = torch.randint(0, 2**32, (1 << 17,), generator=torch.Generator().manual_seed(3)).to(torch.int32)
    # Random patterns are seldom in float16's range: these are, its subnormals included.
    scale = torch.logspace(-9, 5, 1 << 16, dtype=torch.float64)
    near = (
        scale * torch.rand(1 << 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ).float()
    halves = torch.arange(0x7C00).to(torch.int16).view(torch.float16).double()
    ties16 = torch.cat([(halves[:-1] + halves[1:]) / 2, torch.tensor([65520.0])]).float()
    ties_bf16 = (torch.arange(0x7F80) * 65536 + 0x8000).to(torch.int32).view(torch.float32)
    infinity = torch.tensor(torch.inf)
    ties = torch.cat([ties16, ties_bf16])
    around = torch.cat([ties, ties.nextafter(infinity), ties.nextafter(-infinity), near])
    special = torch.tensor([0.0, torch.inf, torch.nan])
    return torch.cat([patterns.view(torch.float32), around, -around, special, -special])


@needs_compiler
def test_narrow_rounds_to_nearest_even() -> None:
    x = floats_to_narrow()
    half, bfloat16 = torch.zeros_like(x, dtype=torch.float16), torch.zeros_like(x, dtype=torch.bfloat16)
    kernel("narrow_all")((-(-len(x) // 256),), 256, (x, half, bfloat16, len(x)))
    for got in (half, bfloat16):
        wanted = x.to(got.dtype).view(torch.int16)
        wanted = torch.where(x.isnan(), 0x7FFF, wanted)  # the GPU's NaN
        assert torch.equal(got.view(torch.int16), wanted)


# ---- arguments ---------------------------------------------------------------------------------------


def numbers(*values: object) -> list[float]:
    dtypes = (torch.int64, torch.float64, torch.float32, torch.int32)
    outs = [torch.zeros(1, dtype=dtype) for dtype in dtypes]
    kernel("numbers")((1,), 1, (*outs, *values))
    return [out.item() for out in outs]


@needs_compiler
def test_numbers_reach_parameters_of_every_width() -> None:
    assert numbers(2**62 + 1, 1 / 3, 0.5, -5) == [2**62 + 1, 1 / 3, 0.5, -5]
    assert numbers(np.int64(2**40), np.float64(1e300), np.float32(0.1), np.int32(9))[:2] == [2**40, 1e300]


@needs_compiler
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ((1, 1.0, 1.0, 2**31), OverflowError, "numbers: e: 2147483648 does not fit int"),
        ((-(2**63) - 1, 1.0, 1.0, 1), OverflowError, "numbers: a: .* does not fit long long"),
        ((1, 1.0, 1.0, 1.0), TypeError, "numbers: e: expected int, got float"),
        ((1, 1.0, 1, 1), TypeError, "numbers: c: expected float, got int"),
        ((1, 1.0, np.float64(1), 1), TypeError, "numbers: c: expected float, got float64"),
        ((1, np.float32(1), 1.0, 1), TypeError, "numbers: b: expected double, got float32"),
        ((np.int32(1), 1.0, 1.0, 1), TypeError, "numbers: a: expected long long, got int32"),
        ((1, 1.0, 1.0, True), TypeError, "numbers: e: expected int, got bool"),
        ((1, 1.0, 1.0, torch.ones(1)), TypeError, "numbers: e: expected int, got Tensor"),
        ((1, 1.0, 1.0), TypeError, r"numbers: expected 8 arguments \(l, d, f, i, a, b, c, e\), got 7"),
    ],
)
def test_wrong_numbers(values: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        numbers(*values)


@needs_compiler
@pytest.mark.parametrize(
    ("pointer", "got"),
    [
        (torch.zeros(4, dtype=torch.float64), "a float64 tensor on cpu"),
        (torch.zeros(4, dtype=torch.int32), "a int32 tensor on cpu"),
        (torch.zeros(4, device="meta"), "a float32 tensor on meta"),
        (1.0, "float"),
        (np.zeros(4), "ndarray"),
    ],
)
def test_wrong_pointers(pointer: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"load_four: x: expected float\*, got {got}"):
        kernel("load_four")((1,), 1, (pointer, torch.zeros(1)))


@needs_compiler
def test_pointers_may_be_addresses_and_null() -> None:
    x, out = torch.ones(4), torch.zeros(1)
    kernel("load_four")((1,), 1, (x.data_ptr(), out.data_ptr()))
    assert out.item() == 4
    kernel("any_pointer")((1,), 1, (None, torch.zeros(4, dtype=torch.int64)))


@needs_compiler
@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0,), 32, "grid"),
        ((1, 65536), 32, "grid"),
        ((1, 1, 1, 1), 32, "grid"),
        ((), 32, "grid"),
        ((1,), 0, "block"),
        ((1,), 65, "block: expected 1 to 64 threads, got 65"),
    ],
)
def test_launches_that_cuda_refuses(grid: tuple[int, ...], block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel("sum_by_last_block")(grid, block, (None, None, None, None))


@needs_compiler
def test_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match=r"no kernel 'subtract' in the source, which has .*'add'"):
        kernel("subtract")
    with pytest.raises(
        ValueError, match=r"options: expected macro definitions \(-DNAME=VALUE\), got \['-O3'\]"
    ):
        Module(SOURCE, ("-O3",))
    monkeypatch.setenv("CONVGAP_INTERPRET_ORDER", "sideways")
    with pytest.raises(ValueError, match=r"CONVGAP_INTERPRET_ORDER: expected one of .*, got 'sideways'"):
        kernel("add")((1,), 32, (None, None, None, 0))


# ---- mistakes that a GPU turns into garbage or a hang ------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        (
            "leave_early",
            (40,),
            (
                r"leave_early: block \(1, 0, 0\): the block hangs: "
                r"threads 0-39 at __syncthreads on line 3, threads 40-63 exited"
            ),
        ),
        (
            "two_barriers",
            (),
            "threads 0-31 at __syncthreads on line 7, threads 32-63 at __syncthreads on line 9",
        ),
        (
            "barrier_against_shuffle",
            (torch.zeros(64),),
            (
                "threads 0-4 in a warp shuffle on line 15, thread 5 at __syncthreads on line 13, "
                "threads 6-31 in a warp shuffle on line 15, threads 32-63 exited"
            ),
        ),
        (
            "masks_disagree",
            (torch.zeros(64),),
            "threads 0-15 in a warp shuffle on line 22, threads 16-31 at __syncthreads on line 23",
        ),
        ("not_in_mask", (torch.zeros(64),), "on line 18: a warp shuffle whose mask leaves out the caller"),
    ],
)
def test_divergence_is_reported(order: str, name: str, args: tuple[object, ...], message: str) -> None:
    hangs = Module(HANGS)
    with pytest.raises(RuntimeError, match=message):
        hangs.function(name)((2,), 64, args)
    # The fibers left behind in the middle of a kernel do not disturb what follows.
    hangs.function("leave_early")((2,), 64, (64,))


@needs_compiler
def test_shuffle_from_an_exited_lane_is_nan(order: str) -> None:
    out = torch.zeros(32)
    Module(HANGS).function("exited_lane")((1,), 32, (out,))
    assert out.isnan().nonzero().flatten().tolist() == [4]


@needs_compiler
@pytest.mark.parametrize(("threads", "distance"), [(32, 1), (256, 32)])  # between lanes, between warps
def test_missing_barrier_shows(order: str, threads: int, distance: int) -> None:
    wanted, out = (
        [i - distance if i >= distance else i for i in range(threads)],
        torch.zeros(threads, dtype=torch.int32),
    )
    kernel("previous", 256, "-DSYNCHRONISED")((1,), threads, (out, distance))
    assert out.tolist() == wanted
    kernel("previous", 256)((1,), threads, (out, distance))
    assert (out.tolist() == wanted) == (order == "forward")


@needs_compiler
def test_unwritten_shared_memory_is_nan(forward: None) -> None:
    out = torch.zeros(2, 64)
    kernel("unwritten")((2,), 64, (out,))
    assert (out[0] == 1).all()
    assert out[1].isnan().all()  # the first block's values are gone


@needs_compiler
def test_misaligned_load_is_reported(order: str) -> None:
    x, out = torch.ones(8), torch.zeros(1)
    load_four = kernel("load_four")
    load_four((1,), 1, (x[4:], out))
    assert out.item() == 4
    message = r"load_four: block \(0, 0, 0\): thread 0 on line \d+: load_streaming of 16 bytes at a misaligned address"
    with pytest.raises(RuntimeError, match=message):
        load_four((1,), 1, (x[1:], out))


@needs_compiler
def test_misaligned_store_is_reported_and_not_done(order: str) -> None:
    out = torch.zeros(8)
    store_four = kernel("store_four")
    store_four((1,), 1, (out[4:],))
    assert out.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]
    message = (
        r"store_four: block \(0, 0, 0\): thread 0 on line \d+: store_wide of 16 bytes at a misaligned address"
    )
    with pytest.raises(RuntimeError, match=message):
        store_four((1,), 1, (out[1:],))
    assert out.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


@needs_compiler
def test_compile_error_is_shown() -> None:
    with pytest.raises(RuntimeError, match=r"kernels\.cu:2:.*no_such_name"):
        Module('extern "C" __global__ void wrong(int* x) {\n    x[0] = no_such_name;\n}\n')


@needs_compiler
def test_parameter_of_an_unsupported_type_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match="a kernel parameter is a pointer, int, long long, float or double"
    ):
        Module('extern "C" __global__ void wrong(short x) {}')


# ---- the compiler, the cache, threads ----------------------------------------------------------------


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    reason = unavailable()
    assert reason is not None and "neither c++, g++ nor clang++ is on PATH" in reason
    with pytest.raises(RuntimeError, match="needs a host C\\+\\+ compiler"):
        Module("// a source that no other test compiles")
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "CXX='no-such-compiler -m64' is not on PATH" in str(unavailable())


PROGRAM = textwrap.dedent("""
    import ctypes
    from cupy_impl.interpret import Module
    out = ctypes.c_int()
    module = Module('extern "C" __global__ void f(int* out) { *out = VALUE; }', ("-DVALUE=42",))
    module.function("f")((1,), 1, (ctypes.addressof(out),))
    assert out.value == 42
""")


def start(cache: Path, program: str = PROGRAM, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "CONVGAP_CACHE_DIR": str(cache), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@needs_compiler
def test_processes_share_the_cache(tmp_path: Path) -> None:
    log, compiler, cache = tmp_path / "log", tmp_path / "counting-c++", tmp_path / "cache"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {os.environ.get("CXX", "c++")} "$@"\n')
    compiler.chmod(0o755)
    for process in [start(cache, CXX=str(compiler)) for _ in range(2)]:  # a race for the empty directory
        finish(process)
    assert len(list(cache.iterdir())) == 2  # the scheduler and the kernels, nothing half-made
    assert "-shared" in log.read_text()
    log.unlink()
    finish(start(cache, CXX=str(compiler)))
    assert "-shared" not in log.read_text()


@needs_compiler
def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file can not hold a directory, whoever asks")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    finish(start(tmp_path / "file" / "cache", TMPDIR=str(scratch)))
    assert not any(scratch.iterdir())


@needs_compiler
@pytest.mark.parametrize("keep", [0, 3000, -1])
def test_a_damaged_library_is_made_anew(tmp_path: Path, keep: int) -> None:
    cache = tmp_path / "cache"
    finish(start(cache))
    made = sorted(cache.iterdir())
    assert len(made) == 2
    for library in made:
        content = library.read_bytes()
        library.write_bytes(content[:keep] if keep >= 0 else content[:2000] + bytes(1000) + content[3000:])
    finish(start(cache))
    assert sorted(cache.iterdir()) == made


@needs_compiler
def test_a_cache_directory_needs_no_home(tmp_path: Path) -> None:
    nobody = """
        import os, pwd
        def getpwuid(uid):
            raise KeyError(uid)
        pwd.getpwuid = getpwuid
        del os.environ["HOME"]
    """
    cache = tmp_path / "cache"
    finish(start(cache, textwrap.dedent(nobody) + PROGRAM))
    assert len(list(cache.iterdir())) == 2


@needs_compiler
def test_threads_of_python_take_turns(order: str) -> None:
    add = kernel("add")

    def work(seed: int) -> bool:
        a, b = torch.rand(2, 512, generator=torch.Generator().manual_seed(seed)).unbind()
        out = torch.zeros(512)
        add((4,), 128, (a, b, out, 512))
        return torch.equal(out, a + b)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))
