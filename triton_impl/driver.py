"""The CUDA driver, as far as a Triton kernel needs it: load its machine code, launch it.

Triton's own launcher is a C extension, and before Triton 3.7 one for every signature, each made by a C compiler in
about as long as the kernel itself takes to compile. This takes no C compiler, and a microsecond less per launch.
"""

from __future__ import annotations

import ctypes
from ctypes import addressof, byref, c_char_p, c_int, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

INVALID_CONTEXT = 201
"""CUresult of a launch in a thread that has no context."""

MAX_DYNAMIC_SHARED_BYTES = 8
"""CUfunction_attribute."""

FREE_SHARED_BYTES = 48 * 1024
"""Shared memory that a kernel may have without asking."""

_NULL = c_uint64()


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int) -> None:
    if status:
        name, text = c_char_p(), c_char_p()
        _driver().cuGetErrorName(status, byref(name))
        _driver().cuGetErrorString(status, byref(text))
        said = " ".join((part.value or b"").decode() for part in (name, text))
        raise RuntimeError(f"CUDA driver: {said.strip() or f'error {status}'}")


class Unloadable(RuntimeError):
    """Machine code that the driver does not take."""


def _bind(device: int) -> None:
    """Make the device's primary context, which torch uses, current: a fresh thread has none."""
    context, ordinal = c_void_p(), c_int()
    _check(_driver().cuDeviceGet(byref(ordinal), device))
    _check(_driver().cuDevicePrimaryCtxRetain(byref(context), ordinal))
    _check(_driver().cuCtxSetCurrent(context))


def parameters(addresses: list[int]) -> Any:
    """What a launch takes: the addresses of a kernel's parameters, then of null pointers for the scratch memory that
    Triton adds parameters for. They are more than it adds: the driver reads as many as the kernel has."""
    return (c_void_p * (len(addresses) + 4))(*addresses, *[addressof(_NULL)] * 4)


class Kernel:
    """One kernel of a cubin, loaded on a device.

    name     its entry point
    threads  per program
    shared   bytes of shared memory per program

    Raises Unloadable, a RuntimeError with the driver's words, if the machine code cannot be loaded.
    """

    def __init__(self, device: int, cubin: bytes, name: str, threads: int, shared: int) -> None:
        _bind(device)
        module, function = c_void_p(), c_void_p()
        try:
            _check(_driver().cuModuleLoadData(byref(module), cubin))
            _check(_driver().cuModuleGetFunction(byref(function), module, name.encode()))
        except RuntimeError as error:
            raise Unloadable(str(error)) from None
        if shared > FREE_SHARED_BYTES:
            _check(_driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_BYTES, shared))
        self._device = device
        self.handle: tuple[int, int, int] = (function.value or 0, threads, shared)
        self._launch = _driver().cuLaunchKernel
        self._function = function
        # Converted once: ctypes passes its own objects on as they are.
        self._block = tuple(map(c_uint, (1, threads, 1, 1, shared)))

    def __call__(self, grid: tuple[int, int], stream: int, parameters: Any) -> None:
        """Launch as many programs, up to 2^31 - 1 and 65535, on `stream` (a raw handle) with what `parameters` made."""
        arguments = self._function, *grid, *self._block, c_void_p(stream), parameters, None
        status = self._launch(*arguments)
        if status == INVALID_CONTEXT:
            _bind(self._device)
            status = self._launch(*arguments)
        _check(status)
