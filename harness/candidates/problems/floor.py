"""What a call cannot do without: bytes of inputs, parameters and outputs, and the arithmetic that torch can count."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from harness.candidates.inside.calls import Operations
from harness.candidates.problems.file import ProblemFile, outputs

PARTS = {"embedding", "index", "index_select", "gather", "slice", "select", "split", "split_with_sizes", "narrow",
         "masked_select", "take", "topk", "as_strided", "constant_pad_nd"}  # fmt: skip
"""Operators after which nobody need have read all of a tensor."""


@dataclass(frozen=True)
class Floor:
    """bytes: each input, parameter and output once; only outputs if the problem takes parts of tensors (not `whole`).

    flops: of products and convolutions; 0 where torch counts none.
    """

    bytes: int
    flops: int
    whole: bool

    def words(self) -> str:
        """For a page."""
        arithmetic = f", {self.flops:.3g} operations of products and convolutions" if self.flops else ""
        of = "inputs, parameters and outputs" if self.whole else "outputs (of the inputs, parts may do)"
        return f"{self.bytes} bytes of {of}{arithmetic}"


def floor(problem: ProblemFile, seed: int) -> Floor:
    """Of one call."""
    inputs, model = problem.inputs(seed), problem.model(seed)
    counter = FlopCounterMode(display=False)
    called = Operations()
    with torch.random.fork_rng(devices=[]), counter, called:
        found = outputs(problem, copy.deepcopy(model), inputs)
    whole = not any(name.split(".")[1] in PARTS for name in called.counts)
    read = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)] + [*model.parameters()]
    tensors = [*(read if whole else []), *found]
    # A view of what is passed already, such as an output that is its input, counts once.
    each = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in tensors}
    return Floor(sum(each.values()), int(counter.get_total_flops()), whole)
