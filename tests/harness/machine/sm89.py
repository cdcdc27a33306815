"""The code an RTX 4090 would get, run on whatever GPU is here, as a backend of its own.

Both compilers can be asked for sm_89, and the PTX they then make runs on any newer GPU, through the
driver. It is not what they make for that GPU: instruction selection, vector widths and unrolling are
those of the target.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from harness.machine.compilers import compile_cuda
from harness.mutants.interpose import interposed

CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Code:
    """PTX of one kernel. hidden: parameters behind the kernel's own, which take null pointers."""

    ptx: str
    entry: str
    threads: int
    shared_bytes: int
    hidden: int


def unavailable() -> str:
    """Why sm_89 code cannot run here; empty if it can."""
    if not torch.cuda.is_available():
        return "there is no GPU to run sm_89 code on"
    if torch.cuda.get_device_capability() < CAPABILITY:
        return f"PTX for sm_89 needs a GPU of capability 8.9 or more, this one has {torch.cuda.get_device_capability()}"
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return f"loading PTX needs CuPy: {error}"
    return ""


def code(launch: Any, arguments: int) -> Code:
    """sm_89 code of a prepared launch of either set; its kernel takes `arguments` arguments, sizes included."""
    if isinstance(launch.kind.kernel, str):
        return Code(compile_cuda(launch, 89).ptx, launch.kernel, launch.threads, launch.shared, 0)
    from triton.backends.compiler import GPUTarget

    compiled = launch.kind.compile(GPUTarget("cuda", 89, 32))
    ptx, metadata = compiled.asm["ptx"], compiled.metadata
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, scratch, 0):
            raise RuntimeError(f"{metadata.name}: {scratch} is {getattr(metadata, scratch)}, expected none")
    entry = re.search(r"\.entry\s+(\w+)\s*\(([^)]*)\)", ptx)
    assert entry
    hidden = entry[2].count(".param") - arguments
    return Code(ptx, entry[1], 32 * metadata.num_warps, metadata.shared, hidden)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="convgap-sm89-")


_kernels: dict[tuple[Hashable, int], tuple[Any, Code]] = {}


def _loaded(launch: Any, arguments: int, device: int) -> tuple[Any, Code]:
    import cupy

    key = (launch.kind, launch.shared if isinstance(launch.kind.kernel, str) else 0), device
    if key not in _kernels:
        made = code(launch, arguments)
        file = Path(_folder().name, f"{len(_kernels)}.ptx")
        file.write_text(made.ptx)
        kernel = cupy.RawModule(path=str(file)).get_function(made.entry)
        if made.shared_bytes > 48 * 1024:
            kernel.max_dynamic_shared_size_bytes = made.shared_bytes
        _kernels[key] = kernel, made
    return _kernels[key]


def _run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in (*arguments, *launch.sizes)]
    with torch.cuda.device(device):
        kernel, made = _loaded(launch, len(values), device.index)
        # Launches of one kind may differ in their threads: those of CUDA C++ say how many.
        threads = getattr(launch, "threads", made.threads)
        kernel(
            launch.grid, (threads,), (*values, *[0] * made.hidden),
            shared_mem=made.shared_bytes, stream=SimpleNamespace(ptr=stream),
        )  # fmt: skip
    ran.append(launch.kernel)


ran: list[str] = []
"""Names of the kernels launched so, in order: proof that it was this code."""


@contextmanager
def executed() -> Iterator[list[str]]:
    """Every launch of both kernel sets runs the sm_89 PTX instead; gives the names of the kernels that ran."""
    ran.clear()
    with interposed(_run):
        yield ran
