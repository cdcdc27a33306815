"""The CUDA C++ interpreter against kernels of its own: what it computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.cupy_impl.own_kernels import kernel, needs_compiler


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
    x = torch.randint(-100, 100, (3, n), generator=torch.Generator().manual_seed(2)).float()  # every sum is exact
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
    near = (scale * torch.rand(1 << 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).float()
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
