"""Gradients as entries of the bench: what `bench.py compare --backward` checks and times in place of outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import convgap
from harness.cases import operators
from harness.cases.case import Case
from harness.cases.inputs import Inputs
from harness.entries.entry import (
    TF32_OPERAND,
    Built,
    Unavailable,
    require_tf32,
    require_usable,
    tf32_convolution,
)
from harness.numerics.depth import depth as depth_of
from harness.numerics.truth import Truth, truth_gradients
from reference import eager
from reference.problem import Chain, Problem


def output_gradient(problem: Problem, x: Tensor) -> Tensor:
    """The gradient that is sent back: uniform in [-1/2, 1/2), the same on every device."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(problem.out_shape, generator=generator, dtype=torch.float64) - 0.5).to(x)


def depth(backend: str, problem: Problem, x: Tensor) -> int:
    """Longest chain of additions behind a gradient: those of the band sums, then over samples and outputs."""
    forward = depth_of(backend, problem, x.dtype, x.stride(), x.data_ptr())
    taps = problem.kernel[0] * problem.kernel[1] if isinstance(problem, Chain) else 1
    return forward + problem.n + problem.out_shape[1] * (1 + taps)


def joined(answer: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The numbers of an entry's answer as one tensor: an output as it is, gradients one after the other."""
    return answer if isinstance(answer, Tensor) else torch.cat([part.reshape(-1) for part in answer])


def truth(problem: Problem, inputs: Inputs) -> Truth:
    """The float64 truth of all gradients, as `joined` joins them."""
    true = truth_gradients(problem, inputs, output_gradient(problem, inputs.x))
    parts = [true[name] for name in inputs.tensors()]

    def join(name: str) -> Any:
        shapes = [part.expected.shape for part in parts]
        values = [getattr(part, name) for part in parts]
        return np.concatenate([np.broadcast_to(v, s).ravel() for v, s in zip(values, shapes, strict=True)])

    return Truth(join("expected"), join("magnitude"), join("floor"), max(part.depth for part in parts))


def _gradients(operators: ModuleType, inputs: Inputs, grad: Tensor, **options: Any) -> Callable[[], Any]:
    """A function that computes all gradients of one call.

    Forward and leaves are made once for each stream, for autograd runs a backward on the stream of its forward.
    """
    made: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def call() -> tuple[Tensor, ...]:
        stream = torch.cuda.current_stream(grad.device).cuda_stream if grad.is_cuda else 0
        if stream not in made:
            wanted, leaves = inputs.tracked()
            made[stream] = wanted.call(operators, **options), list(leaves.values())
        output, leaves = made[stream]
        return torch.autograd.grad(output, leaves, grad, retain_graph=True)

    return call


def _product(backend: str, case: Case, inputs: Inputs, grad: Tensor) -> Built:
    how = require_usable(backend, inputs)
    call = _gradients(convgap, inputs, grad, backend=backend)
    return Built(call, f"{how}, all gradients", depth(backend, case.problem, inputs.x))


def _eager(context: Callable[[], AbstractContextManager[Any]], case: Case, inputs: Inputs, grad: Tensor) -> Built:
    tf32 = context is tf32_convolution
    if tf32:
        require_tf32(case, inputs)
    if case.dtype == "float16":
        raise Unavailable("its gradient of a mean is subnormal in float16, and the rest is lost with it")
    problem = case.problem
    assert isinstance(problem, Chain)
    # Of the weight over samples and positions, of x over outputs and taps.
    additions = problem.n * problem.out_size(0) * problem.out_size(1)
    additions += problem.c_out * problem.kernel[0] * problem.kernel[1]
    return Built(
        _gradients(eager, inputs, grad),
        f"torch eager, all gradients{'; convolution in TF32' if tf32 else ''}",
        additions,
        eager.stores(problem),
        TF32_OPERAND if tf32 else 0.0,
        context,
    )


ENTRIES: Mapping[str, Callable[[Case, Inputs, Tensor], Built]] = {
    "triton": partial(_product, "triton"),
    "cupy": partial(_product, "cupy"),
    "torch": partial(_product, "torch"),
    "eager-ieee": partial(_eager, eager.ieee_float32),
    "eager-tf32": partial(_eager, tf32_convolution),
}


def build(name: str, case: Case, inputs: Inputs) -> Built:
    """The entry for the gradients of a case. Raises Unavailable where it has nothing to do with them."""
    table = operators.of(case.problem).gradient_entries
    if name not in table:
        raise Unavailable("the entry is for outputs, not for gradients")
    return table[name](case, inputs, output_gradient(case.problem, inputs.x))
