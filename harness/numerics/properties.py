"""What must hold for every valid chain and tail, as checks of one example, each of which raises Miss.

campaign.py draws these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from unittest import mock

import torch

from harness.cases.inputs import Inputs, make_inputs
from harness.numerics import any_operator, strange, symmetries
from harness.numerics.asked import ask, depth_of_call, must
from harness.numerics.budget import compare
from harness.numerics.example import FINITE_VALUES, TAME_VALUES, Example, Miss, Property, Skip
from harness.numerics.truth import truth_gradients
from reference.problem import Tail
from runtime import call as calls
from torch_impl import forward


def _gradients(example: Example) -> None:
    """Of x, weight, bias and multiplier for a random gradient of the output."""
    inputs, problem, case = make_inputs(example.case, example.device), example.case.problem, example.case
    if 0 in inputs.x.stride():
        raise Skip
    tracked, leaves = inputs.tracked()
    answer = ask(example, tracked)
    generator = torch.Generator().manual_seed(example.seed)
    grad = torch.randn(answer.shape, generator=generator).to(answer.device, answer.dtype)
    found = torch.autograd.grad(answer, list(leaves.values()), grad)
    expected = truth_gradients(problem, inputs, grad)
    # Below the band sums' own chain: no gradient adds up more than all samples or all (output, tap) pairs.
    chain = depth_of_call(example, inputs.x)
    pairs = 1 if isinstance(problem, Tail) else problem.c_out * problem.kernel[0] * problem.kernel[1]
    depth = chain + problem.n * problem.out_shape[1] + pairs
    for name, value in zip(leaves, found, strict=True):
        t = expected[name]
        dtype = str(value.dtype).removeprefix("torch.")
        must(value.shape == leaves[name].shape, f"gradient of {name} has shape {tuple(value.shape)}")
        # The mean is stored once in the tensors' dtype on its way to the multiplier's gradient.
        loss = 2.0 ** -{"float16": 11, "bfloat16": 8}.get(case.dtype, 60) if name == "multiplier" else 0.0
        verdict = compare(
            value, t.expected, t.magnitude, dtype, depth,
            floor=t.floor + loss * t.magnitude, reference_depth=t.depth,
        )  # fmt: skip
        must(verdict.passed, f"gradient of {name}: {verdict.message}")


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
            ask(example, call)
        except (TypeError, ValueError) as error:
            must(name in str(error), f"a wrong {name} is refused without its name: {error}")
        else:
            raise Miss(f"a wrong {name} is accepted")
    must(not launched, f"a wrong {name} is launched")


PROPERTIES: Mapping[str, Property] = {
    "right": Property(any_operator.right, FINITE_VALUES, 4),
    "samples permuted": Property(any_operator.samples_permuted, FINITE_VALUES),
    "channels permuted": Property(symmetries.channels_permuted, TAME_VALUES),
    "doubled": Property(symmetries.doubled, TAME_VALUES),
    "additive": Property(symmetries.additive, ("uniform",)),
    "strategies": Property(symmetries.strategies, TAME_VALUES),
    "unbatched": Property(symmetries.unbatched, TAME_VALUES),
    "strange x": Property(strange.strange_x, ("uniform", "normal"), 2),
    "strange weight": Property(strange.strange_weight, ("uniform",), 2),
    "folds": Property(strange.folds, ("uniform",)),
    "gradients": Property(_gradients, TAME_VALUES, 2),
    "refused": Property(_refused, ("uniform",)),
}
