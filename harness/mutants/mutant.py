"""A known-wrong implementation: the real one with one thing changed, in one of three places.

* around it: other arguments, or another answer (harness/mutants/around.py; every backend);
* between its plan and its launches: other arguments of a kernel, another grid (the kernel sets), bands of another
  problem (plain torch too; harness/mutants/launches.py);
* in the text of the kernels (harness/mutants/source.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import convgap
from harness.cases.inputs import Inputs
from harness.mutants.interpose import Run, interposed
from harness.mutants.source import Source, run_of
from harness.numerics.examine import Call
from reference.problem import Chain
from torch_impl import forms, forward

Outside = Callable[[Call, Inputs], Tensor]


class NotApplicable(Exception):
    """The mutant has nothing to change in this call."""


@dataclass(frozen=True)
class Mutant:
    """One wrong implementation; `wrong` says in a few words what it does instead."""

    name: str
    wrong: str
    outside: Outside | None = None
    launch: Run | None = None
    problem: Callable[[Chain], Chain] | None = None
    source: Mapping[str, Source] = field(default_factory=dict)
    only: tuple[str, ...] = convgap.BACKENDS
    """The backends that promise what an `outside` mutant breaks."""

    def backends(self) -> tuple[str, ...]:
        """The backends that have such a mutant."""
        if self.outside:
            return self.only
        inside = ("triton", "cupy") if self.launch or self.problem else tuple(self.source)
        return (*inside, "torch") if self.problem else inside

    def call(self, backend: str) -> Call:
        """The mutant as an implementation. It raises NotApplicable where there is nothing to change."""

        def right(inputs: Inputs) -> Tensor:
            return inputs.call(convgap, backend=backend)

        def call(inputs: Inputs) -> Tensor:
            # Before anything is changed: a backend is probed at an operator's first call, and must not be found broken.
            operator = backend, str(inputs.x.device), inputs.weight is None
            if operator not in _called:
                right(inputs)
                _called.add(operator)
            if self.outside:
                return self.outside(right, inputs)
            with self._inside(backend):
                return right(inputs)

        return call

    @contextmanager
    def _inside(self, backend: str) -> Iterator[None]:
        if backend == "torch":
            assert self.problem
            with _another_problem(self.problem):
                yield
            return
        run = run_of(backend, self.source[backend]) if backend in self.source else self.launch
        with interposed(_then_reset(run or _as_it_is), self.problem or (lambda p: p)):
            yield


_called: set[tuple[str, str, bool]] = set()
"""Backend, device, and whether it is the tail, of what has been called unchanged."""


@contextmanager
def _another_problem(problem: Callable[[Chain], Chain]) -> Iterator[None]:
    """Plain torch takes its bands from `problem` of the problem, and divides by the right area."""
    chain = forward.chain

    def wrong_chain(right: Chain, *arguments: Any) -> Tensor:
        wrong = problem(right)
        vars(wrong)["out_area"] = right.out_area
        return chain(wrong, *arguments)

    # The literal operator has no bands.
    by_bands = mock.patch.object(forward, "form", forms.form_of_product)
    with mock.patch.object(forward, "chain", wrong_chain), by_bands:
        yield


def _as_it_is(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
    launch(device, stream, *arguments)


def _then_reset(run: Run) -> Run:
    """A mutant may leave the launch counters, which later launches share, at something other than 0."""

    def then_reset(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        run(launch, device, stream, *arguments)
        for value in arguments:
            if isinstance(value, Tensor) and value.dtype == torch.int32:
                value.zero_()

    return then_reset
