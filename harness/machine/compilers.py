"""Both compilers asked for the code of a card that need not be there: Triton's own, and CuPy's NVRTC."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from cupy_impl.signatures import signatures
from harness.errors import UsageError
from reference.problem import Tail

MULTIPLIER = 0.5


def environment() -> dict[str, str]:
    """The variables of a process in which Triton compiles its kernels, whatever it does in this one."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@dataclass(frozen=True)
class Binary:
    """A compiled kernel: machine code, its PTX with source lines, names of the pointers among its parameters."""

    cubin: bytes
    ptx: str
    pointers: dict[int, str]
    shared: int
    threads: int


def compile_launch(launch: Any, arch: int) -> Binary:
    """The code of a prepared launch of either kernel set, compiled for sm_<arch>."""
    return compile_cuda(launch, arch) if isinstance(launch.kind.kernel, str) else compile_triton(launch, arch)


def compile_triton(launch: Any, arch: int) -> Binary:
    """The code of a Launch of triton_impl.launch."""
    from triton.backends.compiler import GPUTarget

    _require_compiling_triton()
    return _triton_binary(launch.kind.compile(GPUTarget("cuda", arch, 32)), dict(launch.kind.types))


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
    return Binary(compiled.asm["cubin"], compiled.asm["ptx"], pointers, metadata.shared, 32 * metadata.num_warps)


def compile_cuda(launch: Any, arch: int) -> Binary:
    """The code of a Launch of cupy_impl.launch, by the compiler that CuPy uses."""
    from cupy_impl.launch import OPTIONS, device_source

    binary = compile_cuda_source(device_source(launch.kind), launch.kernel, OPTIONS, launch.threads, arch)
    return replace(binary, shared=launch.shared)


def compile_cuda_source(source: str, kernel: str, options: tuple[str, ...], threads: int, arch: int) -> Binary:
    """One kernel of a CUDA C++ source.

    Raises RuntimeError with the compiler's log if it does not compile, ValueError if the source has no such kernel.
    """
    try:
        from cupy.cuda import nvrtc as found
    except ImportError as error:
        raise UsageError(f"the CUDA kernels are compiled by CuPy's NVRTC: {error}") from None
    pointers = next((found.pointers for found in signatures(source) if found.name == kernel), None)
    if pointers is None:
        raise ValueError(f"kernel: expected a __global__ function {kernel} in the source, found none")
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
            pointers,
            0,
            threads,
        )
    except nvrtc.NVRTCError:
        raise RuntimeError(nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)
