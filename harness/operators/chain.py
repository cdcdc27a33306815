"""The chain: transposed convolution, then the mean over height and width of multiplier times it."""

from __future__ import annotations

import re
from math import prod, sqrt
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import convgap
from harness.cases.case import Case, random_chain
from harness.cases.inputs import Draw, Inputs
from harness.entries import gradients
from harness.numerics.truth import Truth, arrays, largest, numpy_of
from harness.operators.pooled import Pooled, cases_of, gradient_truths
from reference import eager, oracle
from reference.problem import Chain

_PAIRS = {"k": "kernel", "s": "stride", "p": "padding", "op": "output_padding", "d": "dilation"}
_USUAL = {"k": (1, 1), "s": (1, 1), "p": (0, 0), "op": (0, 0), "d": (1, 1)}
_OPTION = re.compile(r"(k|s|p|op|d)(\d+)(?:x(\d+))?")


class ChainOperator(Pooled):
    """conv_transpose2d_multiply_gap.

    Its shapes: chain:N,CIN,COUT,H,W[,kK][,sS][,pP][,opO][,dD][,gG][,nobias]. K, S, P, O, D are one number for both
    axes or rows x columns, as in k3x5. Left out they are what torch takes: kernel 1, stride 1, padding 0,
    output_padding 0, dilation 1, groups 1, and a bias.
    """

    name = "chain"
    sizes = Chain
    function = "conv_transpose2d_multiply_gap"
    cases = cases_of(Chain)
    usage = "chain:N,CIN,COUT,H,W,kK,sS,pP,opO,dD,gG,nobias as in chain:16,64,128,128,128,k3,s2,p1,op1"
    gradient_entries = gradients.ENTRIES

    def parse(self, text: str, words: list[str]) -> Chain:
        """Five sizes, then what is not torch's default."""
        (n, c_in, c_out, h, w), rest = self.leading_sizes(text, words, 5)
        options: dict[str, Any] = {"kernel": (1, 1)}
        seen = set()
        for word in rest:
            if word == "nobias":
                key, value = "bias", False
            elif match := re.fullmatch(r"g(\d+)", word):
                key, value = "groups", int(match[1])
            elif match := _OPTION.fullmatch(word):
                key, value = _PAIRS[match[1]], (int(match[2]), int(match[3] or match[2]))
            else:
                raise ValueError(f"shape {text!r}: {word!r} is no part of {self.usage}")
            if key in seen:
                raise ValueError(f"shape {text!r}: {key} is given twice")
            seen.add(key)
            options[key] = value
        return Chain(n, c_in, c_out, h, w, **options)

    def check(self, problem: Chain) -> None:
        """The operator itself is asked, with tensors that have sizes and no memory."""
        if problem.groups < 1 or problem.c_out % problem.groups:
            raise ValueError(f"groups: expected a divisor of {problem.c_out} outputs, got {problem.groups}")
        x, weight = (torch.empty(shape, device="meta") for shape in (problem.in_shape, problem.weight_shape))
        bias = torch.empty(problem.c_out, device="meta") if problem.bias else None
        convgap.conv_transpose2d_multiply_gap(x, weight, bias, backend="torch", **_sizes(problem))

    def spell(self, problem: Chain) -> str:
        """What equals torch's default is left out."""
        words = [f"{problem.n},{problem.c_in},{problem.c_out},{problem.h},{problem.w}"]
        for letter, name in _PAIRS.items():
            rows, columns = getattr(problem, name)
            if (rows, columns) != _USUAL[letter]:
                words.append(f"{letter}{rows}" if rows == columns else f"{letter}{rows}x{columns}")
        if problem.groups != 1:
            words.append(f"g{problem.groups}")
        if not problem.bias:
            words.append("nobias")
        return ",".join(words)

    def inputs(self, problem: Chain, draw: Draw) -> Inputs:
        """Weight and bias as nn.ConvTranspose2d initialises them; a multiplier within [-2, 2) where it is a tensor."""
        bound = 1 / sqrt(prod(problem.weight_shape[1:]))
        weight = draw.uniform(*problem.weight_shape, bound=bound)
        bias = draw.uniform(problem.c_out, bound=bound) if problem.bias else None
        multiplier = draw.case.multiplier
        if multiplier is None:
            multiplier = draw.uniform(problem.c_out, 1, 1, bound=2)
        return Inputs(draw.x(problem.in_shape), weight, bias, multiplier, _sizes(problem))

    def oracle_depth(self, problem: Chain) -> int:
        """Of the scatter with the bias, then of a mean."""
        return oracle.depth(problem.c_in // problem.groups * eager.taps(problem) + 1, problem.out_area)

    def floor(self, problem: Chain, inputs: Any) -> Any:
        """What flushing one input loses is multiplied by every tap's weight.

        `share`: the outputs that one tap can reach, over all that are averaged.
        """
        share = min(problem.h * problem.w, problem.out_area) / problem.out_area
        weight = (np.abs(inputs.weight.astype(np.float64)) + 1).sum(axis=(2, 3))
        by_output = weight.reshape(problem.groups, -1, weight.shape[1]).sum(axis=1)
        return largest(inputs.x) * share * by_output.reshape(1, problem.c_out, 1, 1)

    def gradients(self, problem: Chain, inputs: Inputs, grad: Tensor) -> dict[str, Truth]:
        """Of x, weight, bias and multiplier; of the bias where there is one."""
        given, grad_ = arrays(inputs), numpy_of(grad)
        values, magnitudes = (
            oracle.conv_transpose2d_multiply_gap_grad(
                given.x, given.weight, given.bias, given.multiplier, grad_, absolute=absolute, **inputs.sizes
            )
            for absolute in (False, True)
        )
        terms = problem.c_out * problem.kernel[0] * problem.kernel[1] + problem.n * problem.c_in
        return gradient_truths(("x", "weight", "bias", "multiplier"), values, magnitudes, terms, inputs, grad)

    def shapes(self, problem: Chain) -> list[tuple[int, ...]]:
        """The weight too."""
        return [*super().shapes(problem), problem.weight_shape]

    def compulsory_bytes(self, case: Case, inputs: Inputs) -> int:
        """Backward, with the band sums at hand: the gradient of x and, two times its size, the weight and its
        gradient."""
        if case.backward and inputs.weight is not None:
            return (inputs.x.numel() + 2 * inputs.weight.numel()) * inputs.x.element_size()
        return super().compulsory_bytes(case, inputs)

    def depth(self, problem: Chain) -> int:
        """Of the plane and of the products that meet in one of its elements, or, bands first, of the input's plane and
        of the products of its sums with the weights."""
        channels = problem.c_in // problem.groups
        literal = problem.out_area + channels * eager.taps(problem)
        return max(literal, problem.h * problem.w + channels * problem.kernel[0] * problem.kernel[1])

    def draw(self, rng: Random) -> Chain:
        """Every parameter drawn."""
        return random_chain(rng)


def _sizes(problem: Chain) -> dict[str, Any]:
    names = ("stride", "padding", "output_padding", "groups", "dilation")
    return {name: getattr(problem, name) for name in names}


OPERATOR = ChainOperator()
