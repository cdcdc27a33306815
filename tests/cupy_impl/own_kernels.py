"""own_kernels.cu, which the tests of the CUDA C++ interpreter run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupy_impl.interpret import Kernel, Module, unavailable

ORDERS = ("forward", "reverse", "shuffled")
REASON = unavailable()

needs_compiler = pytest.mark.skipif(REASON is not None, reason=str(REASON))

SOURCE = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8")


def kernel(name: str, threads: int = 256, *options: str) -> Kernel:
    return Module(SOURCE, (f"-DTHREADS={threads}", *options)).function(name)
