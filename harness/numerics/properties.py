"""What must hold for every valid call, as checks of one example, each of which raises Miss. campaign.py draws these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import convgap
from harness.cases.inputs import Inputs, make_inputs
from harness.numerics.budget import budget, compare
from harness.numerics.depth import depth as depth_of
from harness.numerics.examine import BATCH_INVARIANT, examine, same_bits
from harness.numerics.example import FINITE_VALUES, TAME_VALUES, Example, Miss, Skip
from harness.numerics.guards import surrounded
from harness.numerics.truth import Truth, truth, truth_gradients
from reference import eager
from reference.problem import Chain, Tail
from runtime import call as calls
from torch_impl import forward


def check(example: Example) -> bool:
    """Check one example; False if its property says nothing about it. Raises Miss."""
    try:
        PROPERTIES[example.prop].check(example)
    except Skip:
        return False
    except Exception as error:
        raise Miss(f"{example}\n    {type(error).__name__}: {error}") from error
    return True


def _answer(example: Example, inputs: Inputs, **options: Any) -> Tensor:
    return inputs.call(convgap, backend=example.backend, **options)


def _depth(example: Example, x: Tensor) -> int:
    return depth_of(example.backend, example.case.problem, x.dtype, x.stride(), x.data_ptr())


def _must(condition: bool, message: str) -> None:
    if not condition:
        raise Miss(message)


def _compare(example: Example, answer: Tensor, x: Tensor, expected: Truth, **details: Any) -> None:
    plan = expected.plan(_depth(example, x)) | details
    found = compare(answer, expected.expected, expected.magnitude, example.case.dtype, **plan)
    _must(found.passed, found.message)


def _inputs(example: Example) -> tuple[Inputs, Truth]:
    inputs = make_inputs(example.case, example.device)
    return inputs, truth(example.case.problem, inputs)


def _right(example: Example) -> None:
    inputs, expected = _inputs(example)
    plan = expected.plan(_depth(example, inputs.x))
    verdict = examine(
        lambda i: _answer(example, i), inputs, expected, example.case.dtype, plan,
        batch_invariant=example.backend in BATCH_INVARIANT,
    )  # fmt: skip
    _must(verdict.passed, verdict.reason)


def _samples_permuted(example: Example) -> None:
    inputs, expected = _inputs(example)
    order = Random(example.seed).sample(range(len(inputs.x)), len(inputs.x))
    permuted = replace(inputs, x=surrounded(inputs.x[order], inputs.x))
    answer = _answer(example, permuted)
    if example.backend in BATCH_INVARIANT:
        _must(
            same_bits(_answer(example, inputs)[order], answer), f"samples in the order {order} get other bits"
        )
    back = torch.empty_like(answer)
    back[order] = answer
    _compare(example, back, permuted.x, expected)


def _channels_permuted(example: Example) -> None:
    """Of the input (the answer stays) and of the output, both within their group."""
    inputs, expected = _inputs(example)
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
    answer = _answer(example, changed)
    back = torch.empty_like(answer)
    back[:, out] = answer
    _compare(example, back, changed.x, expected)


def _doubled(example: Example) -> None:
    """Twice the weight and bias, the multiplier, or x: exactly twice the answer (rounded anew in halves)."""
    inputs, expected = _inputs(example)
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
    answer = _answer(example, changed)
    twice = replace(expected, expected=2 * expected.expected, magnitude=2 * expected.magnitude)
    _compare(example, answer, changed.x, replace(twice, floor=2 * expected.floor))
    if answer.dtype.itemsize > 2:
        _must(same_bits(answer, 2 * _answer(example, inputs)), f"twice the {name} is not twice the answer")


def _additive(example: Example) -> None:
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
        total = total + sign * _answer(example, each).double().cpu().numpy()
        plan = expected.plan(_depth(example, each.x))
        bounds = bounds + budget(expected.expected, expected.magnitude, example.case.dtype, **plan)
    _must(
        bool((abs(total) <= bounds).all()), f"not additive in {name}: off by {abs(total).max(initial=0):.3g}"
    )


def _strategies(example: Example) -> None:
    """The framework's convolution and the fused tail: the same answer, to its own deeper budget."""
    problem = example.case.problem
    if isinstance(problem, Tail):
        raise Skip
    inputs, expected = _inputs(example)
    with eager.ieee_float32():
        answer = _answer(example, inputs, strategy="tail")
    pooled = depth_of(example.backend, Tail(*problem.conv_shape), answer.dtype)
    convolution = problem.c_in // problem.groups * eager.taps(problem)
    _compare(
        example, answer, inputs.x, expected, depth=convolution + pooled, stores=eager.stores(problem) - 1
    )


def _unbatched(example: Example) -> None:
    inputs = make_inputs(example.case, example.device)
    if not len(inputs.x):
        raise Skip
    first = replace(inputs, x=surrounded(inputs.x[:1], inputs.x))
    alone = _answer(example, replace(first, x=first.x[0]))
    _must(same_bits(alone, _answer(example, first)[0]), "[C, H, W] has other bits than [1, C, H, W]")


def _strange_x(example: Example) -> None:
    """Inf and NaN anywhere in x, or only where the padding crops, go where the scatter takes them."""
    inputs = make_inputs(example.case, example.device)
    rng, problem = Random(example.seed), example.case.problem
    x = inputs.x.clone()
    rows, columns = range(problem.h), range(problem.w)
    if isinstance(problem, Chain) and rng.random() < 0.5:
        rows, columns = (_unseen(problem, axis) for axis in (0, 1))
    places = [(h, w) for h in rows for w in range(problem.w)] + [
        (h, w) for h in range(problem.h) for w in columns
    ]
    if not places or 0 in inputs.x.stride() or not len(x):
        raise Skip
    for _ in range(rng.randint(1, 3)):
        value = rng.choice((torch.inf, -torch.inf, torch.nan))
        x[rng.randrange(problem.n), rng.randrange(x.shape[1]), *rng.choice(places)] = value
    changed = replace(inputs, x=surrounded(x, inputs.x))
    _compare(example, _answer(example, changed), changed.x, truth(problem, changed))


def _unseen(problem: Chain, axis: int) -> range | list[int]:
    """Rows or columns that no tap sees."""
    bands = problem.bands(axis)
    size = (problem.h, problem.w)[axis]
    return [i for i in range(size) if not any(lo <= i < hi for lo, hi in bands)]


def _strange_weight(example: Example) -> None:
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
    _compare(example, _answer(example, changed), x, truth(problem, changed), floor=floor)


def _gradients(example: Example) -> None:
    """Of x, weight, bias and multiplier for a random gradient of the output."""
    inputs, problem, case = make_inputs(example.case, example.device), example.case.problem, example.case
    if 0 in inputs.x.stride():
        raise Skip
    tracked, leaves = inputs.tracked()
    answer = _answer(example, tracked)
    generator = torch.Generator().manual_seed(example.seed)
    grad = torch.randn(answer.shape, generator=generator).to(answer.device, answer.dtype)
    found = torch.autograd.grad(answer, list(leaves.values()), grad)
    expected = truth_gradients(problem, inputs, grad)
    # Below the band sums' own chain: no gradient adds up more than all samples or all (output, tap) pairs.
    chain = _depth(example, inputs.x)
    pairs = 1 if isinstance(problem, Tail) else problem.c_out * problem.kernel[0] * problem.kernel[1]
    depth = chain + problem.n * problem.out_shape[1] + pairs
    for name, value in zip(leaves, found, strict=True):
        t = expected[name]
        dtype = str(value.dtype).removeprefix("torch.")
        _must(value.shape == leaves[name].shape, f"gradient of {name} has shape {tuple(value.shape)}")
        # The mean is stored once in the tensors' dtype on its way to the multiplier's gradient.
        loss = 2.0 ** -{"float16": 11, "bfloat16": 8}.get(case.dtype, 60) if name == "multiplier" else 0.0
        verdict = compare(
            value, t.expected, t.magnitude, dtype, depth,
            floor=t.floor + loss * t.magnitude, reference_depth=t.depth,
        )  # fmt: skip
        _must(verdict.passed, f"gradient of {name}: {verdict.message}")


def _refused(example: Example) -> None:
    """A call with one thing wrong raises, names the argument, and launches nothing."""
    inputs, rng = make_inputs(example.case, example.device), Random(example.seed)
    x = inputs.x
    wrong: list[tuple[str, Inputs]] = [
        ("y" if inputs.weight is None else "x", replace(inputs, x=x.to(torch.int32))),
        ("y" if inputs.weight is None else "x", replace(inputs, x=x[0, 0] if len(x) else x[:, 0, 0])),
        ("y" if inputs.weight is None else "x", replace(inputs, x=x[..., :0])),
        ("multiplier", replace(inputs, multiplier="2")),
        ("multiplier", replace(inputs, multiplier=torch.ones(x.shape[0] + 2, 1, 1, 1, device=x.device))),
    ]
    if inputs.weight is not None:
        w, sizes = inputs.weight, inputs.sizes
        other = torch.float64 if w.dtype != torch.float64 else torch.float32
        wrong += [
            ("weight", replace(inputs, weight=w.to(other))),
            ("weight", replace(inputs, weight=torch.cat([w, w]))),
            ("weight", replace(inputs, weight=w[0])),
            ("bias", replace(inputs, bias=torch.zeros(1 + example.case.problem.out_shape[1]).to(w))),
            ("stride", replace(inputs, sizes=sizes | {"stride": 0})),
            ("stride", replace(inputs, sizes=sizes | {"stride": (1, 2, 3)})),
            ("padding", replace(inputs, sizes=sizes | {"padding": -1})),
            ("padding", replace(inputs, sizes=sizes | {"padding": 10_000})),
            ("dilation", replace(inputs, sizes=sizes | {"dilation": (1, 0)})),
            ("output_padding", replace(inputs, sizes=sizes | {"output_padding": 10_000})),
            ("groups", replace(inputs, sizes=sizes | {"groups": w.shape[0] + 1})),
            ("groups", replace(inputs, sizes=sizes | {"groups": 1.0})),
        ]
    name, call = rng.choice(wrong)
    launched: list[str] = []
    with mock.patch.multiple(
        calls,
        tail=lambda *_: launched.append("tail"),
        chain=lambda *_: launched.append("chain"),
    ), mock.patch.multiple(
        forward,
        tail=lambda *_: launched.append("tail"),
        chain=lambda *_: launched.append("chain"),
    ), mock.patch.multiple(
        forward,
        band_sums=lambda *_: launched.append("band_sums"),
    ):  # fmt: skip
        try:
            _answer(example, call)
        except (TypeError, ValueError) as error:
            _must(name in str(error), f"a wrong {name} is refused without its name: {error}")
        else:
            raise Miss(f"a wrong {name} is accepted")
    _must(not launched, f"a wrong {name} is launched")


@dataclass(frozen=True)
class Property:
    """A check, the values of x it is about, and how often it is drawn beside the others."""

    check: Callable[[Example], None]
    values: tuple[str, ...]
    weight: int = 1


PROPERTIES: Mapping[str, Property] = {
    "right": Property(_right, FINITE_VALUES, 4),
    "samples permuted": Property(_samples_permuted, FINITE_VALUES),
    "channels permuted": Property(_channels_permuted, TAME_VALUES),
    "doubled": Property(_doubled, TAME_VALUES),
    "additive": Property(_additive, ("uniform",)),
    "strategies": Property(_strategies, TAME_VALUES),
    "unbatched": Property(_unbatched, TAME_VALUES),
    "strange x": Property(_strange_x, ("uniform", "normal"), 2),
    "strange weight": Property(_strange_weight, ("uniform",), 2),
    "gradients": Property(_gradients, TAME_VALUES, 2),
    "refused": Property(_refused, ("uniform",)),
}
