"""What a loaded kernel takes of each thread, as the CUDA driver says it: no disassembler is needed."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_void_p

LOCAL_SIZE_BYTES, NUM_REGS = 3, 4
"""CUfunction_attribute."""


def resources(function: int) -> tuple[int, int]:
    """(registers, bytes of local memory) of a thread of a CUfunction, given as a number. Registers that did not fit lie
    in local memory. Raises RuntimeError if the driver does not say, OSError without a driver."""
    driver = ctypes.CDLL("libcuda.so.1")
    found = []
    for attribute in (NUM_REGS, LOCAL_SIZE_BYTES):
        value = c_int()
        status = driver.cuFuncGetAttribute(byref(value), attribute, c_void_p(function))
        if status:
            raise RuntimeError(f"cuFuncGetAttribute: error {status}")
        found.append(value.value)
    return found[0], found[1]
