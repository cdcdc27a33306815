"""How plain torch works a call out: chosen by sizes and device, never by values, and said by `convgap.explain`."""

from __future__ import annotations

from functools import lru_cache

import torch

from reference.problem import Chain
from torch_impl.folding import MOST_ELEMENTS, live

LITERAL_WORK = 110_000
"""Products that torch's own convolution makes on a CPU while the bands make one of their calls."""

STORE_WORK = 64
"""Products that it makes while it stores one number: for every tap of every input element and output channel, and for
every output."""

CALLS, CALLS_OF_SUMS = 4, 12
"""Calls that the bands take more than torch's own convolution, beside one for each pair of bands; and those that large
planes take in addition, which are no product with a matrix of zeros and ones."""

FEW_SAMPLES = 2
"""Samples up to which torch's own convolution is faster on a GPU: it has two launches for each."""

FEW_STORED = 200_000
"""Numbers that it may store there for each pair of bands. This and the above were found by timing."""


@lru_cache(maxsize=4096)
def form(problem: Chain, device: torch.device) -> tuple[str, str]:
    """How `chain` works a call out, and why: "literal" or a form of `contract`, and a sentence."""
    n, (rows, columns) = problem.n, problem.kernel
    products = n * problem.c_out * problem.h * problem.w * rows * columns
    stored = products + n * problem.c_out * problem.out_area
    if device.type == "cpu":
        work = products * problem.c_in + STORE_WORK * stored
        calls = CALLS if problem.h * problem.w <= MOST_ELEMENTS else CALLS + CALLS_OF_SUMS
        small = work <= LITERAL_WORK * (len(problem.distinct(0)) * len(problem.distinct(1)) + calls)
    else:
        few = stored <= FEW_STORED * len(live(problem, 0)) * len(live(problem, 1))
        small = device.type == "cuda" and n <= FEW_SAMPLES and few
    if small and n > 0 and problem.groups == 1:
        return "literal", "torch's own convolution, which has fewer calls: the work itself is small"
    return form_of_product(problem, device)


@lru_cache(maxsize=4096)
def form_of_product(problem: Chain, device: torch.device) -> tuple[str, str]:
    """How `contract` works a call out, and why: "folded", "one band" or "taps", and a sentence."""
    if device.type == "cpu":
        return "folded", "weights of taps with one band are added before the product"
    bands = len(live(problem, 0)) * len(live(problem, 1))
    if bands <= 1:
        return "one band", "all taps that see x see the same: the weight is multiplied as it is stored"
    return (
        "taps",
        "every tap is multiplied: whether a sum is finite cannot be asked without waiting for the device",
    )
