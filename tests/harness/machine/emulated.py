"""Triton's kernels as compiled for a card, run on the CPU by emulate.py in the place of every launch."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.machine.compilers import compile_triton
from harness.mutants.interpose import interposed
from tests.harness.machine import emulate


@contextmanager
def emulated(arch: int, *, backwards: bool = False, sized: bool = False) -> Iterator[list[str]]:
    """Every launch of a Triton kernel on CPU tensors runs what Triton compiles for sm_<arch>; gives the names of the
    kernels that ran. backwards: warps take turns from the last to the first. sized: code for just the sizes of each
    launch.

    Triton has to be imported without TRITON_INTERPRET.
    """
    ran: list[str] = []
    programs: dict[Hashable, tuple[emulate.Program, int]] = {}

    def run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        kind = replace(launch.kind, sizes=launch.sizes) if sized else launch.kind
        if kind not in programs:
            binary = compile_triton(SimpleNamespace(kind=kind), arch)
            programs[kind] = emulate.read(binary.ptx), binary.threads
        program, threads = programs[kind]
        memory = emulate.Memory()
        for tensor in (a for a in arguments if isinstance(a, Tensor)):
            storage = tensor.untyped_storage()
            data = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
            memory.add(storage.data_ptr(), np.ctypeslib.as_array(data))
        values = [a.data_ptr() if isinstance(a, Tensor) else a for a in (*arguments, *launch.sizes)]
        # Triton adds pointers to scratch memory that there is none of.
        values += [0] * (len(program.parameters) - len(values))
        emulate.run(program, values, memory, launch.grid[0], threads, backwards=backwards)
        ran.append(launch.kernel)

    with interposed(run):
        yield ran
