"""Sampling on fake clocks and a fake device; on a GPU also that a planted delay is found."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from harness.records.differences import compare_samples
from harness.timing.session import (
    FLUSHES,
    LONGEST_RUNWAY,
    MOST_REPEATS,
    RUNWAY,
    Stop,
    Stopwatch,
    capture,
    flusher,
    host_cost,
    interleave,
    stopwatch,
)


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steady(clock: FakeClock, log: list[str], name: str, us: float = 100.0, jitter: float = 0.001):
    """Meter that logs its name, lets 10 ms pass and repeats a narrow pattern of values."""
    pattern = itertools.cycle([jitter, -jitter])

    def meter() -> float:
        log.append(name)
        clock.now += 0.01
        return us * (1 + next(pattern))

    return meter


def test_every_round_visits_every_row_once_in_changing_order() -> None:
    clock, log = FakeClock(), []
    names = ["a", "b", "c", "d"]
    stop = Stop(min_rounds=20, max_rounds=20, budget_s=1e9)
    rounds = interleave({n: steady(clock, log, n) for n in names}, stop, clock=clock)
    visits = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert len(visits) == 20 and all(sorted(v) == names for v in visits)
    assert len({tuple(v) for v in visits}) > 5  # of 24 orders, 20 draws give far more than 5
    assert all(len(s) == 20 for s in rounds.samples.values())


def test_order_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[str]:
        log: list[str] = []
        clock = FakeClock()
        interleave({n: steady(clock, log, n) for n in "abc"}, Stop(max_rounds=15), clock=clock, seed=seed)
        return log

    assert order(1) == order(1) != order(2)


def test_stops_when_all_are_settled_and_not_before_the_fewest_rounds() -> None:
    clock = FakeClock()
    rounds = interleave({"a": steady(clock, [], "a")}, Stop(min_rounds=13, budget_s=1e9), clock=clock)
    assert rounds.ended == "settled" and len(rounds.samples["a"]) == 13


def test_one_noisy_row_keeps_all_going_until_time_is_up() -> None:
    clock = FakeClock()
    meters = {"a": steady(clock, [], "a"), "noisy": steady(clock, [], "noisy", jitter=0.5)}
    rounds = interleave(meters, Stop(min_rounds=5, max_rounds=10**6, budget_s=2.0), clock=clock)
    assert rounds.ended == "time"
    assert len(rounds.samples["a"]) == len(rounds.samples["noisy"]) == 100  # 2 s / 20 ms a round


def test_stops_at_the_most_rounds() -> None:
    clock = FakeClock()
    noisy = {"noisy": steady(clock, [], "noisy", jitter=0.5)}
    rounds = interleave(noisy, Stop(min_rounds=5, max_rounds=40, budget_s=1e9), clock=clock)
    assert rounds.ended == "rounds" and len(rounds.samples["noisy"]) == 40


def test_marks_are_kept_with_their_rounds() -> None:
    clock, count = FakeClock(), itertools.count()
    rounds = interleave(
        {"a": steady(clock, [], "a")},
        Stop(min_rounds=8, max_rounds=8),
        clock=clock,
        mark=lambda: ["power cap"] if next(count) == 3 else [],
    )
    assert rounds.marks == [[], [], [], ["power cap"], [], [], [], []]
    assert len(rounds.samples["a"]) == 8


def test_no_rows_no_rounds() -> None:
    assert interleave({}, Stop()).samples == {}


class FakeCuda:
    """A device of one stream, and a host that needs `host_us` to enqueue a piece of work."""

    def __init__(self, *, host_us: float, work_us: float) -> None:
        self.host, self.device, self.host_us, self.work_us = 0.0, 0.0, host_us, work_us
        self.runways: list[int] = []

    def _sleep(self, cycles: int) -> None:
        self.runways.append(cycles)
        self.enqueue(cycles / 2000)  # 2 GHz

    def enqueue(self, us: float) -> None:
        self.host += self.host_us
        self.device = max(self.device, self.host) + us

    def launch(self) -> None:
        self.enqueue(self.work_us)

    def Event(self, *, enable_timing: bool) -> Any:
        cuda = self

        class Event:
            at = 0.0

            def record(self) -> None:
                cuda.enqueue(0.0)
                self.at = cuda.device

            def query(self) -> bool:
                return cuda.host >= self.at

            def synchronize(self) -> None:
                cuda.host = max(cuda.host, self.at)

            def elapsed_time(self, other: Any) -> float:
                return (other.at - self.at) / 1000

        return Event()


def test_a_sample_is_device_time_alone() -> None:
    cuda = FakeCuda(host_us=5.0, work_us=20.0)
    watch = Stopwatch(cuda.launch, prepare=lambda: cuda.enqueue(40.0), cuda=cuda)
    assert watch() == pytest.approx(20.0) and not watch.host_bound


def test_repeats_are_averaged() -> None:
    cuda = FakeCuda(host_us=1.0, work_us=3.0)
    assert Stopwatch(cuda.launch, prepare=cuda.launch, repeats=4, cuda=cuda)() == pytest.approx(3.0)


def test_a_slow_host_gets_a_longer_runway_and_the_spoilt_sample_is_thrown_away() -> None:
    cuda = FakeCuda(host_us=60.0, work_us=10.0)
    watch = Stopwatch(cuda.launch, prepare=lambda: None, cuda=cuda)
    assert watch() == pytest.approx(10.0) and not watch.host_bound
    assert cuda.runways[:2] == [RUNWAY, 2 * RUNWAY]


def test_a_call_that_no_runway_hides_is_marked() -> None:
    cuda = FakeCuda(host_us=1.0, work_us=10.0)

    def blocking() -> None:
        cuda.launch()
        cuda.host = max(cuda.host, cuda.device)

    watch = Stopwatch(blocking, prepare=lambda: None, cuda=cuda)
    watch()
    assert watch.host_bound and max(cuda.runways) == LONGEST_RUNWAY


@pytest.mark.parametrize("work_us, repeats", [(1000.0, 1), (20.0, 3), (0.5, MOST_REPEATS)])
def test_warm_samples_are_long_enough(work_us: float, repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(host_us=0.1, work_us=work_us)
    monkeypatch.setattr(Stopwatch.__init__, "__kwdefaults__", {"repeats": 1, "cuda": cuda})
    assert stopwatch(cuda.launch, None).repeats == repeats


def test_host_cost_counts_calls_and_not_the_wait() -> None:
    clock = FakeClock()

    def call() -> None:
        clock.now += 7e-6

    def wait() -> None:
        clock.now += 1.0

    costs = host_cost(call, 10.0, synchronize=wait, clock=clock, chunks=3)
    assert costs == pytest.approx([7.0] * 3)


@pytest.mark.parametrize("device_us, calls", [(1.0, 100), (5000.0, 10), (1e6, 5)])
def test_host_cost_never_fills_the_launch_queue(device_us: float, calls: int) -> None:
    count = itertools.count()
    host_cost(lambda: next(count), device_us, synchronize=lambda: None, chunks=2)
    assert next(count) == 2 * calls


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="measures on a GPU, and there is none")


@needs_gpu
@pytest.mark.parametrize("mode", FLUSHES)
def test_graph_and_flush_on_a_gpu(mode: Any) -> None:
    device = torch.device("cuda")
    x = torch.rand(1 << 22, device=device)
    replay, out = capture(lambda: x.view(1024, -1).sum(dim=1))
    out.fill_(torch.nan)
    watch = stopwatch(replay, flusher(mode, device))
    rounds = interleave({"sum": watch}, Stop(max_rounds=20, budget_s=5.0))
    assert torch.equal(out, x.view(1024, -1).sum(dim=1))
    # 16 MiB at 10 TB/s takes 1.6 us, faster than any card; 1 ms is slower than any card.
    assert all(1.6 < us < 1000 for us in rounds.samples["sum"]) and not watch.host_bound


@needs_gpu
def test_a_capture_that_fails_leaves_the_device_usable() -> None:
    x = torch.rand(1000, device="cuda")

    def waits() -> torch.Tensor:
        return torch.full_like(x, x.sum().item())  # waits for the device, which a capture forbids

    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        capture(waits)
    assert torch.cuda.current_stream() == before
    replay, out = capture(lambda: x + 1)
    out.zero_()
    replay()
    assert torch.equal(out, x + 1)


@needs_gpu
def test_a_planted_delay_of_a_tenth_is_called_slower() -> None:
    # A sleep counts clock cycles, so the base is a sleep too and a tenth stays a tenth whatever the clock is.
    base, _ = capture(lambda: _sleep(200_000))
    again, _ = capture(lambda: _sleep(200_000))
    delayed, _ = capture(lambda: _sleep(220_000))
    meters = {
        name: stopwatch(replay, flusher("read", torch.device("cuda")))
        for name, replay in (("base", base), ("again", again), ("delayed", delayed))
    }
    samples = interleave(meters, Stop(max_rounds=100, budget_s=5.0)).samples
    assert compare_samples(samples["base"], samples["delayed"], 0.03)[0] == "slower"
    assert compare_samples(samples["base"], samples["again"], 0.03)[0] in ("same", "ambiguous")


def _sleep(cycles: int) -> torch.Tensor:
    torch.cuda._sleep(cycles)
    return torch.empty(0, device="cuda")
