"""Compiled Triton kernels run on the CPU: the emulator's own judgement, then every kernel as compiled for sm_89."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.machine import compilers
from tests.harness.machine import emulate

ROOT = Path(__file__).parents[3]
KERNELS = [
    "band_fill", "band_sums", "band_sums_contract", "contract", "expand", "multiply_gap", "multiply_gap_flat",
    "planes_contract", "weight_grad",
]  # fmt: skip

# Each thread stores its number and reads that of the thread 32 before, which is in the other warp.
SWAP = """
.visible .entry swap(
	.param .u64 .ptr .global .align 1 swap_param_0,
	.param .u32 swap_param_1
)
{
	ld.param.b64 	%rd1, [swap_param_0];
	ld.param.b32 	%r1, [swap_param_1];
	mov.u32 	%r2, %tid.x;
	shl.b32 	%r3, %r2, 2;
	st.shared.b32 	[%r3], %r2;
	BARRIER
	xor.b32 	%r4, %r3, 128;
	ld.shared.b32 	%r5, [%r4];
	setp.lt.s32 	%p1, %r5, 16;
	@%p1 bra 	$L__BB0_2;
	add.s32 	%r5, %r5, %r1;
$L__BB0_2:
	mad.wide.u32 	%rd2, %r2, 4, %rd1;
	@!%p1 bra 	$L__BB0_3;
	sub.s32 	%r5, %r5, %r1;
$L__BB0_3:
	st.global.b32 	[ %rd2 + OFFSET ], { %r5 };
	ret;
}
"""


def swap(text: str, elements: int = 64, *, backwards: bool = False) -> list[int]:
    """The kernel on 64 threads, with 100 as its number."""
    out = np.zeros(elements, np.int32)
    memory = emulate.Memory()
    memory.add(1 << 20, out.view(np.uint8))
    emulate.run(emulate.read(text), [1 << 20, 100], memory, 1, 64, backwards=backwards)
    return out.tolist()


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_lanes_part_and_meet_again(backwards: bool) -> None:
    """Lanes below 16 take one side, the others the other; each of them one of the two."""
    text = SWAP.replace("BARRIER", "bar.sync \t0;").replace("OFFSET", "0")
    other = [i ^ 32 for i in range(64)]
    assert swap(text, backwards=backwards) == [n - 100 if n < 16 else n + 100 for n in other]


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_a_missing_barrier_is_a_race(backwards: bool) -> None:
    with pytest.raises(emulate.RaceError, match=r"warp \d changes byte \d+|warp \d reads byte \d+"):
        swap(SWAP.replace("BARRIER", "").replace("OFFSET", "0"), backwards=backwards)


def test_accesses_outside_and_misaligned() -> None:
    text = SWAP.replace("BARRIER", "bar.sync \t0;")
    with pytest.raises(IndexError, match="no tensor has 4 bytes at 0x1000fc"):
        swap(text.replace("OFFSET", "0"), elements=63)
    with pytest.raises(ValueError, match=r"misaligned: st\.global\.b32"):
        swap(text.replace("OFFSET", "2"), elements=65)


def test_an_unknown_instruction_is_named() -> None:
    with pytest.raises(NotImplementedError, match="tanh"):
        swap(SWAP.replace("BARRIER", "tanh.f32 \t%r9, %r2;").replace("OFFSET", "0"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs what Triton compiles for it")
@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float16",
        pytest.param("bfloat16", marks=pytest.mark.slow),
        pytest.param("float64", marks=pytest.mark.slow),
    ],
)
def test_what_triton_compiles_for_sm_89_is_right(dtype: str) -> None:
    """Every kernel, gradients included, warps in both orders, in a process in which Triton compiles."""
    pytest.importorskip("triton")
    environment = compilers.environment()
    done = subprocess.run(
        [sys.executable, "-m", "tests.harness.machine.emulated_calls", dtype],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == {} and found["ran"] == KERNELS
    assert found["calls"] == (57 if dtype == "float32" else 21)
