"""What the compilers make of both kernel sets for a given card, without that card: facts from PTX and SASS.

`python -m harness.machine.compiled ARCH` prints the facts as JSON. It is a process of its own because Triton compiles
nothing in a process that interprets its kernels (TRITON_INTERPRET).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from harness.cases.catalogue import Case, select
from harness.errors import UsageError, last_line
from reference.problem import Tail
from runtime.names import ROOT, importable
from runtime.prepared import accumulator

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
MULTIPLIER = 0.5


@dataclass
class Compiled:
    """One kernel, compiled for one case.

    grid: blocks launched. threads: per block. registers, stack: per thread, stack in bytes. shared: bytes per block.
    loads, stores: global memory instructions by bits per thread. local_loads, local_stores: instructions that touch
    local memory, which is where spilled registers live. in_flight: bytes of global loads that a thread issues before
    it waits for one of them, at most. loop_instructions, loop_bytes: instructions of the loop that loads most, and
    bytes that a thread loads in it (of the whole kernel if no loop loads). stored: statements of the source that
    store to each buffer. reloaded: buffers that are both stored and loaded. main: whether the call that the case
    makes launches it. workspace: bytes that the call allocates beyond its output.
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
    loop_instructions: int
    loop_bytes: int
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


@dataclass(frozen=True)
class Binary:
    """A compiled kernel: machine code, its PTX with source lines, names of the pointers among its parameters."""

    cubin: bytes
    ptx: str
    pointers: dict[int, str]
    shared: int
    threads: int


def collect(arch: int) -> list[Compiled]:
    """Facts of both kernel sets and the baseline schedule, compiled for sm_<arch>."""
    from cupy_impl import launch as cuda
    from triton_impl import launch as triton

    found: list[Compiled] = []
    for case in select(CASES):
        stride = stride_of(case)
        for backend, kernels in (("triton", triton), ("cupy", cuda)):
            found += _of_case(backend, kernels, case, stride, arch)
        if isinstance(case.problem, Tail):
            binary, grid = compile_baseline(case.problem, stride, case.dtype, arch)
            size = _itemsize(case) * prod(case.problem.in_shape)
            found.append(read(binary, "baseline", case.name, "multiply_gap_kernel", grid, y_bytes=size))
    return found


def _of_case(
    backend: str, kernels: Any, case: Case, stride: tuple[int, ...], arch: int
) -> Iterator[Compiled]:
    dtype, problem = getattr(torch, case.dtype), case.problem
    tensor = case.multiplier is None
    acc = accumulator(dtype).itemsize
    if isinstance(problem, Tail):
        call = kernels.prepare_tail(problem.in_shape, stride, dtype, 0, tensor)
        y_bytes = dtype.itemsize * prod(problem.in_shape)
        launches = {name: (launch, True) for name, launch in prepared(call)}
        workspace = dict.fromkeys(launches, acc * call.partials + 4 * call.counters)
    else:
        call = kernels.prepare_chain(problem, stride, dtype, 0, tensor)
        y_bytes = dtype.itemsize * prod(problem.conv_shape)
        one = call.band_sums_contract is not None
        launches = {name: (launch, (name == "band_sums_contract") == one) for name, launch in prepared(call)}
        sums = acc * problem.n * problem.c_in * prod(problem.kernel)
        workspace = {
            "band_sums": sums + acc * call.band_partials + 4 * call.band_counters,
            "contract": sums + acc * call.contract_partials + 4 * call.contract_counters,
        }
        workspace["band_sums_contract"] = acc * call.partials + 4 * call.counters
        if case.name == WITH_BACKWARD:
            backward = prepared(kernels.prepare_backward(problem, stride, dtype))
            launches |= {name: (launch, False) for name, launch in backward}
    compiler = compile_triton if backend == "triton" else compile_cuda
    for name, (launch, main) in launches.items():
        binary, kernel = compiler(launch.special, arch), launch.special.kernel
        kernel = kernel if isinstance(kernel, str) else kernel.__name__
        facts = read(binary, backend, case.name, kernel, prod(launch.grid), y_bytes=y_bytes)
        yield replace(facts, main=main, workspace=workspace.get(name, 0))


def prepared(call: Any) -> Iterator[tuple[str, Any]]:
    """(kernel's name, launch) of everything that a prepare_* function prepared."""
    assert is_dataclass(call)
    for field in fields(call):
        launch = getattr(call, field.name)
        if hasattr(launch, "special"):
            yield field.name, launch


def stride_of(case: Case) -> tuple[int, ...]:
    format_ = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    return torch.empty(case.problem.in_shape, device="meta", memory_format=format_).stride()


def _itemsize(case: Case) -> int:
    return getattr(torch, case.dtype).itemsize


# --- compilers ---


def compile_triton(special: Any, arch: int) -> Binary:
    """A Specialization of triton_impl.launch, compiled for sm_<arch>."""
    from triton.backends.compiler import GPUTarget

    _require_compiling_triton()
    compiled = special.compile(GPUTarget("cuda", arch, 32))
    return _triton_binary(compiled, dict(zip(special.kernel.arg_names, special.types, strict=False)))


def compile_baseline(problem: Tail, stride: tuple[int, ...], dtype: str, arch: int) -> tuple[Binary, int]:
    """The baseline schedule as its JIT launch would specialise it, and its number of programs."""
    import triton
    import triton.language as tl

    from triton_impl import baseline

    _require_compiling_triton()
    kinds = {"float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16"}
    sizes = dict(zip(("C", "H", "W"), problem.in_shape[1:], strict=True))
    sizes |= dict(zip(("stride_n", "stride_c", "stride_h", "stride_w"), stride, strict=True))
    constants: dict[str, Any] = {name: 1 for name, value in sizes.items() if value == 1}
    constants |= {"MULTIPLIER": MULTIPLIER, "ACC": tl.float64 if dtype == "float64" else tl.float32}
    constants |= {"BLOCK_C": baseline.BLOCK_C, "BLOCK_P": baseline.BLOCK_P}
    kernel: Any = baseline.multiply_gap_kernel
    binary = compile_jit(
        kernel,
        {"y": kinds[dtype], "out": kinds[dtype]} | dict.fromkeys(sizes, "i32"),
        constants,
        ["y", "out", *(name for name, value in sizes.items() if value % 16 == 0)],
        arch,
        baseline.NUM_WARPS,
    )
    return binary, problem.n * triton.cdiv(problem.c, baseline.BLOCK_C)


def compile_jit(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], divisible: list[str], arch: int, warps: int
) -> Binary:
    """A @triton.jit kernel by the Triton types of its parameters, those named in `divisible` multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    _require_compiling_triton()
    names = kernel.arg_names
    signature = types | dict.fromkeys(constants, "constexpr")
    attrs = {(names.index(n),): [["tt.divisibility", 16]] for n in divisible if n not in constants}
    source = ASTSource(kernel, {name: signature[name] for name in names}, constants, attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    return _triton_binary(compiled, {name: kind for name, kind in types.items() if name not in constants})


def _require_compiling_triton() -> None:
    from triton import knobs

    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: Triton interprets its kernels in this process")


def _triton_binary(compiled: Any, types: dict[str, str]) -> Binary:
    pointers = {at: name for at, (name, kind) in enumerate(types.items()) if kind.startswith("*")}
    metadata = compiled.metadata
    return Binary(
        compiled.asm["cubin"], compiled.asm["ptx"], pointers, metadata.shared, 32 * metadata.num_warps
    )


def compile_cuda(special: Any, arch: int) -> Binary:
    """A Specialization of cupy_impl.launch, compiled for sm_<arch> by the compiler that CuPy uses."""
    from cupy_impl import launch

    source = launch.device_source(special)
    return compile_cuda_source(source, special.kernel, launch.OPTIONS, special.threads, arch)


def compile_cuda_source(
    source: str, kernel: str, options: tuple[str, ...], threads: int, arch: int
) -> Binary:
    """One kernel of a CUDA C++ source. RuntimeError with the compiler's log if it does not compile."""
    try:
        from cupy.cuda import nvrtc as found
    except ImportError as error:
        raise UsageError(f"the CUDA kernels are compiled by CuPy's NVRTC: {error}") from None
    # CuPy puts a plain False there where it has no NVRTC, which is all that a type checker sees.
    nvrtc: Any = found
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
    try:
        # CuPy itself adds -ftz=true. Line numbers do not change the code.
        nvrtc.compileProgram(program, (*options, f"-arch=sm_{arch}", "-ftz=true", "-lineinfo"))
        ptx = nvrtc.getPTX(program)
        return Binary(
            # CuPy takes the last byte for the end of a string and drops it.
            nvrtc.getCUBIN(program) + b"\0",
            ptx if isinstance(ptx, str) else ptx.decode(),
            cuda_pointers(source, kernel),
            0,
            threads,
        )
    except nvrtc.NVRTCError:
        raise RuntimeError(nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)


def cuda_pointers(source: str, kernel: str) -> dict[int, str]:
    """Positions and names of the pointers among a __global__ function's parameters."""
    signature = re.search(rf"__global__[^;{{]*?\b{kernel}\s*\(([^)]*)\)", source)
    if signature is None:
        raise ValueError(f"kernel: expected a __global__ function {kernel} in the source, found none")
    names = enumerate(signature[1].split(","))
    return {at: re.findall(r"\w+", text)[-1] for at, text in names if "*" in text}


# --- facts ---


def read(binary: Binary, backend: str, case: str, kernel: str, grid: int, *, y_bytes: int = 0) -> Compiled:
    """Facts of a compiled kernel."""
    usage, sass = _cuobjdump(binary.cubin), _tool("nvdisasm", binary.cubin, "-c").splitlines()
    code = [parsed for line in sass if (parsed := parse_sass(line))]
    instructions, loaded = hot_loop(sass)
    mnemonics = [instruction.mnemonic for instruction in code]
    accesses = buffer_accesses(binary)
    return Compiled(
        backend=backend,
        case=case,
        kernel=kernel,
        grid=grid,
        threads=binary.threads,
        registers=usage["REG"],
        stack=usage["STACK"],
        shared=usage["SHARED"] + binary.shared,
        loads=_widths(mnemonics, "LDG"),
        stores=_widths(mnemonics, "STG"),
        local_loads=sum(name.startswith("LDL") for name in mnemonics),
        local_stores=sum(name.startswith("STL") for name in mnemonics),
        in_flight=bytes_in_flight(code),
        loop_instructions=instructions,
        loop_bytes=loaded,
        stored={name: len(found.stores) for name, found in accesses.items() if found.stores},
        reloaded=sorted(name for name, found in accesses.items() if found.stores and found.loads),
        y_bytes=y_bytes,
    )


@lru_cache(maxsize=1)
def _tools() -> Path:
    """Directory with cuobjdump and nvdisasm: Triton's wheel brings them."""
    try:
        import triton
    except ImportError as error:
        raise UsageError(f"cuobjdump and nvdisasm come with Triton: {error}") from None
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _tool(name: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_tools() / name, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _cuobjdump(cubin: bytes) -> dict[str, int]:
    text = _tool("cuobjdump", cubin, "--dump-resource-usage")
    line = next(line for line in text.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction: its name with modifiers, the general registers it writes and reads."""

    mnemonic: str
    written: frozenset[int]
    read: frozenset[int]


_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_NO_RESULT = ("ST", "RED", "BRA", "EXIT", "BAR", "ISETP", "FSETP", "DSETP", "MEMBAR", "CCTL")


def parse_sass(line: str) -> Instruction | None:
    """One line of nvdisasm; None if it is no instruction."""
    match = _SASS.search(line)
    if match is None:
        return None
    mnemonic, operands = match[1], match[2].split(",")
    count = max(1, width_of(mnemonic) // 32) if mnemonic.startswith(("LDG", "LDL", "LDS")) else 1
    result = operands[0] if operands and not mnemonic.startswith(_NO_RESULT) else ""
    written = [int(r) + i for r in re.findall(r"\bR(\d+)", result) for i in range(count)]
    sources = operands[1:] if result else operands
    used = [int(r) for text in sources for r in re.findall(r"\bR(\d+)", text)]
    if mnemonic.startswith("ST"):
        used += [r + i for r in used[-1:] for i in range(max(1, width_of(mnemonic) // 32))]
    return Instruction(mnemonic, frozenset(written), frozenset(used))


_LABEL = re.compile(r"^\s*(\.L_\w+):")
_BRANCH = re.compile(r"\bBRA\S*\s.*?`\((\.L_\w+)\)")


def hot_loop(sass: list[str]) -> tuple[int, int]:
    """(instructions, bytes a thread loads from global memory) of the innermost loop that loads most bytes.

    A loop is what lies between a label and a branch back to it. Without a loop that loads: the whole kernel.
    """
    labels: dict[str, int] = {}
    loads: list[int] = []
    loops: list[tuple[int, int]] = []
    for line in sass:
        if label := _LABEL.match(line):
            labels[label[1]] = len(loads)
        instruction = parse_sass(line)
        if instruction is None:
            continue
        name = instruction.mnemonic
        loads.append(width_of(name) // 8 if name.startswith("LDG") else 0)
        branch = _BRANCH.search(line)
        # The last instruction of a kernel is a branch to itself, which never runs.
        if branch and branch[1] in labels and labels[branch[1]] < len(loads) - 1:
            loops.append((labels[branch[1]], len(loads)))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    best = max(inner, key=lambda loop: sum(loads[loop[0] : loop[1]]), default=None)
    if best is None or not sum(loads[best[0] : best[1]]):
        return len(loads), sum(loads)
    return best[1] - best[0], sum(loads[best[0] : best[1]])


def width_of(mnemonic: str) -> int:
    """Bits that a load or store moves per thread."""
    for part in mnemonic.split("."):
        if part in ("64", "128", "256"):
            return int(part)
        if part in ("U8", "S8", "8"):
            return 8
        if part in ("U16", "S16", "16"):
            return 16
    return 32


def _widths(mnemonics: list[str], prefix: str) -> dict[str, int]:
    counted = Counter(width_of(name) for name in mnemonics if name.startswith(prefix))
    return {str(bits): counted[bits] for bits in sorted(counted, reverse=True)}


def bytes_in_flight(code: list[Instruction]) -> int:
    """Most bytes of global loads issued by a thread before an instruction needs one of them.

    Read from top to bottom: a loop counts once, as it is written in the machine code.
    """
    most = 0
    pending: dict[int, int] = {}
    for instruction in code:
        if pending.keys() & (instruction.read | instruction.written):
            pending.clear()
        if instruction.mnemonic.startswith("LDG") and instruction.written:
            size = width_of(instruction.mnemonic) // 8
            pending |= dict.fromkeys(instruction.written, 0)
            pending[min(instruction.written)] = size
            most = max(most, sum(pending.values()))
    return most


@dataclass
class Accesses:
    """Source lines from which one buffer is stored and loaded."""

    stores: set[str]
    loads: set[str]


_PARAM = re.compile(r"ld\.param\.[ub]64\s+(%\w+),\s*\[\w+_param_(\d+)\]")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_PTX = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+(.+?);")


def buffer_accesses(binary: Binary) -> dict[str, Accesses]:
    """Which source lines load and store each pointer parameter, found by following addresses through the PTX.

    An address belongs to every parameter that it was computed from; a loaded value belongs to none. Atomic
    operations are neither loads nor stores here.
    """
    lines = [line.split("//")[0] for line in binary.ptx.splitlines()]
    owners: dict[str, set[str]] = {}
    moves: list[tuple[str, list[str]]] = []
    for line in lines:
        if found := _PARAM.search(line):
            name = binary.pointers.get(int(found[2]))
            owners.setdefault(found[1], set()).update({name} if name else set())
        elif (found := _PTX.match(line)) and not found[1].startswith(("ld", "st", "atom", "red", "setp")):
            registers = re.findall(r"%rd\d+", found[2])
            if registers and found[2].lstrip("{ ").startswith("%rd"):
                moves.append((registers[0], registers[1:]))
    # Loops carry addresses backwards: repeat until nothing new is learnt.
    changed = True
    while changed:
        changed = False
        for target, sources in moves:
            known = owners.setdefault(target, set())
            learnt = set().union(*(owners.get(source, set()) for source in sources)) - known
            known |= learnt
            changed |= bool(learnt)
    accesses = {name: Accesses(set(), set()) for name in binary.pointers.values()}
    place = ""
    for line in lines:
        if found := _LOC.search(line):
            place = f"{found[1]}:{found[2]}"
        elif (found := _PTX.match(line)) and (kind := found[1].split(".")[0]) in ("ld", "st"):
            address = re.search(r"\[\s*(%\w+)", found[2])
            for name in owners.get(address[1], set()) if address else ():
                getattr(accesses[name], "stores" if kind == "st" else "loads").add(place)
    return accesses


# --- the process ---


def collect_elsewhere(arch: int) -> list[Compiled]:
    """`collect` in a process in which Triton compiles. UsageError if that process fails."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", importable("harness.machine.compiled"), str(arch)],
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
    print(json.dumps([asdict(item) for item in collect(int(sys.argv[1]))]))
