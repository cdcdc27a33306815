"""Triton kernels that each break one rule of the fusion audit, compiled for sm_89; prints the broken rules as JSON.

A process of its own, run by test_inspect.py beside it: where Triton interprets, it does not compile.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[3]))

from harness.machine import audit
from harness.machine.compiled import read
from harness.machine.compilers import compile_jit


@triton.jit
def good(y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(y + i) * 2)


@triton.jit
def stores_twice(y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    value = tl.load(y + i)
    tl.store(out + i, value)
    tl.store(out + SIZE + i, value * 2)


@triton.jit
def stores_then_loads(y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(y + i))
    tl.debug_barrier()
    tl.atomic_add(y + i, tl.load(out + SIZE - 1 - i))


@triton.jit
def spills(y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    value = tl.load(y + i)
    for step in range(10):
        total += tl.cumsum(value * total, 0) * step
    tl.store(out + i, total + value)


if __name__ == "__main__":
    found = {}
    for kernel, size in ((good, 1024), (stores_twice, 1024), (stores_then_loads, 1024), (spills, 32768)):
        binary = compile_jit(kernel, {"y": "*fp32", "out": "*fp32"}, {"SIZE": size}, ["y", "out"], 89, 4)
        facts = read(binary, "planted", "case", kernel.__name__, 1)
        found[kernel.__name__] = {
            "broken": audit.violations(facts),
            "width": facts.width,
            "stored": facts.stored,
        }
    print(json.dumps(found))
