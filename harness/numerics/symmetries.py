"""Calls whose answers follow from one another: in another order, doubled, added up, by another strategy, unbatched."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from harness.cases.inputs import make_inputs
from harness.numerics.asked import ask, depth_of_call, inputs_of, judge, must
from harness.numerics.budget import budget
from harness.numerics.depth import depth as depth_of
from harness.numerics.examine import same_bits
from harness.numerics.example import Example, Skip
from harness.numerics.guards import surrounded
from harness.numerics.truth import truth
from reference import eager
from reference.problem import Tail


def channels_permuted(example: Example) -> None:
    """Of the input (the answer stays) and of the output, both within their group."""
    inputs, expected = inputs_of(example)
    rng, problem = Random(example.seed), example.case.problem

    def order(groups: int, channels: int) -> list[int]:
        each = channels // groups
        return [g * each + c for g in range(groups) for c in rng.sample(range(each), each)]

    if inputs.x.stride(1) == 0:
        raise Skip
    if isinstance(problem, Tail):
        out = order(1, problem.c)
        changed = replace(inputs, x=surrounded(inputs.x[:, out], inputs.x))
    else:
        assert inputs.weight is not None
        each = problem.c_out // problem.groups
        within = rng.sample(range(each), each)
        out = [g * each + c for g in range(problem.groups) for c in within]
        into = order(problem.groups, problem.c_in)
        changed = replace(
            inputs,
            x=surrounded(inputs.x[:, into], inputs.x),
            weight=inputs.weight[into][:, within],
            bias=None if inputs.bias is None else inputs.bias[out],
        )
    if isinstance(inputs.multiplier, Tensor):
        changed = replace(changed, multiplier=inputs.multiplier[out])
    answer = ask(example, changed)
    back = torch.empty_like(answer)
    back[:, out] = answer
    judge(example, back, changed.x, expected)


def doubled(example: Example) -> None:
    """Twice the weight and bias, the multiplier, or x: exactly twice the answer (rounded anew in halves)."""
    inputs, expected = inputs_of(example)
    what = ["multiplier"]
    what += ["x"] if inputs.bias is None else []
    what += ["weight"] if inputs.weight is not None else []
    name = Random(example.seed).choice(what)
    if name == "x":
        changed = replace(inputs, x=surrounded(inputs.x * 2, inputs.x))
    elif name == "multiplier":
        changed = replace(inputs, multiplier=inputs.multiplier * 2)
    else:
        assert inputs.weight is not None
        bias = None if inputs.bias is None else inputs.bias * 2
        changed = replace(inputs, weight=inputs.weight * 2, bias=bias)
    answer = ask(example, changed)
    twice = replace(expected, expected=2 * expected.expected, magnitude=2 * expected.magnitude)
    judge(example, answer, changed.x, replace(twice, floor=2 * expected.floor))
    if answer.dtype.itemsize > 2:
        must(same_bits(answer, 2 * ask(example, inputs)), f"twice the {name} is not twice the answer")


def additive(example: Example) -> None:
    """f(a + b) = f(a) + f(b) in x and in the weight, without bias; small integers, so that a + b is exact."""
    inputs = make_inputs(example.case, example.device)
    generator = torch.Generator().manual_seed(example.seed)

    def integers(like: Tensor) -> Tensor:
        drawn = torch.randint(-8, 9, like.shape, generator=generator)
        return surrounded(drawn.to(like.device, like.dtype), like)

    if inputs.bias is not None:
        inputs = replace(inputs, bias=torch.zeros_like(inputs.bias))
    name = "weight" if inputs.weight is not None and example.seed % 2 else "x"
    like = getattr(inputs, name)
    a, b = integers(like), integers(like)
    total, bounds = 0.0, 0.0
    for sign, value in ((1, a), (1, b), (-1, surrounded(a + b, like))):
        each = replace(inputs, **{name: value})
        expected = truth(example.case.problem, each)
        total = total + sign * ask(example, each).double().cpu().numpy()
        plan = expected.plan(depth_of_call(example, each.x))
        bounds = bounds + budget(expected.expected, expected.magnitude, example.case.dtype, **plan)
    must(bool((abs(total) <= bounds).all()), f"not additive in {name}: off by {abs(total).max(initial=0):.3g}")


def strategies(example: Example) -> None:
    """The framework's convolution and the fused tail: the same answer, to its own deeper budget."""
    problem = example.case.problem
    if isinstance(problem, Tail):
        raise Skip
    inputs, expected = inputs_of(example)
    with eager.ieee_float32():
        answer = ask(example, inputs, strategy="tail")
    pooled = depth_of(example.backend, Tail(*problem.conv_shape), answer.dtype)
    convolution = problem.c_in // problem.groups * eager.taps(problem)
    judge(example, answer, inputs.x, expected, depth=convolution + pooled, stores=eager.stores(problem) - 1)


def unbatched(example: Example) -> None:
    """[C, H, W] is one sample of [1, C, H, W]."""
    inputs = make_inputs(example.case, example.device)
    if not len(inputs.x):
        raise Skip
    first = replace(inputs, x=surrounded(inputs.x[:1], inputs.x))
    alone = ask(example, replace(first, x=first.x[0]))
    must(same_bits(alone, ask(example, first)[0]), "[C, H, W] has other bits than [1, C, H, W]")
