"""The intervals cover what they claim to cover, on distributions whose median is known."""

from __future__ import annotations

from math import inf, log

import numpy as np
import pytest

from harness.timing.intervals import median_interval, ratio_of_medians, settled, summarise

TRIALS = 400  # the binomial error of a 95 % coverage is then 1.1 %; the bounds below are 3 of those away


def test_interval_of_median_by_hand() -> None:
    # Ten samples: 2 * (1 + 10) / 1024 = 2.1 % lies outside ranks 2 to 9; one rank further in, 10.9 %.
    interval = median_interval([10, 1, 9, 2, 8, 3, 7, 4, 6, 5])
    assert (interval.low, interval.high) == (2, 9)


@pytest.mark.parametrize("count, bounded", [(1, False), (5, False), (6, True)])
def test_too_few_samples_give_no_interval(count: int, bounded: bool) -> None:
    # 2 * 0.5^5 = 6.25 % > 5 %: five samples cannot bracket the median at 95 %, six can.
    interval = median_interval([1.0] * count)
    assert (interval.high < inf) is bounded


@pytest.mark.parametrize("count", [10, 31, 100])
@pytest.mark.parametrize("name", ["lognormal", "exponential", "two modes"])
def test_interval_of_median_covers(name: str, count: int) -> None:
    rng = np.random.default_rng(1)
    draw, truth = {
        "lognormal": (lambda: rng.lognormal(3.0, 0.2, count), float(np.exp(3.0))),
        "exponential": (lambda: 10 + rng.exponential(1.0, count), 10 + log(2)),
        # 70 % near 10, 30 % near 12: the median is the 5/7 quantile of the lower mode, uniform on [10, 10.1].
        "two modes": (
            lambda: np.where(rng.random(count) < 0.7, 10 + rng.random(count) / 10, 12 + rng.random(count)),
            10 + 0.5 / 0.7 / 10,
        ),
    }[name]
    hits = sum((i := median_interval(draw())).low <= truth <= i.high for _ in range(TRIALS))
    assert hits / TRIALS >= 0.95 - 0.033


@pytest.mark.parametrize("paired", [True, False])
def test_ratio_interval_covers(paired: bool) -> None:
    rng = np.random.default_rng(2)
    count, truth, hits = 60, 1.25, 0
    for trial in range(TRIALS):
        drift = rng.lognormal(0, 0.05, count) if paired else np.ones(count)
        above = truth * 20 * drift * rng.lognormal(0, 0.02, count)
        below = 20 * drift * rng.lognormal(0, 0.02, count)
        interval = ratio_of_medians(above, below, paired=paired, seed=trial)
        hits += interval.low <= truth <= interval.high
    # The percentile bootstrap of a median is known to run a little off its nominal level at this size.
    assert 0.90 <= hits / TRIALS <= 0.995


def test_pairing_cancels_a_common_drift() -> None:
    rng = np.random.default_rng(3)
    drift = np.linspace(1.0, 1.5, 80)
    above, below = 30 * drift * rng.lognormal(0, 0.002, 80), 20 * drift * rng.lognormal(0, 0.002, 80)
    together = ratio_of_medians(above, below, paired=True)
    apart = ratio_of_medians(above, below, paired=False)
    assert together.low <= 1.5 <= together.high
    assert together.width < apart.width / 5


def test_ratio_is_reproducible() -> None:
    above, below = np.arange(1.0, 40.0), np.arange(2.0, 41.0)
    assert ratio_of_medians(above, below, paired=True) == ratio_of_medians(above, below, paired=True)


def test_settled_needs_a_narrow_interval() -> None:
    steady = [100.0 + 0.1 * (i % 3) for i in range(12)]
    assert settled(steady, 0.01)
    assert not settled([100.0 + 5 * (i % 3) for i in range(12)], 0.01)
    assert not settled(steady[:5], 0.01)


def test_summary() -> None:
    summary = summarise(list(range(1, 102)))
    assert (summary.median, summary.p20, summary.p80, summary.count) == (51, 21, 81, 101)


def test_empty_and_unpaired_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="samples"):
        summarise([])
    with pytest.raises(ValueError, match="samples"):
        ratio_of_medians([], [1.0], paired=False)
    with pytest.raises(ValueError, match="equal counts, got 2 and 1"):
        ratio_of_medians([1.0, 2.0], [1.0], paired=True)
