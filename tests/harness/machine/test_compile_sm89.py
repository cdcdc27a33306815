"""Both kernel files compile for the target card (sm_89) without a driver, and nothing spills.

What an RTX 4090 would run is made here: by Triton's own compiler, and by NVRTC through CuPy. cuobjdump
then tells the registers and memory of each kernel. A byte of local memory is a spill, and so is one of stack that an
instruction touches: for a call, of a division of float64 say, ptxas sets stack aside that nothing does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cupy_impl.signatures import signatures
from harness.machine import compilers
from harness.machine.compiled import disassembly, launches, resources
from harness.machine.compilers import compile_cuda
from reference.problem import Chain, Problem, Tail

ROOT = Path(__file__).parents[3]
# Every run compiles float32; the other dtypes, and channels_last, which is other code, take as long each.
KINDS = [
    ("float32", "float32 cropped"),
    ("float32 7x7",),
    pytest.param(("float16", "float16 channels_last"), marks=pytest.mark.slow),
    pytest.param(("bfloat16", "float64"), marks=pytest.mark.slow),
]
# The headline: one launch serves it. The large weight of the other takes band_sums, then contract.
HEADLINE = Chain(16, 64, 128, 128, 128, (3, 3), (2, 2), (1, 1), (1, 1))
WIDE = Chain(8, 512, 256, 16, 16, (4, 4), (2, 2), (1, 1))
# Many taps, for few outputs and for as many as one launch serves.
LARGE = [Chain(16, 64, c_out, 128, 128, (5, 5), (2, 2), (1, 1)) for c_out in (64, 128)]
LARGER = Chain(16, 64, 64, 128, 128, (7, 7), (2, 2), (3, 3))
# Products enough for other blocks in contract, and outputs that do not fill them.
MANY = [Chain(128, 96, c_out, 7, 7, (3, 3), (2, 2), (1, 1)) for c_out in (128, 200)]
# Planes so small that their band sums never leave the block, and a kernel of many taps.
SMALL = [
    Chain(64, 256, 128, 4, 4, (4, 4), (2, 2), (1, 1)),
    Chain(256, 100, 512, 1, 1, (4, 4)),
    Chain(1, 21, 21, 16, 16, (64, 64), (32, 32), bias=False),
]
TAILS = ((16, 128, 256, 256), (256, 2048, 7, 7))
PROBLEMS: tuple[Problem, ...] = (*(Tail(*shape) for shape in TAILS), HEADLINE, WIDE, *LARGE, *MANY, *SMALL)


def strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int, int, int]:
    _, c, h, w = shape
    return (c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)


def made_for(
    kernel_set: Any, dtype: torch.dtype, channels_last: bool, problems: Sequence[Problem] = PROBLEMS
) -> Iterator[Any]:
    """Every launch that the kernel set prepares for these problems, each code once."""
    seen = set()
    for problem in problems:
        stride = strides(problem.in_shape, channels_last)
        # A number as multiplier is less code than a tensor, and yet has spilled where registers are used up.
        tensor = isinstance(problem, Chain) and problem not in MANY
        for made, *_ in launches(kernel_set, problem, stride, dtype, tensor, backward=True):
            if made.launch.kind not in seen:
                seen.add(made.launch.kind)
                yield made.launch


def wanted(kernel_set: Any, kinds: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(kind, launch): a kind is a dtype, and how x lies if it is not contiguous."""
    for kind in kinds:
        name, _, layout = kind.partition(" ")
        dtype = getattr(torch, name)
        if layout == "cropped":
            # Rows further apart than they are long: two axes to add up.
            made = kernel_set.prepare_multiply_gap(Tail(2, 3, 16, 17), (1020, 340, 20, 1), dtype, 0, False)
            yield kind, made.launch
            continue
        if layout == "7x7":
            for launch in made_for(kernel_set, dtype, False, [LARGER]):
                yield kind, launch
            continue
        for launch in made_for(kernel_set, dtype, layout == "channels_last"):
            yield kind, launch


def dump(cubin: bytes) -> dict[str, int]:
    """What the one kernel in a cubin takes, and instructions that touch stack or local memory."""
    pytest.importorskip("triton", reason="cuobjdump comes with Triton, which is not installed")
    return {"TOUCHED": len(re.findall(r"\b(?:LDL|STL)\b", disassembly(cubin)))} | resources(cubin)


def check(
    found: list[tuple[str, str, dict[str, int]]], kinds: Sequence[str], absent: Mapping[str, set[str]] = {}
) -> None:  # fmt: skip
    """No kernel is missing in any dtype but those that are `absent` in it, none spills, each fits sm_89's 99 KiB of
    shared memory."""
    for dtype in (kind for kind in kinds if " " not in kind):
        assert {kernel for kernel, of, _ in found if of == dtype} == device_kernels() - absent.get(dtype, set())
    unfit = [row for row in found if row[2]["TOUCHED"] or row[2]["LOCAL"] or row[2]["SHARED"] > 99 * 1024]
    assert not unfit


# The kernels must not be interpreted functions here, which is settled when they are decorated.
TRITON_PROGRAM = r"""
import json, re, sys
from pathlib import Path
from triton.backends.compiler import GPUTarget
from test_compile_sm89 import wanted
from triton_impl import prepare

found = []
for number, (dtype, launch) in enumerate(wanted(prepare, sys.argv[2:])):
    special = launch.kind
    path = Path(sys.argv[1], f"{number}.cubin")
    compiled = special.compile(GPUTarget("cuda", 89, 32))
    path.write_bytes(compiled.asm["cubin"])
    added = re.findall(r'"tt.reduce".*?\n *\}\) : \(tensor<[^,]*, ([^)]*)>\) ->', compiled.asm["ttgir"], re.DOTALL)
    assert added or "tt.reduce" not in compiled.asm["ttgir"]
    # Before 3.7 Triton adds the wrong lanes of an axis whose layout is that of a reshaped tile.
    assert not [layout for layout in added if "linear" in layout], (special, added)
    # Nor may the compiler split the axis of a sum that a loop repeats: those lanes are wrong before 3.7, too.
    shapes = r"tt.reshape [^\n]*? : tensor<([\dx]+)x[^\n]*? -> tensor<([\dx]+)x"
    for old, new in re.findall(shapes, compiled.asm["ttgir"]):
        assert new.count("x") <= old.count("x"), (special, old, new)
    found.append((special.kernel.__name__, dtype, str(path)))
print(json.dumps(found))
"""


@pytest.mark.parametrize("kinds", KINDS, ids=", ".join)
def test_triton(kinds: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = compilers.environment()
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/harness/machine")])}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", TRITON_PROGRAM, str(tmp_path), *kinds],
        check=False, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [(kernel, dtype, dump(Path(path).read_bytes())) for kernel, dtype, path in json.loads(done.stdout)]
    check(found, kinds)


def device_kernels() -> set[str]:
    """Names of the kernels in kernels.cu; the Triton file has the same."""
    return {kernel.name for kernel in signatures((ROOT / "cupy_impl" / "kernels.cu").read_text())}


@pytest.mark.parametrize("kinds", KINDS, ids=", ".join)
def test_cuda(kinds: tuple[str, ...]) -> None:
    pytest.importorskip("cupy", reason="the CUDA kernels are compiled by CuPy's NVRTC")
    from cupy_impl import prepare

    found = []
    for dtype, launch in wanted(prepare, kinds):
        cubin = compile_cuda(launch, 89).cubin
        found.append((launch.kernel, dtype, dump(cubin)))
    # Twice the bytes of float32 do not fit the registers with its planes.
    check(found, kinds, absent={"float64": {"planes_contract"}})
