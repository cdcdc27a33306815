"""Floors: the least time a card needs for the bytes an operator must move, by datasheet and as measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.timing.session import Stop, capture, interleave, stopwatch

CEILING_STOP = Stop(width=0.005, min_rounds=15, max_rounds=60, budget_s=1.0)
LARGE = 1 << 29  # bytes that the write and copy ceilings are measured with: the headline's convolution output


@dataclass(frozen=True)
class Card:
    """Published figures of a card. bandwidth in GB/s, l2_bytes in bytes, tflops in TFLOP/s."""

    name: str
    bandwidth: float | None
    l2_bytes: int
    sms: int
    tflops_fp32: float | None = None
    source: str = ""

    def floor_us(self, size: int) -> float | None:
        """Time in us to move `size` bytes at the published bandwidth."""
        return None if self.bandwidth is None else size / self.bandwidth / 1e3


# The target. 128 lanes per SM * 2 flops * 128 SMs * 2.52 GHz boost = 82.6 TFLOP/s float32.
RTX_4090 = Card("NVIDIA GeForce RTX 4090", 1008.0, 72 << 20, 128, 82.6, "datasheet")


def card(properties: Any, bandwidth: float | None) -> Card:
    """Card of torch's device properties; bandwidth in GB/s as NVML derives it, or None."""
    if properties.name == RTX_4090.name:
        return RTX_4090
    source = "memory clock * bus width (NVML)" if bandwidth else "unknown"
    return Card(
        properties.name, bandwidth, properties.L2_cache_size, properties.multi_processor_count, None, source
    )


@dataclass(frozen=True)
class Ceiling:
    """Fastest measured time in us to read, write or copy `size` bytes (a copy's bytes are counted once)."""

    kind: str
    size: int
    us: float
    how: str

    @property
    def gb_per_s(self) -> float:
        moved = 2 * self.size if self.kind == "copy" else self.size
        return moved / self.us / 1e3


@dataclass
class Ceilings:
    """Measures ceilings on a CUDA device, once per (kind, size, mode).

    prepares: by mode, what harness.timing.session.stopwatch does before a sample. Needs Triton; without it `reason`
    says so and every answer is None.
    """

    device: torch.device
    prepares: Mapping[str, Callable[[], object] | None]
    reason: str = ""
    measured: dict[tuple[str, int, str], Ceiling] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            from harness.timing import ceilings  # noqa: F401  (Triton may be missing)
        except ImportError as error:
            self.reason = f"ceilings need Triton: {error}"

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
        if self.reason:
            return None
        key = (kind, size, mode)
        if key not in self.measured:
            self.measured[key] = self._measure(kind, size, mode)
        return self.measured[key]

    def _measure(self, kind: str, size: int, mode: str) -> Ceiling:
        from harness.timing import ceilings

        # Not zeros: they cost less power, and a card may compress them.
        # Whole blocks: a count that 16 does not divide would cost Triton its 16-byte loads.
        numel = 1024 * max(1, round(size / 4096))
        source = torch.arange(numel, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source) if kind in ("write", "copy") else source
        makers: dict[str, Callable[[ceilings.Config], torch.Tensor]] = {
            "read": lambda config: ceilings.read(source, config),
            "write": lambda config: ceilings.write(target, 1.5, config),
            "copy": lambda config: ceilings.copy(source, target, config),
            "empty": lambda config: ceilings.empty(self.device),
        }
        configs = ceilings.CONFIGS if kind != "empty" else ceilings.CONFIGS[:1]
        graphs = {str(config): capture(lambda c=config: makers[kind](c)) for config in configs}
        meters = {name: stopwatch(replay, self.prepares[mode]) for name, (replay, _) in graphs.items()}
        samples = interleave(meters, CEILING_STOP).samples
        medians = {name: sorted(values)[len(values) // 2] for name, values in samples.items()}
        best = min(medians, key=medians.__getitem__)
        return Ceiling(kind, size, medians[best], best)
