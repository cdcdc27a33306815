"""Is an answer as right as its arithmetic allows? docs/numerics.md derives the bound used here.

Errors are in units of the budget: up to 1 passes. Everything is evaluated in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]

# Roundings on the way to an output that are no additions: the product of x and weight, the multiplier
# itself, the product with it, the reciprocal of Hout * Wout (or the division) and the product with that.
OTHER_ROUNDINGS = 5


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: p significant bits, exponents emin to emax."""

    p: int
    emin: int
    emax: int

    @property
    def unit_roundoff(self) -> float:
        return 2.0**-self.p

    @property
    def overflow(self) -> float:
        """Smallest magnitude that rounds to infinity."""
        return (2 - 2.0**-self.p) * 2.0**self.emax if self.emax < 1023 else np.inf

    def half_ulp(self, value: Array) -> Array:
        """Largest error of rounding a number of this magnitude to the format."""
        _, exponent = np.frexp(value)  # value = m * 2**exponent with m in [1/2, 1)
        exponent = np.maximum(np.where(value > 0, exponent - 1, self.emin), self.emin)
        return np.ldexp(1.0, exponent - self.p)


FORMATS = {
    "float64": Format(53, -1022, 1023),
    "float32": Format(24, -126, 127),
    "float16": Format(11, -14, 15),
    "bfloat16": Format(8, -126, 127),
}


def accumulator(dtype: str) -> str:
    """The dtype that sums are kept in for tensors of `dtype`."""
    return "float64" if dtype == "float64" else "float32"


def smallest_normal(dtype: str) -> float:
    """Of the accumulator: below it a flush to zero may strike."""
    return 2.0 ** FORMATS[accumulator(dtype)].emin


def gamma(n: int, unit_roundoff: float) -> float:
    """Relative error that n successive roundings can build up to: n*u / (1 - n*u)."""
    nu = n * unit_roundoff
    if nu >= 1:
        raise ValueError(f"n: {n} roundings of {unit_roundoff:g} leave no correct digit to speak of")
    return nu / (1 - nu)


def evaluation_error(
    magnitude: ArrayLike,
    dtype: str,
    depth: int,
    *,
    stores: int = 1,
    floor: ArrayLike = 0.0,
    reference_depth: int = 0,
) -> Array:
    """Bound on the error before the last rounding.

    magnitude: the operator on absolute values. depth: longest chain of additions. stores: roundings
    to `dtype` on the way to an output, of which the last is not counted here. floor: absolute error
    that flushing subnormals may add. reference_depth: longest chain of additions in the float64 truth.
    """
    fmt = FORMATS[dtype]
    accumulated = gamma(depth + OTHER_ROUNDINGS, FORMATS[accumulator(dtype)].unit_roundoff)
    stored = gamma(stores - 1, fmt.unit_roundoff)
    reference = gamma(reference_depth + OTHER_ROUNDINGS, FORMATS["float64"].unit_roundoff)
    relative = (1 + accumulated) * (1 + stored) - 1 + reference
    stored_floor = (stores - 1) * 2.0 ** (fmt.emin - fmt.p)
    return relative * np.asarray(magnitude, dtype=np.float64) + np.asarray(floor, np.float64) + stored_floor


def budget(expected: ArrayLike, magnitude: ArrayLike, dtype: str, depth: int, **details: ArrayLike | int) -> Array:
    """Largest |answer - expected| that correct arithmetic can give; `details` as for evaluation_error."""
    error = evaluation_error(magnitude, dtype, depth, **details)  # pyright: ignore[reportArgumentType]
    return error + FORMATS[dtype].half_ulp(np.abs(expected) + error)


@dataclass(frozen=True)
class Comparison:
    """Outcome for one tensor. `worst` is in units of the budget; inf where a number that is not finite is wrong."""

    passed: bool
    worst: float
    worst_index: tuple[int, ...] | None
    actual: float | None
    expected: float | None
    n_bad: int
    message: str


def compare(
    actual: Tensor,
    expected: ArrayLike,
    magnitude: ArrayLike,
    dtype: str,
    depth: int,
    **details: ArrayLike | int,
) -> Comparison:
    """Judge `actual` against float64 truth; it must have the truth's shape and be of `dtype`.

    NaN passes only where the truth is NaN, Inf only where the truth is that Inf or rounds to it.
    An empty tensor passes, and the message says that there was nothing to compare.
    """
    true, size = (np.asarray(value, dtype=np.float64) for value in (expected, magnitude))
    return compare_in(lambda got: _units(got, true, size, dtype, depth, **details), actual, true, dtype, "the budget")


def compare_in(
    units_of: Callable[[Array], Array],
    actual: Tensor,
    expected: Array,
    dtype: str,
    bound: str,
    which: str = "",
) -> Comparison:
    """`compare` for any bound: `units_of` gives the error of each element of an answer in units of its bound.

    bound: what the message calls it. which: what the message says of the tensor, where there are several.
    """
    found = str(actual.dtype).removeprefix("torch.")
    if tuple(actual.shape) != expected.shape:
        return refused(f"shape {tuple(actual.shape)}{which}, expected {expected.shape}")
    if found != dtype:
        return refused(f"dtype {found}{which}, expected {dtype}")
    if expected.size == 0:
        return Comparison(True, 0.0, None, None, None, 0, "nothing to compare: no elements")
    got = actual.detach().cpu().double().numpy()
    units = units_of(got)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(units), units.shape))
    worst, n_bad = float(units[index]), int((units > 1).sum())
    value, right = float(got[index]), float(expected[index])
    message = f"{worst:.3g} of {bound} at {list(index)}{which}: {value:.9g}, expected {right:.9g}"
    if n_bad:
        message += f"; {n_bad} of {units.size} outside"
    return Comparison(n_bad == 0, worst, index, value, right, n_bad, message)


def refused(reason: str) -> Comparison:
    """The comparison of an answer that has not even the shape or dtype, or is missing."""
    return Comparison(False, np.inf, None, None, None, 1, reason)


def matrix(
    results: Mapping[str, Tensor],
    expected: ArrayLike,
    magnitude: ArrayLike,
    dtype: str,
    plans: Mapping[str, Mapping[str, ArrayLike | int]],
) -> dict[tuple[str, str], float]:
    """For every pair of results their largest difference in units of the sum of both budgets.

    plans: for each result its depth and other details of `budget`. Equal infinities, and NaN beside
    NaN, differ by 0; any other meeting with a non-finite number, or of two shapes, by inf.
    """
    worst = {}
    for a, b in combinations(results, 2):
        left, right = (results[name].detach().cpu().double().numpy() for name in (a, b))
        if left.shape != right.shape:
            worst[a, b] = np.inf
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            both = sum(budget(expected, magnitude, dtype, **plans[name]) for name in (a, b))  # pyright: ignore
            difference = np.abs(left - right)
            units = np.where(np.isfinite(difference), np.divide(difference, both), np.inf)
        units[(left == right) | (np.isnan(left) & np.isnan(right))] = 0
        worst[a, b] = float(units.max(initial=0))
    return worst


def _units(got: Array, expected: Array, magnitude: Array, dtype: str, depth: int, **details: ArrayLike | int) -> Array:
    """|got - expected| over the budget, element by element; 0 or inf where either is not finite."""
    with np.errstate(all="ignore"):
        error = evaluation_error(magnitude, dtype, depth, **details)  # pyright: ignore[reportArgumentType]
        units = np.abs(got - expected) / (error + FORMATS[dtype].half_ulp(np.abs(expected) + error))
        overflow = FORMATS[dtype].overflow
        must_overflow = np.abs(expected) - error >= overflow
        may_overflow = np.abs(expected) + error >= overflow
    # A comparison with NaN is False, so a NaN among the units would pass, and an infinite bound would pass everything.
    # Therefore whatever is not finite fails here; the two lines behind it excuse what is right.
    bounded = np.isfinite(error)
    units[~bounded | ~np.isfinite(units) | ~np.isfinite(got) | ~np.isfinite(expected) | must_overflow] = np.inf
    units[bounded & may_overflow & np.isinf(got) & (np.sign(got) == np.sign(expected))] = 0
    units[(got == expected) | (np.isnan(got) & np.isnan(expected))] = 0
    return units
