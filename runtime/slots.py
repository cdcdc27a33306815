"""Arguments of a launch in memory, where the CUDA driver reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_int64
from struct import Struct
from threading import local
from typing import Any

from torch import Tensor


class Slots(local):
    """Eight bytes for each argument of one kernel: laid out by its first launch, overwritten by the next.

    Tensors come first, and stand for their addresses. Narrower integers are read from the lower half of
    their slot. Every thread has slots of its own, for the driver reads them while other threads run.

    given   from the addresses of all slots to what `fill` returns: the form in which a launcher wants them
    """

    def __init__(self, given: Callable[[list[int]], Any]) -> None:
        self._given = given
        self._tensors = -1

    def fill(self, arguments: Sequence[Any]) -> Any:
        """Write the arguments of one launch. Returns given(addresses), made once per thread."""
        if self._tensors < 0:
            self._lay_out(arguments)
        count = self._tensors
        self._pack(self._memory, 0, *[t.data_ptr() for t in arguments[:count]], *arguments[count:])
        return self._ready

    def _lay_out(self, arguments: Sequence[Any]) -> None:
        self._pack = Struct("".join("d" if isinstance(a, float) else "q" for a in arguments)).pack_into
        memory = (c_int64 * len(arguments))()
        self._ready = self._given([addressof(memory) + 8 * i for i in range(len(arguments))])
        self._memory = memory
        self._tensors = sum(isinstance(a, Tensor) for a in arguments)
