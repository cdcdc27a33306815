"""What an RTX 4090 would need for what was measured on another card: a model of memory, and nothing else.

    floor(card) = start + bytes / (share * bandwidth of the card)
    projected   = measured - floor(the record's card) + floor(RTX 4090)

start and share are fitted to the floors that the record measured; on the 4090 the share is what such cards are seen to
reach in public (SEEN), and never more. What an entry takes beyond its floor (the kernel's start and end) knows nothing
of bandwidth and stays as it was. docs/rtx4090.md says what is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from harness.errors import UsageError
from harness.records.record import Run
from harness.timing.floors import RTX_4090

ENTRIES = ("triton", "cupy", "baseline")


@dataclass(frozen=True)
class Seen:
    """A rate in GB/s that somebody measured on a 4090 and published. where: "DRAM" or "L2"."""

    where: str
    rate: float
    what: str
    source: str


_CLPEAK = "https://github.com/krrishnarraj/clpeak/issues/106"
SEEN = (
    Seen("DRAM", 866.65, "clpeak, float, at a power limit of 248 W", _CLPEAK),
    Seen("DRAM", 921.32, "clpeak, float16 (16 floats an access), the same run", _CLPEAK),
    Seen("DRAM", 921.85, "a CUDA microbenchmark, float4", "https://github.com/xytpai/nvbench"),
    Seen(
        "L2",
        3868.37,
        "elementwise PyTorch on 4 Mi floats, which are read and written",
        "https://github.com/mli/transformers-benchmarks/issues/4",
    ),
)
"""What the projection rests on: of DRAM the least and the largest rate, of the L2 the largest."""


def seen(where: str) -> tuple[float, float]:
    """The least and the largest of these rates in GB/s."""
    rates = [found.rate for found in SEEN if found.where == where]
    return min(rates), max(rates)


BASELINE_US = 600.0
"""The baseline on a 4090, headline's convolution output: 512 MiB at 88.71 % of 1008 GB/s, by Nsight Compute."""
BASELINE_BYTES = 512 << 20

MISSES = 0.5
"""Relative distance of a measured time from its floor beyond which memory is not what limits it: no projection then."""


@dataclass(frozen=True)
class Memory:
    """Reading costs start_us + bytes / (share * the datasheet's bandwidth)."""

    start_us: float
    share: float

    def floor_us(self, size: int, bandwidth: float) -> float:
        """Time in us to read `size` bytes on a card of `bandwidth` GB/s."""
        return self.start_us + size / (self.share * bandwidth) / 1e3


@dataclass
class Line:
    """One entry of one case, times in us.

    measured: cold median on the record's card. floor: the model's for its bytes there. low, high: on the 4090, cold,
    with the largest and the least share of DRAM bandwidth that is seen there. warm: with the input in the L2, None if
    it does not fit. All three are None where the model misses what was measured.
    """

    case: str
    entry: str
    measured: float
    floor: float
    low: float | None = None
    high: float | None = None
    warm: float | None = None

    @property
    def error(self) -> float:
        """Relative error of the floor as a model of the measured time."""
        return self.floor / self.measured - 1


def joined(records: Sequence[Run]) -> Run:
    """One record with the cases of all, the last of each name. UsageError if they are of different GPUs."""
    gpus = dict.fromkeys(record.environment.gpu for record in records)
    if len(gpus) > 1:
        raise UsageError(f"--record: expected records of one GPU, got {', '.join(map(str, gpus))}")
    cases = {case.name: case for record in records for case in record.cases}
    return replace(records[-1], cases=list(cases.values()))


def bandwidth_of(record: Run) -> float:
    """GB/s of the record's card by its datasheet. UsageError if there is nothing to project from."""
    if record.environment.gpu is None:
        raise UsageError("the record was made without a GPU: there is no time in it")
    if record.environment.gpu == RTX_4090.name:
        raise UsageError(f"the record was measured on {RTX_4090.name}: there is nothing to project")
    if record.card is None or record.card.bandwidth is None:
        raise UsageError(f"the record does not say the bandwidth of its card, {record.environment.gpu}")
    return record.card.bandwidth


def fit(record: Run, bandwidth: float) -> Memory:
    """Least squares over the record's cold floors, each weighed by its time. UsageError without two sizes."""
    floors = {case.compulsory_bytes: case.floor_us.get("cold") for case in record.cases}
    points = [(size, us, 1 / us**2) for size, us in floors.items() if us]
    if len(points) < 2:
        raise UsageError("the record holds fewer than two cold floors: run compare on cases of several sizes")
    total = sum(w for _, _, w in points)
    x = sum(w * size for size, _, w in points) / total
    y = sum(w * us for _, us, w in points) / total
    slope = sum(w * (size - x) * (us - y) for size, us, w in points)
    slope /= sum(w * (size - x) ** 2 for size, _, w in points)
    if slope <= 0:
        raise UsageError("the record's cold floors do not grow with their bytes: no rate can be had from them")
    return Memory(max(0.0, y - slope * x), 1 / slope / 1e3 / bandwidth)


def project(record: Run, memory: Memory, bandwidth: float) -> list[Line]:
    """A line per timed entry of ENTRIES."""
    target = RTX_4090.bandwidth
    assert target
    least, most = (there(memory, rate) for rate in seen("DRAM"))
    _, l2 = seen("L2")
    lines = []
    for case in record.cases:
        for name in ENTRIES:
            entry = case.result(name)
            summary = entry and entry.summary("cold")
            if not summary:
                continue
            size, measured = case.compulsory_bytes, summary.median
            line = Line(case.name, name, measured, memory.floor_us(size, bandwidth))
            if abs(line.error) <= MISSES:
                beyond = measured - line.floor
                line.low = beyond + most.floor_us(size, target)
                line.high = beyond + least.floor_us(size, target)
                if size <= RTX_4090.l2_bytes:
                    line.warm = beyond + memory.start_us + size / l2 / 1e3
            lines.append(line)
    return lines


def there(memory: Memory, rate: float) -> Memory:
    """The memory of a 4090 that reaches `rate` GB/s of DRAM; or the record's share of it, if that is less."""
    assert RTX_4090.bandwidth
    return replace(memory, share=min(memory.share, rate / RTX_4090.bandwidth))


def baseline_us(memory: Memory) -> float:
    """The model for the one time that is known of a 4090, which is no input of it."""
    assert RTX_4090.bandwidth
    return there(memory, seen("DRAM")[1]).floor_us(BASELINE_BYTES, RTX_4090.bandwidth)


def errors(lines: Sequence[Line]) -> tuple[float, float]:
    """(median, largest) relative error of the model on what was measured."""
    found = [abs(line.error) for line in lines]
    return median(found), max(found)
