"""Stand between a backend and its launches: to change their arguments, or to run other code in their place.

Both kernel sets give the same kernels the same arguments in the same order, so what is written here
serves either; the names are read off kernels.cu.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest import mock

import torch

from convgap import fast
from cupy_impl.signatures import signatures
from reference.problem import Chain
from runtime.names import importable
from runtime.prepared import Launch, Prepared

PREPARE = (
    "prepare_multiply_gap", "prepare_band_sums", "prepare_contract", "prepare_band_sums_contract", "prepare_expand",
    "prepare_band_fill", "prepare_weight_grad",
)  # fmt: skip
"""What runtime.call asks of a kernel set (its Protocol there)."""


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


Run = Callable[..., None]
"""run(launch, device, stream, *arguments) in place of launch(device, stream, *arguments)."""


@dataclass(frozen=True)
class _Interposed:
    inner: Launch
    run: Run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def handle(self, device: torch.device) -> tuple[int, int, int]:
        raise RuntimeError("a launch with something in between has no handle")

    def __call__(self, device: torch.device, stream: int, *arguments: Any) -> None:
        self.run(self.inner, device, stream, *arguments)


@contextmanager
def interposed(run: Run, problem: Callable[[Chain], Chain] = lambda p: p) -> Iterator[None]:
    """Every launch goes through `run`.

    `problem` maps the call's Chain to the one that its kernels are prepared for, such as one that crops less.

    Plain torch has no launches and is not touched. Not for several threads at once.
    """

    def through(prepare: Callable[..., Any]) -> Callable[..., Any]:
        def prepared(first: Any, *arguments: Any) -> Prepared | None:
            made = prepare(problem(first) if isinstance(first, Chain) else first, *arguments)
            return made and replace(made, launch=_Interposed(made.launch, run))

        return prepared

    with ExitStack() as stack:
        # The native path launches what it has planned: nothing could stand between.
        stack.enter_context(fast.off())
        for module in (sys.modules.get(importable(f"{name}_impl.prepare")) for name in ("triton", "cupy")):
            for name in PREPARE if module else ():
                stack.enter_context(mock.patch.object(module, name, through(getattr(module, name))))
        yield


def with_arguments(change: Callable[[str, dict[str, Any]], None]) -> Run:
    """Run the launch with arguments and sizes by name, changed in place by change(kernel, arguments)."""

    def run(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        named = dict(zip(_names(launch), (*arguments, *launch.sizes), strict=True))
        change(launch.kernel, named)
        values, count = tuple(named.values()), len(arguments)
        changed(launch, sizes=values[count:])(device, stream, *values[:count])

    return run


def _names(launch: Any) -> tuple[str, ...]:
    """Names of a launch's arguments and sizes: the two sets have sizes of their own."""
    special = getattr(launch, "special", None)
    return tuple(name for name, _ in special.types) if special else parameters(launch.kernel)


def changed(launch: Any, **attributes: Any) -> Any:
    """The same launch with other attributes. Raises ValueError for sizes where the code does not read them."""
    if "sizes" in attributes and getattr(launch, "fixed", False):
        raise ValueError(f"launch: expected one whose sizes are arguments, {launch.kernel} is fixed to its own")
    other = copy(launch)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other
