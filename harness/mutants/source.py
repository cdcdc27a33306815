"""What is wrong in the text of the kernels: a pattern is replaced, and the changed kernel runs in their place."""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from harness.mutants.interpose import Run


@dataclass(frozen=True)
class Source:
    """Text to change in one kernel file; it must be found exactly `count` times."""

    pattern: str
    replacement: str
    count: int = 1

    def apply(self, text: str) -> str:
        """The changed text. Raises ValueError unless the pattern is found as often as expected."""
        changed, count = re.subn(self.pattern, self.replacement, text)
        if count != self.count:
            raise ValueError(f"pattern {self.pattern!r}: expected {self.count} matches, found {count}")
        return changed


def run_of(backend: str, change: Source) -> Run:
    return _triton_run(change) if backend == "triton" else _cupy_run(change)


@cache
def _triton_run(change: Source) -> Run:
    from triton_impl import kernels

    assert kernels.__file__
    text = change.apply(Path(kernels.__file__).read_text())
    name = f"convgap_mutant_{crc32(text.encode()):x}"
    # A file, for Triton reads a kernel's text from where it was defined.
    file = Path(_folder().name, f"{name}.py")
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)

    def run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        mutated = getattr(module, launch.kernel)
        special = replace(launch.special, kernel=mutated)
        type(launch)(special, launch.grid, launch.sizes)(device, stream, *arguments)

    return run


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="convgap-mutants-")


@cache
def _cupy_run(change: Source) -> Run:
    from cupy_impl.launch import OPTIONS, device_source, interpreted, kernel_source, on_cpu

    text = change.apply(kernel_source())

    @cache
    def compiled(kind: Any) -> Any:
        import cupy

        return cupy.RawKernel(device_source(kind, text), kind.kernel, options=OPTIONS)

    def run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        if device.type == "cpu":
            on_cpu(interpreted(launch.kind, text), launch, arguments)
            return
        pointers = tuple(a.data_ptr() if isinstance(a, Tensor) else a for a in (*arguments, *launch.sizes))
        with torch.cuda.device(device):
            kernel, ours = compiled(launch.kind), SimpleNamespace(ptr=stream)
            kernel(launch.grid, (launch.threads,), pointers, shared_mem=launch.shared, stream=ours)

    return run


def both(triton: tuple[str, str, int], cupy: tuple[str, str, int]) -> Mapping[str, Source]:
    return {"triton": Source(*triton), "cupy": Source(*cupy)}
