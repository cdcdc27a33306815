"""Runs CUDA C++ kernels on the CPU, as TRITON_INTERPRET=1 runs Triton's: see docs/interpreter.md.

The source is compiled by the host C++ compiler against `device.h`; `fibers.cpp` runs each block of a grid
with one fiber per thread.

    module = Module(source, ("-DKH=3",))
    module.function("band_sums")((4, 2), 256, (x, out, n))
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from functools import cache
from threading import RLock
from typing import Any

from ..signatures import signatures
from .build import HERE, preprocess, shared_library, unavailable

__all__ = ["Kernel", "Module", "unavailable"]

ORDERS = ("forward", "reverse", "shuffled")
MAX_GRID = (2**31 - 1, 65535, 65535)  # CUDA's

# By device.h's letter: the C++ type, the ctypes type, the numpy and ctypes scalars of just that type.
SCALARS = {
    "i": ("int", ctypes.c_int32, ("int32", "c_int")),
    "l": ("long long", ctypes.c_int64, ("int64", "longlong", "c_long")),
    "f": ("float", ctypes.c_float, ("float32", "c_float")),
    "d": ("double", ctypes.c_double, ("float64", "c_double")),
}
# By device.h's letter: the C++ type pointed to, the dtypes of tensors it fits.
POINTERS = {
    "F": ("float", ("float32",)),
    "D": ("double", ("float64",)),
    "H": ("half", ("float16",)),
    "B": ("bfloat16", ("bfloat16",)),
    "I": ("int", ("int32",)),
    "U": ("unsigned", ("uint32", "int32")),
    "L": ("long long", ("int64",)),
}

# The scheduler has one set of fibers, and shared memory is static.
_lock = RLock()


def _table(source: str, options: tuple[str, ...]) -> str:
    """C++ text of the table of kernels (KernelRow in device.h); parameter types are left to the compiler."""
    rows = []
    for kernel in signatures(preprocess(source, options)):
        name, names = kernel.name, kernel.names
        bounds = re.search(r"__launch_bounds__\s*(\(.*\))", kernel.attributes, re.DOTALL)
        launch = f"convgap_interpret::Launch<{name}>"
        threads = f"convgap_interpret::bounds{bounds[1] if bounds else '()'}"
        rows.append(f'{{"{name}", "{",".join(names)}", {launch}::letters, {launch}::run, {threads}}},\n')
    return (
        'extern "C" { convgap_interpret::KernelRow convgap_kernels[] = {\n' + "".join(rows) + "{}};\n"
        "char* convgap_shared[] = {__start_cuda_shared, __stop_cuda_shared}; }\n"
    )


class _Row(ctypes.Structure):
    """KernelRow of device.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("parameters", ctypes.c_char_p),
        ("letters", ctypes.c_char_p),
        ("run", ctypes.c_void_p),
        ("max_threads", ctypes.c_uint),
    )


@cache
def _scheduler() -> Any:
    """The C function that runs a grid. Its library's symbols are global, where the kernels' libraries look."""
    launch = ctypes.CDLL(str(shared_library((HERE / "fibers.cpp").read_text())), ctypes.RTLD_GLOBAL)
    launch.convgap_interpret_launch.restype = ctypes.c_char_p
    return launch.convgap_interpret_launch


@cache
def _kernels(source: str, options: tuple[str, ...]) -> dict[str, Kernel]:
    """Every kernel of a source by name."""
    if reason := unavailable():
        raise RuntimeError(reason)
    launch = _scheduler()
    text = f'#include "device.h"\nnamespace {{\n#line 1 "kernels.cu"\n{source}\n}}\n{_table(source, options)}'
    library = ctypes.CDLL(str(shared_library(text, options)))
    shared = tuple(address or 0 for address in (ctypes.c_void_p * 2).in_dll(library, "convgap_shared"))
    rows = ctypes.cast(library.convgap_kernels, ctypes.POINTER(_Row))
    kernels: dict[str, Kernel] = {}
    while (row := rows[len(kernels)]).name:
        kernels[row.name.decode()] = Kernel(row, launch, shared)
    return kernels


class Module:
    """A CUDA C++ source, compiled for the CPU once per process, and once per cache directory.

    source: CUDA C++ text without #include, within the subset of docs/interpreter.md.
    options: macro definitions, e.g. ("-DKH=3", "-DELEMENT=half").
    Raises ValueError for any other option, RuntimeError if there is no compiler or it refuses the source.
    """

    def __init__(self, source: str, options: tuple[str, ...] = ()) -> None:
        if others := [option for option in options if not option.startswith("-D")]:
            raise ValueError(f"options: expected macro definitions (-DNAME=VALUE), got {others}")
        with _lock:
            self._kernels = _kernels(source, tuple(options))

    def function(self, name: str) -> Kernel:
        """The kernel of that name. Raises KeyError if the source has none."""
        if name not in self._kernels:
            raise KeyError(f"no kernel {name!r} in the source, which has {sorted(self._kernels)}")
        return self._kernels[name]


class Kernel:
    """One __global__ function: `kernel(grid, block, arguments)`."""

    def __init__(self, row: _Row, launch: Any, shared: tuple[int, ...]) -> None:
        self.name: str = row.name.decode()
        names = row.parameters.decode().split(",") if row.parameters else []
        self.parameters = tuple(zip(names, row.letters.decode(), strict=True))
        self.max_threads: int = row.max_threads
        self._run = ctypes.c_void_p(row.run)
        self._launch = launch
        self._shared = ctypes.c_void_p(shared[0]), ctypes.c_size_t(shared[1] - shared[0])

    def __call__(
        self,
        grid: tuple[int, ...],
        block: int,
        args: tuple[Any, ...],
        extents: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Run the kernel on a grid of up to 3 dimensions with `block` threads per block.

        args: CPU tensors, addresses (int) or None for pointers; int and float for numbers, or numpy and ctypes
        scalars of the parameter's own type.
        extents: first address of each tensor, and the first one behind it; without any, no address is outside.
        Raises TypeError for a wrong number or type of arguments, OverflowError for an int that does not fit,
        ValueError for a launch that CUDA refuses, RuntimeError for what a GPU turns into garbage or a hang:
        threads of a block that wait for each other in different places, a misaligned load, or one outside the extents.
        """
        sizes = (*grid, 1, 1)[:3]
        if not 1 <= len(grid) <= 3 or not all(1 <= n <= most for n, most in zip(sizes, MAX_GRID, strict=True)):
            raise ValueError(f"{self.name}: grid: expected 1 to 3 sizes from 1 to {MAX_GRID}, got {grid}")
        if not 1 <= block <= self.max_threads:
            raise ValueError(f"{self.name}: block: expected 1 to {self.max_threads} threads, got {block}")
        order = os.environ.get("CONVGAP_INTERPRET_ORDER") or "forward"
        if order not in ORDERS:
            raise ValueError(f"CONVGAP_INTERPRET_ORDER: expected one of {ORDERS}, got {order!r}")
        if len(args) != len(self.parameters):
            wanted = ", ".join(name for name, _ in self.parameters)
            raise TypeError(f"{self.name}: expected {len(self.parameters)} arguments ({wanted}), got {len(args)}")
        values = [self._convert(*p, value) for p, value in zip(self.parameters, args, strict=True)]
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        dimensions = map(ctypes.c_uint, (*sizes, block))
        flat = [address for extent in extents for address in extent]
        inside = (ctypes.c_size_t * len(flat))(*flat), ctypes.c_size_t(len(extents))
        with _lock:
            error = self._launch(self._run, addresses, *dimensions, *self._shared, ORDERS.index(order), *inside)
        if error:
            raise RuntimeError(f"{self.name}: {error.decode()}")

    def _convert(self, name: str, letter: str, value: Any) -> Any:
        """The argument as ctypes holds it, checked against the parameter's type."""
        got = type(value).__name__
        if letter.isupper():
            element, dtypes = POINTERS.get(letter, ("void", ()))
            kind = f"{element}*"
            if value is None or type(value) is int:
                return ctypes.c_void_p(value)
            if hasattr(value, "data_ptr"):
                dtype = str(value.dtype).removeprefix("torch.")
                got = f"a {dtype} tensor on {value.device}"
                if value.device.type == "cpu" and (dtype in dtypes or letter == "V"):
                    return ctypes.c_void_p(value.data_ptr())
        else:
            kind, ctype, same = SCALARS[letter]
            if got in same or (type(value) is float and letter in "fd"):
                return ctype(getattr(value, "value", value))
            if type(value) is int and letter in "il":
                bits = 8 * ctypes.sizeof(ctype)
                if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
                    raise OverflowError(f"{self.name}: {name}: {value} does not fit {kind} ({bits} bits)")
                return ctype(value)
        raise TypeError(f"{self.name}: {name}: expected {kind}, got {got}")
