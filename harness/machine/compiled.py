"""What the compilers make of both kernel sets for a given card, without that card: facts from PTX and SASS.

`python -m harness.machine.compiled ARCH` prints the facts as JSON. It is a process of its own because Triton compiles
nothing in a process that interprets its kernels (TRITON_INTERPRET).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import torch

from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.errors import UsageError, last_line
from harness.machine import compilers, ptx, sass
from harness.machine.compilers import Binary, compile_baseline, compile_launch
from reference.problem import Problem, Tail
from runtime.names import ROOT, module_command
from runtime.prepared import Prepared, accumulator

CASES = (
    "chain/headline",
    "chain/headline-float16",
    "chain/headline-channels_last",
    "chain/kernelbench-old",
    "tail/headline",
    "tail/headline-float16",
    "tail/headline-channels_last",
    "tail/7x7",
    "tail/7x7-channels_last",
)
"""One of each: operator, dtype, layout, and a plane too small and too odd for wide loads."""

WITH_BACKWARD = "chain/headline"


@dataclass
class Compiled:
    """One kernel, compiled for one case.

    grid: blocks launched. threads: per block. registers, stack: per thread, stack in bytes. shared: bytes per block.
    loads, stores: global memory instructions by bits per thread. local_loads, local_stores: instructions that touch
    local memory, which is where spilled registers live. in_flight: bytes of global loads that a thread issues before
    it waits for one of them, at most. stored: statements of the source that store to each buffer. reloaded: buffers
    that are both stored and loaded. main: whether the call that the case makes launches it. workspace: bytes that
    the call allocates beyond its output.
    """

    backend: str
    case: str
    kernel: str
    grid: int
    threads: int
    registers: int
    stack: int
    shared: int
    loads: dict[str, int]
    stores: dict[str, int]
    local_loads: int
    local_stores: int
    in_flight: int
    stored: dict[str, int]
    reloaded: list[str]
    main: bool = True
    workspace: int = 0
    y_bytes: int = 0

    @property
    def spills(self) -> int:
        """Local-memory instructions."""
        return self.local_loads + self.local_stores

    @property
    def width(self) -> int:
        """Bits of the widest global load."""
        return max((int(bits) for bits in self.loads), default=0)


def collect(arch: int, cases: Sequence[str] = CASES) -> list[Compiled]:
    """Facts of both kernel sets and the baseline schedule, compiled for sm_<arch>. cases: names of cases or sets."""
    from cupy_impl import prepare as cuda
    from triton_impl import prepare as triton

    found: list[Compiled] = []
    for case in select(cases):
        stride = stride_of(case)
        for backend, kernels in (("triton", triton), ("cupy", cuda)):
            found += _of_case(backend, kernels, case, stride, arch)
        if isinstance(case.problem, Tail):
            binary, grid = compile_baseline(case.problem, stride, case.dtype, arch)
            size = getattr(torch, case.dtype).itemsize * prod(case.problem.in_shape)
            found.append(read(binary, "baseline", case.name, "multiply_gap_kernel", grid, y_bytes=size))
    return found


def _of_case(backend: str, kernels: Any, case: Case, stride: tuple[int, ...], arch: int) -> Iterator[Compiled]:
    dtype, problem = getattr(torch, case.dtype), case.problem
    y_bytes = dtype.itemsize * prod(problem.in_shape if isinstance(problem, Tail) else problem.conv_shape)
    for made, main, sums in launches(
        kernels, problem, stride, dtype, case.multiplier is None, backward=case.name == WITH_BACKWARD
    ):
        binary = _binary(made.launch.kind, made.launch, arch)
        facts = read(binary, backend, case.name, made.launch.kernel, prod(made.launch.grid), y_bytes=y_bytes)
        acc = accumulator(dtype).itemsize
        workspace = acc * (sums + made.partials) + 4 * made.counters
        yield replace(facts, main=main, workspace=workspace)


def launches(
    kernels: Any,
    problem: Problem,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    tensor: bool,
    *,
    backward: bool = False,
    alignment: int = 0,
) -> Iterator[tuple[Prepared, bool, int]]:
    """What a kernel set prepares for a problem: each launch, whether the call makes it, band sums stored beside it.

    A chain has its two launches too where one serves it.
    """
    if isinstance(problem, Tail):
        yield kernels.prepare_multiply_gap(problem, stride, dtype, alignment, tensor), True, 0
        return
    one = kernels.prepare_band_sums_contract(problem, stride, dtype, alignment, tensor)
    if one is not None:
        yield one, True, 0
    sums = prod(problem.sums_shape)
    yield kernels.prepare_band_sums(problem, stride, dtype, alignment), one is None, sums
    yield kernels.prepare_contract(problem, dtype, tensor), one is None, sums
    if backward:
        yield kernels.prepare_expand(problem, dtype), False, sums
        yield kernels.prepare_band_fill(problem, stride, dtype), False, sums
        yield kernels.prepare_weight_grad(problem, dtype), False, sums


_binaries: dict[tuple[Hashable, int], Binary] = {}


def _binary(kind: Hashable, launch: Any, arch: int) -> Binary:
    """Compiled once for every kind: cases that differ in sizes share it."""
    if (kind, arch) not in _binaries:
        _binaries[kind, arch] = compile_launch(launch, arch)
    return _binaries[kind, arch]


def stride_of(case: Case) -> tuple[int, ...]:
    format_ = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    return torch.empty(case.problem.in_shape, device="meta", memory_format=format_).stride()


def read(binary: Binary, backend: str, case: str, kernel: str, grid: int, *, y_bytes: int = 0) -> Compiled:
    """Facts of a compiled kernel."""
    usage = resources(binary.cubin)
    code = [parsed for line in disassembly(binary.cubin).splitlines() if (parsed := sass.parse_sass(line))]
    mnemonics = [instruction.mnemonic for instruction in code]
    accesses = ptx.buffer_accesses(binary)
    return Compiled(
        backend=backend,
        case=case,
        kernel=kernel,
        grid=grid,
        threads=binary.threads,
        registers=usage["REG"],
        stack=usage["STACK"],
        shared=usage["SHARED"] + binary.shared,
        loads=sass.widths(mnemonics, "LDG"),
        stores=sass.widths(mnemonics, "STG"),
        local_loads=sum(name.startswith("LDL") for name in mnemonics),
        local_stores=sum(name.startswith("STL") for name in mnemonics),
        in_flight=sass.bytes_in_flight(code),
        stored={name: len(found.stores) for name, found in accesses.items() if found.stores},
        reloaded=sorted(name for name, found in accesses.items() if found.stores and found.loads),
        y_bytes=y_bytes,
    )


@lru_cache(maxsize=2)
def tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm: where TRITON_CUOBJDUMP_PATH or TRITON_NVDISASM_PATH says, or in Triton's wheel.
    Raises UsageError."""
    try:
        from triton import knobs

        return getattr(knobs.nvidia, name).path
    except (ImportError, RuntimeError) as error:
        raise UsageError(f"{name} comes with Triton: {error}") from None


def disassembly(cubin: bytes) -> str:
    """Machine code in words, a line for each instruction."""
    return _tool("nvdisasm", cubin, "-c")


def _tool(name: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool(name), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """What the one kernel of some machine code takes: REG of a thread, and bytes of STACK, SHARED, LOCAL and more."""
    text = _tool("cuobjdump", cubin, "--dump-resource-usage")
    line = next(line for line in text.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}


def collect_elsewhere(arch: int, cases: Sequence[str] = CASES) -> list[Compiled]:
    """`collect` in a process in which Triton compiles. UsageError if that process fails."""
    environment = compilers.environment()
    done = subprocess.run(
        [*module_command("harness.machine.compiled"), str(arch), *cases],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UsageError(f"compiling for sm_{arch} failed: {last_line(done.stderr)}")
    return [Compiled(**item) for item in json.loads(done.stdout)]


if __name__ == "__main__":
    print(json.dumps([asdict(item) for item in collect(int(sys.argv[1]), sys.argv[2:])]))
