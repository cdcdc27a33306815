"""Stand between a backend and its launches: to change their arguments, or to run other code in their place.

Both kernel sets give the same kernels the same arguments in the same order, so what is written here
serves either; the names are read off kernels.cu.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any
from unittest import mock

import torch

from cupy_impl.signatures import signatures
from reference.problem import Chain
from runtime.names import importable

PREPARE = ("prepare_tail", "prepare_chain", "prepare_backward")
"""What runtime.execute asks of a kernel set (its Protocol there)."""


@cache
def _signatures() -> Mapping[str, tuple[str, ...]]:
    from cupy_impl.launch import kernel_source

    return {kernel.name: kernel.names for kernel in signatures(kernel_source())}


def kernels() -> tuple[str, ...]:
    """Names of all kernels."""
    return tuple(_signatures())


def parameters(kernel: str) -> tuple[str, ...]:
    """Names of a kernel's run-time parameters, in order."""
    return _signatures()[kernel]


def kernel_name(launch: Any) -> str:
    """Name of the kernel behind a prepared launch of either kernel set."""
    kernel = launch.special.kernel
    return kernel if isinstance(kernel, str) else kernel.__name__


Run = Callable[..., None]
"""run(launch, device, stream, *arguments) in place of launch(device, stream, *arguments)."""


@dataclass(frozen=True)
class _Interposed:
    inner: Any
    run: Run

    @property
    def grid(self) -> tuple[int, int]:
        return self.inner.grid

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None:
        self.run(self.inner, device, stream, *arguments)


@contextmanager
def interposed(run: Run, problem: Callable[[Chain], Chain] = lambda p: p) -> Iterator[None]:
    """Every launch goes through `run`; what fixes a kernel's code comes from `problem` of the problem.

    Plain torch has no launches and is not touched. Not for several threads at once.
    """

    def through(prepare: Callable[..., Any]) -> Callable[..., Any]:
        def prepared(first: Any, *arguments: Any) -> Any:
            call = prepare(problem(first) if isinstance(first, Chain) else first, *arguments)
            values = {f.name: getattr(call, f.name) for f in fields(call)}
            launches = {name: v for name, v in values.items() if hasattr(v, "special")}
            return replace(call, **{name: _Interposed(v, run) for name, v in launches.items()})

        return prepared

    with ExitStack() as stack:
        for module in (sys.modules.get(importable(f"{name}_impl.launch")) for name in ("triton", "cupy")):
            for name in PREPARE if module else ():
                stack.enter_context(mock.patch.object(module, name, through(getattr(module, name))))
        yield


def with_arguments(change: Callable[[str, dict[str, Any]], None]) -> Run:
    """Run the launch with arguments by name, changed in place by change(kernel, arguments)."""

    def run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        name = kernel_name(launch)
        named = dict(zip(parameters(name), arguments, strict=True))
        change(name, named)
        launch(device, stream, *named.values())

    return run


@cache
def prepared_anew(kind: Callable[..., Any], special: Any, grid: tuple[int, int]) -> Any:
    """A launch like those of the kernel sets, kept for the next call: it compiles at the first."""
    return kind(special, grid)
