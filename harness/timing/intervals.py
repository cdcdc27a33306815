"""Medians, their intervals, and intervals of ratios of medians. Numbers in, numbers out.

Nothing here assumes a distribution: timings have a hard floor, a long right tail and often two or
three modes, so means and normal theory do not fit them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb, inf

import numpy as np
from numpy.typing import NDArray

Samples = Sequence[float] | NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000  # the standard error of a bootstrap 2.5 % quantile is then about 1/30 of the interval's width


@dataclass(frozen=True)
class Interval:
    """Closed interval [low, high] in the unit of the samples, or a bare ratio."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class Summary:
    """Median, 20th and 80th percentile, and the interval of the median, in the unit of the samples."""

    median: float
    p20: float
    p80: float
    interval: Interval
    count: int


@lru_cache(maxsize=4096)
def _order_ranks(count: int) -> tuple[int, int] | None:
    """Zero-based ranks (low, high) of the order statistics that bracket the median, or None if too few.

    The number of samples below the true median is Binomial(count, 1/2), so the interval between the
    r-th smallest and the r-th largest sample misses it with probability 2 * P(Binomial < r).
    """
    tail, total, rank = 0, 1 << count, 0
    while 2 * (tail + comb(count, rank)) <= (1 - CONFIDENCE) * total:
        tail += comb(count, rank)
        rank += 1
    return (rank - 1, count - rank) if rank else None


def median_interval(samples: Samples) -> Interval:
    """Exact distribution-free interval of the median; unbounded below six samples at 95 %.

    Source: the sign-test interval, e.g. Conover, Practical Nonparametric Statistics, section 3.2.
    """
    ranks = _order_ranks(len(samples))
    if ranks is None:
        return Interval(-inf, inf)
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    return Interval(float(ordered[ranks[0]]), float(ordered[ranks[1]]))


def summarise(samples: Samples) -> Summary:
    """Summary of at least one sample; ValueError when there is none."""
    if not len(samples):
        raise ValueError("samples: expected at least one, got none")
    p20, median, p80 = (float(q) for q in np.quantile(np.asarray(samples, dtype=np.float64), [0.2, 0.5, 0.8]))
    return Summary(median, p20, p80, median_interval(samples), len(samples))


def settled(samples: Samples, width: float) -> bool:
    """True once the interval of the median is no wider than `width` times the median."""
    interval = median_interval(samples)
    return interval.width <= width * float(np.median(samples))


def ratio_of_medians(above: Samples, below: Samples, *, paired: bool, seed: int = 0) -> Interval:
    """Percentile-bootstrap interval of median(above) / median(below).

    paired: element i of both came from the same round, so a resample takes the same rounds from both and
    a drift that hit them alike cancels. Otherwise each side is resampled on its own.
    Raises ValueError for empty samples, and for unequal lengths when paired.
    """
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if not a.size or not b.size:
        raise ValueError("samples: expected at least one on each side, got none")
    if paired and a.size != b.size:
        raise ValueError(f"paired samples: expected equal counts, got {a.size} and {b.size}")
    rng = np.random.default_rng(seed)
    rows = rng.integers(a.size, size=(RESAMPLES, a.size))
    columns = rows if paired else rng.integers(b.size, size=(RESAMPLES, b.size))
    ratios = np.median(a[rows], axis=1) / np.median(b[columns], axis=1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
