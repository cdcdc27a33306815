"""The kernels of ceilings_triton.py in CUDA C++, launched through CuPy: floors where Triton cannot build its own.

Each thread handles UNROLL groups of 4 consecutive float32 elements, a block's threads side by side. All its loads are
independent, so they are in flight together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

SOURCE = r"""
struct alignas(16) four { float at[4]; };

extern "C" __global__ void __launch_bounds__(THREADS) read_all(const float* source, float* sums, long long groups) {
    __shared__ float parts[THREADS];
    const long long first = (long long)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    float total = 0;
    #pragma unroll
    for (int step = 0; step < UNROLL; step++) {
        const long long group = first + step * THREADS;
        if (group < groups) {
            const four value = ((const four*)source)[group];
            total += (value.at[0] + value.at[1]) + (value.at[2] + value.at[3]);
        }
    }
    parts[threadIdx.x] = total;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}

extern "C" __global__ void __launch_bounds__(THREADS) write_all(float* target, float value, long long groups) {
    const long long first = (long long)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    #pragma unroll
    for (int step = 0; step < UNROLL; step++) {
        const long long group = first + step * THREADS;
        if (group < groups) ((four*)target)[group] = {{value, value, value, value}};
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) copy_all(const float* source, float* target, long long groups) {
    const long long first = (long long)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    #pragma unroll
    for (int step = 0; step < UNROLL; step++) {
        const long long group = first + step * THREADS;
        if (group < groups) ((four*)target)[group] = ((const four*)source)[group];
    }
}

extern "C" __global__ void nothing() {}
"""


@dataclass(frozen=True)
class Config:
    """Launch constants of one ceiling kernel."""

    threads: int
    unroll: int


CONFIGS = (Config(128, 4), Config(128, 8), Config(256, 4), Config(256, 8), Config(512, 4), Config(512, 8))
"""64 to 128 bytes in flight per thread, 8 to 64 KiB per block: which of them wins depends on the card."""


@cache
def _kernel(name: str, config: Config, gpu: bool) -> Any:
    macros = (f"-DTHREADS={config.threads}", f"-DUNROLL={config.unroll}")
    if not gpu:
        from cupy_impl.interpret import Module

        return Module(SOURCE, macros).function(name)
    import cupy

    return cupy.RawKernel(SOURCE, name, options=("--std=c++17", *macros))


def _launch(name: str, config: Config, device: torch.device, groups: int, *arguments: Any) -> None:
    kernel = _kernel(name, config, device.type == "cuda")
    grid = (_blocks(groups, config),)
    if device.type == "cpu":
        kernel(grid, config.threads, arguments)
        return
    import numpy as np

    kinds = {int: np.int64, float: np.float32}
    values = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else kinds[type(a)](a) for a in arguments)
    with torch.cuda.device(device):
        stream = SimpleNamespace(ptr=torch.cuda.current_stream(device).cuda_stream)
        kernel(grid, (config.threads,), values, stream=stream)


def _blocks(groups: int, config: Config) -> int:
    return max(1, -(-groups // (config.threads * config.unroll)))


def read(source: torch.Tensor, config: Config) -> torch.Tensor:
    """Read the contiguous float32 `source`, a multiple of 4 elements, once; one partial sum per block."""
    groups = source.numel() // 4
    sums = torch.empty(_blocks(groups, config), dtype=torch.float32, device=source.device)
    _launch("read_all", config, source.device, groups, source, sums, groups)
    return sums


def write(target: torch.Tensor, value: float, config: Config) -> torch.Tensor:
    """Write `value` to the whole of the contiguous float32 `target`, a multiple of 4 elements."""
    _launch("write_all", config, target.device, target.numel() // 4, target, value, target.numel() // 4)
    return target


def copy(source: torch.Tensor, target: torch.Tensor, config: Config) -> torch.Tensor:
    """Copy the contiguous float32 `source`, a multiple of 4 elements, to `target` of the same size."""
    _launch("copy_all", config, source.device, source.numel() // 4, source, target, source.numel() // 4)
    return target


def empty(device: torch.device) -> torch.Tensor:
    """Launch a kernel that does nothing; returns an empty tensor."""
    _launch("nothing", CONFIGS[0], device, 0)
    return torch.empty(0, device=device)
