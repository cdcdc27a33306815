"""Device time, host cost and extra memory of one call. Knows nothing of right or wrong.

A sample is made of one stream-ordered sequence, so that neither the host nor an idle gap is inside it:

    sleep (the runway) -> prepare (flush the L2, or one untimed call) -> event -> call -> event

While the device sleeps the host enqueues the rest. If the first event has already passed when the last
one is enqueued, the host was too slow and part of the sample would be host time: the sample is thrown
away and taken again on a longer runway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from harness.timing.intervals import settled

Flush = Literal["read", "write", "none"]
FLUSHES: tuple[Flush, ...] = ("read", "write", "none")

RUNWAY = 100_000  # cycles of the first runway: about 50 us, several graph launches long
LONGEST_RUNWAY = 64 * RUNWAY  # about 3 ms: a call that is still not enqueued by then waits for the device itself
WARM_SAMPLE_US = 50.0  # a warm sample repeats the call to last this long: 100 times the event's resolution
MOST_REPEATS = 16
SHORTEST_US = 1e-3  # far below an event's resolution: what launches nothing must not take no time at all


@dataclass(frozen=True)
class Stop:
    """When a measurement is good enough: interval of every median within `width` of it, or time is up."""

    width: float = 0.01
    min_rounds: int = 30
    max_rounds: int = 300
    budget_s: float = 5.0


@dataclass
class Rounds:
    """Samples of every row, in us; index i of every list, and of `marks`, comes from round i."""

    samples: dict[str, list[float]]
    marks: list[list[str]] = field(default_factory=list)
    ended: str = ""


def interleave(
    meters: Mapping[str, Callable[[], float]],
    stop: Stop,
    *,
    clock: Callable[[], float] = time.perf_counter,
    mark: Callable[[], list[str]] = list,
    seed: int = 0,
) -> Rounds:
    """Take one sample of every row per round, in a new order each round, until all are settled.

    meters: row name -> function that takes one sample and returns us. mark: read once per round, what
    disturbed it (reasons for throttling). clock: seconds. Whatever the stop rule, whole rounds only.
    """
    rounds = Rounds({name: [] for name in meters})
    if not meters:
        return rounds
    rng = np.random.default_rng(seed)
    names = list(meters)
    start = clock()
    while True:
        taken = {names[i]: meters[names[i]]() for i in rng.permutation(len(names))}
        for name, sample in taken.items():
            rounds.samples[name].append(sample)
        rounds.marks.append(mark())
        done = len(rounds.marks)
        if done >= stop.min_rounds and all(settled(s, stop.width) for s in rounds.samples.values()):
            rounds.ended = "settled"
        elif done >= stop.max_rounds:
            rounds.ended = "rounds"
        elif clock() - start >= stop.budget_s:
            rounds.ended = "time"
        if rounds.ended:
            return rounds


class Stopwatch:
    """Takes samples, in us, of one launch on the current stream.

    prepare: enqueued before the timed part. repeats: launches per sample. cuda: torch.cuda or its like.
    `host_bound` turns True if the longest runway did not hide the host.
    """

    def __init__(
        self,
        launch: Callable[[], object],
        *,
        prepare: Callable[[], object],
        repeats: int = 1,
        cuda: ModuleType | Any = torch.cuda,
    ) -> None:
        self.launch, self.prepare, self.repeats, self.cuda = launch, prepare, repeats, cuda
        self.start, self.stop = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        self.runway = RUNWAY
        self.host_bound = False

    def __call__(self) -> float:
        while not self._enqueue():
            if self.runway >= LONGEST_RUNWAY:
                self.host_bound = True
                break
            self.runway *= 2
        return max(1000 * self.start.elapsed_time(self.stop), SHORTEST_US) / self.repeats

    def _enqueue(self) -> bool:
        """Run one sample to its end; True if the host stayed ahead of the device."""
        self.cuda._sleep(self.runway)  # private, but the only sleep torch has; its own tests rest on it
        self.prepare()
        self.start.record()
        for _ in range(self.repeats):
            self.launch()
        self.stop.record()
        ahead = not self.start.query()
        self.stop.synchronize()
        return ahead


def stopwatch(launch: Callable[[], object], prepare: Callable[[], object] | None) -> Stopwatch:
    """Stopwatch for one mode: `prepare` before every launch, or None for a warm L2.

    Warm means as the launch before left it: each sample has an untimed launch first, and then as many timed
    ones as make it long enough.
    """
    if prepare is not None:
        return Stopwatch(launch, prepare=prepare)
    watch = Stopwatch(launch, prepare=launch)
    watch.repeats = max(1, min(MOST_REPEATS, ceil(WARM_SAMPLE_US / max(watch(), 1e-3))))
    return watch


def flusher(mode: Flush, device: torch.device) -> Callable[[], object]:
    """Function that evicts the L2 in stream order by going over a buffer of twice its size.

    "read" leaves clean lines. "write" leaves dirty ones, whose write-back the next kernel pays for; it is
    kept to show that effect. "none" does nothing.
    """
    if mode == "none":
        return lambda: None
    rows = 1024  # enough rows for a reduction to fill any current card
    columns = ceil(2 * torch.cuda.get_device_properties(device).L2_cache_size / 4 / rows)
    buffer = torch.arange(rows * columns, dtype=torch.float32, device=device).view(rows, columns)
    if mode == "write":
        return lambda: buffer.fill_(1.0)
    sums = torch.empty(rows, device=device)
    return lambda: torch.sum(buffer, dim=1, out=sums)


def capture(call: Callable[[], Any], *, warmups: int = 3) -> tuple[Callable[[], None], Any]:
    """CUDA graph of one call, as (replay, what the call returned: tensors that every replay writes).

    The warm-ups run on the side stream that is then captured, so that workspaces, lazily loaded modules
    and what a call keeps per stream exist before the capture. Raises whatever the call raises when it
    cannot be captured.
    """
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(warmups):
            call()
    current.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side):
            out = call()
    finally:
        torch.cuda.set_stream(current)  # a capture that fails leaves its own stream behind as the current one
    return graph.replay, out


def host_cost(
    call: Callable[[], object],
    device_us: float,
    *,
    synchronize: Callable[[], object] = torch.cuda.synchronize,
    clock: Callable[[], float] = time.perf_counter,
    chunks: int = 7,
) -> list[float]:
    """Host time per call in us, one value per chunk of calls issued without waiting for the device.

    device_us: device time of one call; the chunk is kept so short that the launch queue, about a thousand
    deep, never fills and makes the host wait.
    """
    calls = max(5, min(100, int(50_000 / max(device_us, 1.0))))
    costs = []
    for _ in range(chunks):
        synchronize()
        start = clock()
        for _ in range(calls):
            call()
        costs.append(1e6 * (clock() - start) / calls)
    synchronize()
    return costs


def extra_memory(call: Callable[[], object], *, cuda: ModuleType | Any = torch.cuda) -> int:
    """Bytes that torch's allocator holds at the peak of one call beyond what it held before.

    The output counts. Memory from another allocator (CuPy's pool) does not show.
    """
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    out = call()
    cuda.synchronize()
    peak = cuda.max_memory_allocated() - before
    del out
    return peak
