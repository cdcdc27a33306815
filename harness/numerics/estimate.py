"""How far may an honest answer be off, where nobody derived a bound? Estimated, by calculating with random rounding.

A model runs in float64: once as it is, which is the truth, and some tens of times with every input and every result
off by a random rounding of the format at hand (rounding.py). From the spread of these runs each element of each output
gets its bound. Where rounding can flip a comparison or an argmax, the elements that depend on it are marked `apart`:
they get no bound and are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.numerics.budget import FORMATS, Array, Comparison, compare_in, refused, smallest_normal
from harness.numerics.rounding import Rounding

Run = Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]
"""The model in float64: takes what is done to each input and parameter first, gives its outputs."""

SAMPLES = 24
WIDE_SAMPLES = 8
WIDE = 16.0
"""Some runs round this much more coarsely: their spread, divided by it, sees kinks (a ReLU near zero) and turned
comparisons that are too far away for a few fine runs."""

SPREADS = 10.0
"""The bound, in root mean squares of the runs. Beside the normal tail of a million elements (5) it leaves room for an
estimate from a few tens of runs and for algorithms that err twice as much as a left-to-right sum."""


@dataclass(frozen=True)
class Output:
    """One output of the model: its truth, the bound on the error, and whether no bound holds there."""

    expected: NDArray[np.float64]
    bound: NDArray[np.float64]
    apart: NDArray[np.bool_]
    dtype: str

    def units(self, got: Array) -> Array:
        """|got - expected| over the bound, element by element; 0 where no bound holds."""
        with np.errstate(all="ignore"):
            units = np.asarray(np.abs(got - self.expected) / self.bound)
        units[~np.isfinite(units)] = np.inf
        units[(got == self.expected) | (np.isnan(got) & np.isnan(self.expected))] = 0
        units[self.apart] = 0
        return units


@dataclass(frozen=True)
class Estimate:
    """Of one call. why: what tells elements apart, in words; unseen: operators whose inside was not seen."""

    outputs: tuple[Output, ...]
    why: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def apart(self) -> float:
        """Share of the elements for which no bound holds."""
        total = sum(o.apart.size for o in self.outputs)
        return sum(int(o.apart.sum()) for o in self.outputs) / total if total else 0.0

    def compare(self, found: Sequence[Tensor]) -> Comparison:
        """An answer beside the truth, in units of the bound; the worst of all outputs."""
        if len(found) != len(self.outputs):
            return refused(f"{len(found)} outputs, expected {len(self.outputs)}")
        each = []
        for number, (actual, output) in enumerate(zip(found, self.outputs, strict=True), 1):
            which = f" of output {number}" if len(found) > 1 else ""
            each.append(compare_in(output.units, actual, output.expected, output.dtype, "the estimated budget", which))
        worst = max(each, key=lambda c: (not c.passed, c.worst), default=None)
        return worst or Comparison(True, 0.0, None, None, None, 0, "nothing to compare: no outputs")


def estimate(run: Run, dtype: str, seed: int, *, device: str = "cpu") -> Estimate:
    """Truth and bounds of one call of a model in format `dtype`.

    seed: of the random rounding. device: of the runs that round; the truth is the CPU's.
    """
    return _Estimation(run, dtype, seed, device).estimate(SAMPLES, WIDE_SAMPLES)


@dataclass
class _Estimation:
    run: Run
    dtype: str
    seed: int
    device: str
    unseen: set[str] = field(default_factory=set)
    script: list[Tensor] = field(default_factory=list)
    recorded: bool = False
    jumped: bool = False

    def once(self, times: float, number: int, *, forced: bool, torch_seed: int = 0) -> list[Tensor]:
        """One run; number: of the noise. forced: with the truth's decisions."""
        first = times == 0.0
        device = "cpu" if first else self.device
        noise = torch.Generator(device).manual_seed(self.seed + number)
        mode = Rounding(self.dtype, times, noise, self.script if self.recorded else None, forced=forced)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with (
                torch.random.fork_rng(devices=[]),
                torch.no_grad(),
                torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            ):
                torch.manual_seed(self.seed + torch_seed)
                with mode:
                    found = self.run(lambda value: mode.rounded(value.to(device)))
        finally:
            torch.set_default_dtype(before)
        if not self.recorded:
            self.script, self.recorded = mode.outcomes, True
        self.unseen |= mode.unseen
        self.jumped |= mode.jumped
        return [(out.double() if out.is_floating_point() else out).detach().cpu().clone() for out in found]

    def estimate(self, samples: int, wide: int) -> Estimate:
        truth = self.once(0.0, 0, forced=False)
        apart = [torch.zeros(out.shape, dtype=torch.bool) for out in truth]
        why = []
        other = self.once(0.0, 0, forced=False, torch_seed=1)
        for mask, a, b in zip(apart, truth, other, strict=True):
            mask |= _differs(a, b).any()
        if any(mask.any() for mask in apart):
            why.append("random: an output depends on torch's random generator, as dropout's does")
        squares = [torch.zeros(out.shape, dtype=torch.float64) for out in truth]
        for number in range(1, samples + 1):
            _add(squares, truth, self.once(1.0, number, forced=True), 1 / samples)
        coarse = [torch.zeros_like(square) for square in squares]
        crossed: list[tuple[list[Tensor], list[Tensor]]] = []
        for number in range(samples + 1, samples + wide + 1):
            self.jumped = False
            forced = self.once(WIDE, number, forced=True)
            _add(coarse, truth, forced, 1 / wide / WIDE**2)
            if self.jumped:
                crossed.append((forced, self.once(WIDE, number, forced=False)))
        spread = [torch.maximum(fine, more).sqrt() for fine, more in zip(squares, coarse, strict=True)]
        jumps = False
        for forced, free in crossed:
            for mask, a, b, size in zip(apart, forced, free, spread, strict=True):
                beyond = _differs(a, b, SPREADS * size)
                jumps |= bool(beyond.any())
                mask |= beyond
        if jumps:
            why.append("discontinuity: rounding turns a comparison, an argmax or the like, and the output jumps")
        outputs = tuple(self._output(*each) for each in zip(truth, spread, apart, strict=True))
        return Estimate(outputs, tuple(why), tuple(sorted(self.unseen)))

    def _output(self, truth: Tensor, spread: Tensor, apart: Tensor) -> Output:
        """Beside the spread: the store of the output, and what flushing a subnormal number costs."""
        if not truth.is_floating_point():
            dtype = str(truth.dtype).removeprefix("torch.")
            return Output(truth.double().numpy(), np.zeros(truth.shape), apart.numpy(), dtype)
        expected = truth.numpy()
        error = SPREADS * spread.numpy() + smallest_normal(self.dtype)
        with np.errstate(all="ignore"):
            bound = error + FORMATS[self.dtype].half_ulp(np.abs(expected) + error)
        return Output(expected, bound, apart.numpy(), self.dtype)


def _add(squares: list[Tensor], truth: list[Tensor], found: list[Tensor], weight: float) -> None:
    for square, a, b in zip(squares, truth, found, strict=True):
        if a.shape == b.shape:
            square += weight * (a.double() - b.double()).square().nan_to_num(nan=0.0)


def _differs(a: Tensor, b: Tensor, more: Any = 0.0) -> Tensor:
    """Where two runs differ by more than `more`; everywhere if their shapes do."""
    if a.shape != b.shape:
        return torch.ones(a.shape, dtype=torch.bool)
    same = (a == b) | (a.isnan() & b.isnan())
    return ~same & ~((a.double() - b.double()).abs() <= more)
