"""Inf, NaN and the largest numbers go where the literal operator takes them, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch

from harness.cases.inputs import make_inputs
from harness.numerics.asked import ask, judge
from harness.numerics.example import Example, Skip
from harness.numerics.guards import surrounded
from harness.numerics.truth import truth
from reference.problem import Chain, Tail


def strange_x(example: Example) -> None:
    """Inf and NaN anywhere in x, or only where the padding crops, go where the scatter takes them."""
    inputs = make_inputs(example.case, example.device)
    rng, problem = Random(example.seed), example.case.problem
    x = inputs.x.clone()
    rows, columns = range(problem.h), range(problem.w)
    if isinstance(problem, Chain) and rng.random() < 0.5:
        rows, columns = (_unseen(problem, axis) for axis in (0, 1))
    places = [(h, w) for h in rows for w in range(problem.w)] + [(h, w) for h in range(problem.h) for w in columns]
    if not places or 0 in inputs.x.stride() or not len(x):
        raise Skip
    for _ in range(rng.randint(1, 3)):
        value = rng.choice((torch.inf, -torch.inf, torch.nan))
        x[rng.randrange(problem.n), rng.randrange(x.shape[1]), *rng.choice(places)] = value
    changed = replace(inputs, x=surrounded(x, inputs.x))
    judge(example, ask(example, changed), changed.x, truth(problem, changed))


def _unseen(problem: Chain, axis: int) -> range | list[int]:
    """Rows or columns that no tap sees."""
    bands = problem.bands(axis)
    size = (problem.h, problem.w)[axis]
    return [i for i in range(size) if not any(lo <= i < hi for lo, hi in bands)]


def strange_weight(example: Example) -> None:
    """NaN and Inf in the weight: at taps that never land they reach nothing, elsewhere their outputs."""
    inputs, problem = make_inputs(example.case, example.device), example.case.problem
    if isinstance(problem, Tail) or inputs.weight is None:
        raise Skip
    rng, weight = Random(example.seed), inputs.weight.clone()
    live = [
        (kh, kw)
        for kh, (top, bottom) in enumerate(problem.bands(0))
        for kw, (left, right) in enumerate(problem.bands(1))
        if top < bottom and left < right
    ]
    for kh in range(problem.kernel[0]):
        for kw in range(problem.kernel[1]):
            if (kh, kw) not in live:
                weight[:, :, kh, kw] = rng.choice((torch.inf, -torch.inf, torch.nan))
    if live and rng.random() < 0.5:
        # One Inf only, and x above 0: a sum that meets Inf is Inf, in whatever order.
        value = rng.choice((torch.inf, -torch.inf, torch.nan))
        weight[rng.randrange(len(weight)), rng.randrange(weight.shape[1]), *rng.choice(live)] = value
    x = surrounded(inputs.x.abs() + torch.finfo(inputs.x.dtype).eps, inputs.x)
    changed = replace(inputs, x=x, weight=weight)
    # What flushing may cost is bounded by all weights, also those that land nowhere.
    floor = truth(problem, replace(changed, weight=weight.nan_to_num(0, 0, 0))).floor
    judge(example, ask(example, changed), x, truth(problem, changed), floor=floor)


def folds(example: Example) -> None:
    """Weights of taps with one band that overflow, or cancel, when they are added; and Inf in x that meets them."""
    inputs, problem = make_inputs(example.case, example.device), example.case.problem
    if isinstance(problem, Tail) or inputs.weight is None or 0 in inputs.x.stride() or not len(inputs.x):
        raise Skip
    if example.case.dtype == "float64":
        raise Skip  # the truth is float64 as well, and would overflow first
    rng, weight = Random(example.seed), inputs.weight.clone()
    taps = [_shared(problem, axis, rng) for axis in (0, 1)]
    if not all(taps) or len(taps[0]) * len(taps[1]) < 2:
        raise Skip
    ci, co = rng.randrange(weight.shape[0]), rng.randrange(weight.shape[1])
    largest = torch.finfo(weight.dtype).max
    for kh in taps[0]:
        for kw in taps[1]:
            weight[ci, co, kh, kw] = rng.choice((largest, largest, -largest))
    # Small enough for the sum of all their products to be representable.
    x = inputs.x * 2.0**-20
    if rng.random() < 0.5:
        x[rng.randrange(problem.n), ci, rng.randrange(problem.h), rng.randrange(problem.w)] = torch.inf
    changed = replace(inputs, x=surrounded(x, inputs.x), weight=weight)
    judge(example, ask(example, changed), changed.x, truth(problem, changed))


def _shared(problem: Chain, axis: int, rng: Random) -> range:
    """The kernel indices of one band, drawn among those that hold anything; an empty range if there is none."""
    bands, size = problem.distinct(axis), (problem.h, problem.w)[axis]
    live = [b for b, (lo, hi) in enumerate(bands.at(size)) if lo < hi]
    if not live:
        return range(0)
    b = max(live, key=lambda b: (bands.taps[b + 1] - bands.taps[b], rng.random()))
    return range(bands.taps[b], bands.taps[b + 1])
