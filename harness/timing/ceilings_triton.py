"""Kernels in Triton that do nothing but read, write or copy: what the memory gives, so what a kernel may hope for.

Each program handles UNROLL consecutive blocks of BLOCK float32 elements. All its loads are independent, so
they are in flight together; the loop is unrolled, so the compiler can issue them back to back.
"""

# Triton's own types say nothing of launch options and compile-time loops.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Config:
    """Launch constants of one ceiling kernel."""

    block: int
    unroll: int
    warps: int


# Between 16 and 128 bytes in flight per thread and load step, 4 to 64 KiB per program: which of them wins
# depends on the card, so all are measured and the fastest is the ceiling.
CONFIGS = (
    Config(1024, 4, 4),
    Config(1024, 8, 4),
    Config(1024, 16, 4),
    Config(2048, 4, 8),
    Config(2048, 8, 8),
    Config(4096, 4, 8),
)


@triton.jit
def read_kernel(source, sums, numel, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    program = tl.program_id(0)
    first = program.to(tl.int64) * (BLOCK * UNROLL)
    total = tl.zeros([BLOCK], tl.float32)
    for step in tl.static_range(UNROLL):
        offsets = first + step * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(source + offsets, mask=offsets < numel, other=0.0)
    tl.store(sums + program, tl.sum(total, axis=0))


@triton.jit
def write_kernel(target, value, numel, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * UNROLL)
    for step in tl.static_range(UNROLL):
        offsets = first + step * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + offsets, tl.zeros([BLOCK], tl.float32) + value, mask=offsets < numel)


@triton.jit
def copy_kernel(source, target, numel, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * (BLOCK * UNROLL)
    for step in tl.static_range(UNROLL):
        offsets = first + step * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + offsets, tl.load(source + offsets, mask=offsets < numel, other=0.0), mask=offsets < numel)


@triton.jit
def empty_kernel():
    pass


def _programs(numel: int, config: Config) -> int:
    return triton.cdiv(numel, config.block * config.unroll)


def read(source: torch.Tensor, config: Config) -> torch.Tensor:
    """Read the contiguous float32 `source` once; one partial sum per program, so that no load is dead."""
    programs = _programs(source.numel(), config)
    sums = torch.empty(programs, dtype=torch.float32, device=source.device)
    read_kernel[(programs,)](
        source, sums, source.numel(), BLOCK=config.block, UNROLL=config.unroll, num_warps=config.warps
    )
    return sums


def write(target: torch.Tensor, value: float, config: Config) -> torch.Tensor:
    """Write `value` to the whole of the contiguous float32 `target`."""
    write_kernel[(_programs(target.numel(), config),)](
        target, value, target.numel(), BLOCK=config.block, UNROLL=config.unroll, num_warps=config.warps
    )
    return target


def copy(source: torch.Tensor, target: torch.Tensor, config: Config) -> torch.Tensor:
    """Copy the contiguous float32 `source` to `target` of the same size."""
    copy_kernel[(_programs(source.numel(), config),)](
        source, target, source.numel(), BLOCK=config.block, UNROLL=config.unroll, num_warps=config.warps
    )
    return target


def empty(device: torch.device) -> torch.Tensor:
    """Launch a kernel that does nothing; returns an empty tensor."""
    empty_kernel[(1,)]()
    return torch.empty(0, device=device)
