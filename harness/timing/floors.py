"""Floors: the least time a card needs for the bytes an operator must move, by datasheet and as measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch

from harness.errors import one_line
from harness.timing.session import Stop, capture, interleave, stopwatch
from runtime.names import importable

CEILING_STOP = Stop(width=0.005, min_rounds=15, max_rounds=60, budget_s=1.0)
LARGE = 1 << 29  # bytes that the write and copy ceilings are measured with: the headline's convolution output


@dataclass(frozen=True)
class Card:
    """Published figures of a card. bandwidth in GB/s, l2_bytes in bytes."""

    name: str
    bandwidth: float | None
    l2_bytes: int
    sms: int
    source: str = ""

    def floor_us(self, size: int) -> float | None:
        """Time in us to move `size` bytes at the published bandwidth."""
        return None if self.bandwidth is None else size / self.bandwidth / 1e3


RTX_4090 = Card("NVIDIA GeForce RTX 4090", 1008.0, 72 << 20, 128, "datasheet")
"""The target."""


def card(properties: Any, bandwidth: float | None) -> Card:
    """Card of torch's device properties; bandwidth in GB/s as NVML derives it, or None."""
    if properties.name == RTX_4090.name:
        return RTX_4090
    source = "memory clock * bus width (NVML)" if bandwidth else "unknown"
    return Card(properties.name, bandwidth, properties.L2_cache_size, properties.multi_processor_count, source)


@dataclass(frozen=True)
class Ceiling:
    """Fastest measured time in us to read, write or copy `size` bytes (a copy's bytes are counted once).

    mode: state of the L2 before each launch. how: the kernel set and the launch constants that won.
    """

    kind: str
    size: int
    us: float
    how: str
    mode: str

    @property
    def gb_per_s(self) -> float:
        moved = 2 * self.size if self.kind == "copy" else self.size
        return moved / self.us / 1e3


SETS = {"Triton": "harness.timing.ceilings_triton", "CUDA": "harness.timing.ceilings_cuda"}
"""Kernel sets that can measure a ceiling, each on its own; of those that work here the faster counts."""


@dataclass
class Ceilings:
    """Measures ceilings on a CUDA device, once per (kind, size, mode).

    prepares: by mode, what harness.timing.session.stopwatch does before a sample. reasons: why a kernel set is not
    used. With neither of them every answer is None.
    """

    device: torch.device
    prepares: Mapping[str, Callable[[], object] | None]
    reasons: dict[str, str] = field(default_factory=dict)
    measured: dict[tuple[str, int, str], Ceiling] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sets: dict[str, Any] = {}
        for name, module in SETS.items():
            try:
                found = import_module(importable(module))
                found.empty(self.device)
                self.sets[name] = found
            except Exception as error:  # whatever a compiler dies of: not installed, no C compiler, a broken one
                self.reasons[name] = one_line(error)

    def read_us(self, size: int, mode: str) -> float | None:
        """Time in us to read `size` bytes, launch included: the floor of an operator that must read them."""
        found = self._get("read" if size else "empty", size, mode)
        return found and found.us

    def large(self) -> list[Ceiling]:
        """Read, write and copy ceilings at 512 MiB moved, and the empty launch, in the first mode."""
        asked = [("read", LARGE), ("write", LARGE), ("copy", LARGE // 2), ("empty", 0)]
        mode = next(iter(self.prepares))
        return [found for kind, size in asked if (found := self._get(kind, size, mode))]

    def _get(self, kind: str, size: int, mode: str) -> Ceiling | None:
        if not self.sets:
            return None
        key = (kind, size, mode)
        if key not in self.measured:
            self.measured[key] = self._measure(kind, size, mode)
        return self.measured[key]

    def _measure(self, kind: str, size: int, mode: str) -> Ceiling:
        # Not zeros: they cost less power, and a card may compress them.
        # Whole blocks: a count that 16 does not divide would cost Triton its 16-byte loads.
        numel = 1024 * max(1, round(size / 4096))
        source = torch.arange(numel, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source) if kind in ("write", "copy") else source
        graphs = {}
        for name, kernels in self.sets.items():
            makers: dict[str, Callable[[Any], torch.Tensor]] = {
                "read": partial(kernels.read, source),
                "write": partial(kernels.write, target, 1.5),
                "copy": partial(kernels.copy, source, target),
                "empty": lambda config, kernels=kernels: kernels.empty(self.device),
            }
            for config in kernels.CONFIGS if kind != "empty" else kernels.CONFIGS[:1]:
                graphs[f"{name} {config}"] = capture(partial(makers[kind], config))
        meters = {name: stopwatch(replay, self.prepares[mode]) for name, (replay, _) in graphs.items()}
        samples = interleave(meters, CEILING_STOP).samples
        medians = {name: sorted(values)[len(values) // 2] for name, values in samples.items()}
        best = min(medians, key=medians.__getitem__)
        return Ceiling(kind, size, medians[best], best, mode)
