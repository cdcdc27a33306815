"""Every kernel launch of the candidate: counted, and on request left out or made to fail.

A kernel that does nothing must change the answer, and one that fails must not go unnoticed: otherwise something else
computes the answer. Triton's kernels, CuPy's RawKernels and the functions of extensions built by torch are seen.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

FAILURE = "this kernel was made to fail"


class Launches:
    """counts: launches by kernel since the last reset. skip, fail: the kernel that does nothing, or raises."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.skip = self.fail = ""

    def reset(self, skip: str = "", fail: str = "") -> None:
        """Count from zero, with one kernel left out or made to fail."""
        self.counts.clear()
        self.skip, self.fail = skip, fail

    def go(self, name: str) -> bool:
        """Count a launch; whether it is to happen. RuntimeError for a kernel that is made to fail."""
        self.counts[name] += 1
        if name == self.fail:
            raise RuntimeError(FAILURE)
        return name != self.skip

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that launches one kernel, counted."""

        def launched(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) if self.go(name) else None

        return launched

    def listen(self) -> None:
        """Stand between the launchers that are installed and the candidate, which is not loaded yet."""
        with contextlib.suppress(ImportError):
            self._triton()
        with contextlib.suppress(ImportError):
            self._extensions()

    def _triton(self) -> None:
        from triton import knobs
        from triton.compiler import CompiledKernel
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.interpreter import InterpretedFunction
        from triton.runtime.jit import JITFunction

        launches = self

        def name(kernel: Any) -> str:
            return getattr(kernel, "__name__", None) or kernel.fn.__name__

        for kind in (JITFunction, InterpretedFunction):
            plain = kind.run

            def run(self: Any, *args: Any, grid: Any, warmup: bool, _plain: Any = plain, **kwargs: Any) -> Any:
                if warmup or launches.go(name(self)):
                    return _plain(self, *args, grid=grid, warmup=warmup, **kwargs)
                return None

            kind.run = run

        if knobs.runtime.interpret:
            # Choosing a configuration takes a clock on a GPU: the first one serves.
            Autotuner._bench = lambda *_, **__: [1.0, 1.0, 1.0]  # pyright: ignore[reportAttributeAccessIssue]

        item = CompiledKernel.__getitem__

        def getitem(self: Any, grid: Any) -> Callable[..., Any]:
            return launches.around(self.name, item(self, grid))

        CompiledKernel.__getitem__ = getitem

    def _extensions(self) -> None:
        from torch.utils import cpp_extension

        for maker in ("load_inline", "load"):
            plain = getattr(cpp_extension, maker)
            setattr(cpp_extension, maker, lambda *a, _plain=plain, **k: _Extension(_plain(*a, **k), self))

    def cupy(self, cupy: Any) -> None:
        """Put counted kernels in the place of RawKernel and RawModule of a module `cupy`."""
        launches, raw_kernel, raw_module = self, cupy.RawKernel, cupy.RawModule

        class RawKernel:
            """A RawKernel whose launches are counted."""

            def __init__(self, code: str, name: str, *args: Any, **kwargs: Any) -> None:
                self._kernel, self.name = raw_kernel(code, name, *args, **kwargs), name

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return self._kernel(*args, **kwargs) if launches.go(self.name) else None

            def __getattr__(self, key: str) -> Any:
                return getattr(self._kernel, key)

        class RawModule:
            """A RawModule whose functions' launches are counted."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                self._module = raw_module(*args, **kwargs)

            def get_function(self, name: str) -> Any:
                return launches.around(name, self._module.get_function(name))

            def __getattr__(self, key: str) -> Any:
                return getattr(self._module, key)

        cupy.RawKernel, cupy.RawModule = RawKernel, RawModule


class _Extension:
    """A compiled extension whose functions count as kernels."""

    def __init__(self, module: Any, launches: Launches) -> None:
        self._module, self._launches = module, launches

    def __getattr__(self, key: str) -> Any:
        value = getattr(self._module, key)
        return self._launches.around(key, value) if callable(value) else value
