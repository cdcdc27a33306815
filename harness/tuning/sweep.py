"""Which launch constants make a difference to a call: each alone, set to each of its values.

What is compared are launches, not constants: a value that leads to the launches that there are already is not tried,
and of two values that lead to the same launches one is. So few settings are left, and none is timed for nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from convgap.probe import kernel_set
from harness.machine.compiled import launches
from reference.problem import Problem
from runtime.names import importable
from runtime.prepared import Prepared, Unlaunchable

BACKENDS = ("triton", "cupy")

Values = Mapping[str, int]
"""Constants of one kernel set, by name; those that are not there have the value that is shipped."""


@dataclass(frozen=True)
class Call:
    """What fixes the launches of a call, beside constants. dtype is torch's; alignment is an address modulo 16; tensor
    says whether the multiplier is one."""

    problem: Problem
    stride: tuple[int, ...]
    dtype: Any
    alignment: int
    tensor: bool


def tunable(backend: str) -> Mapping[str, tuple[int, ...]]:
    """The constants of a kernel set that a plan may set, each with its values."""
    return import_module(importable(f"{backend}_impl.tunable")).TUNABLE


def shipped(backend: str) -> dict[str, int]:
    """The values that these constants have now."""
    constants = import_module(importable(f"{backend}_impl.constants"))
    return {name: getattr(constants, name) for name in tunable(backend)}


@contextmanager
def constants_set(backend: str, values: Values) -> Iterator[None]:
    """The kernel set prepares calls by these values while the block runs, and afterwards by its own again.

    Launches that were prepared keep what they have; other threads must not prepare any meanwhile.
    """
    constants = import_module(importable(f"{backend}_impl.constants"))
    before = {name: getattr(constants, name) for name in values}
    try:
        _set(backend, constants, values)
        yield
    finally:
        _set(backend, constants, before)


def _set(backend: str, constants: Any, values: Values) -> None:
    for name, value in values.items():
        setattr(constants, name, value)
    for function in vars(kernel_set(backend)).values():
        if clear := getattr(function, "cache_clear", None):
            clear()


def prepared(backend: str, call: Call) -> tuple[Prepared, ...]:
    """What a call launches, in order. Raises Unlaunchable for sizes beyond a grid."""
    made = launches(kernel_set(backend), call.problem, call.stride, call.dtype, call.tensor, alignment=call.alignment)
    return tuple(launch for launch, main, _ in made if main)


def fingerprint(made: tuple[Prepared, ...]) -> Hashable:
    """Equal for launches of the same code with the same grid and arguments."""
    return tuple(
        (
            p.launch.kind,
            p.launch.grid,
            p.launch.sizes,
            getattr(p.launch, "threads", None),
            getattr(p.launch, "shared", None),
            p.partials,
        )
        for p in made
    )


def candidates(backend: str, call: Call) -> Iterator[dict[str, int]]:
    """Each value of each constant that changes the call's launches, and changes them as no other before it."""
    seen = {fingerprint(prepared(backend, call))}
    for name, values in tunable(backend).items():
        for value in values:
            found = {name: value}
            with constants_set(backend, found):
                try:
                    made = fingerprint(prepared(backend, call))
                except Unlaunchable:
                    continue
            if made not in seen:
                seen.add(made)
                yield found
