"""Does the estimated budget tell right from wrong? Known problems, honest answers and known faults beside it.

`bench.py judge --calibrate` prints the table, on the machine at hand; docs/judging.md holds one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.candidates import answers
from harness.candidates.problems import file
from harness.candidates.problems.calls import varied
from harness.candidates.problems.faults import FAULTS, Made
from harness.candidates.problems.file import Wide, outputs
from harness.candidates.problems.filters import LOOSE
from harness.cases import operators
from harness.cases.inputs import Inputs
from harness.errors import UsageError
from harness.numerics.budget import Array, budget
from harness.numerics.estimate import estimate
from reference.eager import ieee_float32
from reference.problem import Chain

KNOWN = tuple(sorted(p for p in Path(__file__).with_name("known").glob("*.py") if p.stem != "__init__"))
CHAIN = "chain"


@dataclass
class Row:
    """One problem. Errors in units of the estimated budget; a fault that the problem has no room for is not there.

    loose: faults that KernelBench's tolerance accepts. derived: the derived bound of this project's own
    chain over the estimated one, least and most of all elements.
    """

    problem: str
    honest: dict[str, float] = field(default_factory=dict)
    faults: dict[str, float] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    derived: tuple[float, float] | None = None

    @property
    def sound(self) -> bool:
        """Whether everything honest is accepted, and nothing else is."""
        return all(e <= 1 for e in self.honest.values()) and all(e > 1 for e in self.faults.values())


def row(path: Path, seed: int, *, compiled: bool, device: str = "cpu") -> Row:
    """One problem, its own Model eager and compiled, and every fault."""
    problem = file.read(path)
    model = problem.model(seed)
    model.load_state_dict(varied(model, seed))
    made = Made(problem, model, seed)
    found = estimate(Wide(problem, model, made.inputs), problem.dtype, seed, device=device)
    result = Row(path.stem)
    calls: dict[str, Any] = {"eager": model}
    if compiled:
        calls["torch.compile"] = torch.compile(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(device)
    here = [value.to(device) for value in made.inputs]
    for name, call in calls.items():
        try:
            # TF32 is among the faults: what is honest is so in float32 on a GPU too, whatever layout it is compiled to.
            with ieee_float32():
                result.honest[name] = found.compare(outputs(problem, call, here)).worst
        except UsageError:
            if name == "eager":
                raise  # a compiler may be missing, but not the model
    model.cpu().load_state_dict(state)
    for name, fault in FAULTS.items():
        wrong = fault(made)
        if wrong is not None:
            result.faults[name] = found.compare([wrong.float()]).worst
            if _loosely(wrong, found.outputs[0].expected):
                result.loose.append(name)
    if path.stem == CHAIN:
        ratio = _derived(made) / found.outputs[0].bound
        result.derived = float(ratio.min()), float(ratio.max())
    return result


def rows(seed: int, *, compiled: bool, device: str = "cpu") -> Iterator[Row]:
    """All known problems."""
    for path in KNOWN:
        yield row(path, seed, compiled=compiled, device=device)


def _loosely(wrong: Tensor, right: Array) -> bool:
    """As KernelBench's evaluation compares."""
    return bool(np.allclose(wrong.numpy(), right, rtol=LOOSE, atol=LOOSE))


def _derived(made: Made) -> Array:
    """The derived bound (docs/numerics.md) of the call, of a plain left-to-right sum."""
    x = made.inputs[0]
    c_in, c_out, kernel, stride, padding, output_padding, multiplier = made.problem.init
    pairs = ((n, n) for n in (kernel, stride, padding, output_padding))
    problem = Chain(x.shape[0], c_in, c_out, *x.shape[2:], *pairs)
    layer: Any = made.model.conv_transpose
    sizes = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": 1,
        "dilation": 1,
    }
    inputs = Inputs(x, layer.weight.detach(), layer.bias.detach(), multiplier, sizes)
    truth = answers.right(problem, inputs)
    operator = operators.of(problem)
    plan = truth.plan(operator.depth(problem), stores=operator.stores(problem))
    return budget(truth.expected, truth.magnitude, made.problem.dtype, **plan)  # pyright: ignore[reportArgumentType]


def table(found: Sequence[Row]) -> Iterator[str]:
    """The rows as a table in Markdown: errors in estimated budgets, * where KernelBench's tolerance accepts them."""
    honest = list(dict.fromkeys(name for row in found for name in row.honest))
    yield "| problem | " + " | ".join([*honest, *FAULTS]) + " |"
    yield "|---|" + "---:|" * (len(honest) + len(FAULTS))
    for each in found:
        cells = [_number(each.honest.get(name)) for name in honest]
        cells += [_number(each.faults.get(name)) + " *" * (name in each.loose) for name in FAULTS]
        yield f"| {each.problem} | " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}" if value < 1e4 else "> 10 000"
