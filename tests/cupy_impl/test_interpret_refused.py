"""The CUDA C++ interpreter: arguments that it refuses, and mistakes that a GPU turns into garbage or a hang."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cupy_impl.interpret import Module
from tests.cupy_impl.own_kernels import SOURCE, kernel, needs_compiler

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
    with pytest.raises(ValueError, match=r"options: expected macro definitions \(-DNAME=VALUE\), got \['-O3'\]"):
        Module(SOURCE, ("-O3",))
    monkeypatch.setenv("CONVGAP_INTERPRET_ORDER", "sideways")
    with pytest.raises(ValueError, match=r"CONVGAP_INTERPRET_ORDER: expected one of .*, got 'sideways'"):
        kernel("add")((1,), 32, (None, None, None, 0))


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
    message = r"store_four: block \(0, 0, 0\): thread 0 on line \d+: store_wide of 16 bytes at a misaligned address"
    with pytest.raises(RuntimeError, match=message):
        store_four((1,), 1, (out[1:],))
    assert out.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


@needs_compiler
def test_compile_error_is_shown() -> None:
    with pytest.raises(RuntimeError, match=r"kernels\.cu:2:.*no_such_name"):
        Module('extern "C" __global__ void wrong(int* x) {\n    x[0] = no_such_name;\n}\n')


@needs_compiler
def test_parameter_of_an_unsupported_type_is_refused() -> None:
    with pytest.raises(RuntimeError, match="a kernel parameter is a pointer, int, long long, float or double"):
        Module('extern "C" __global__ void wrong(short x) {}')
