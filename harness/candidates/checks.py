"""Right, and by its own means: a candidate's calls, one after the other, each held against the judge's own truth.

All that a verdict rests on is here: inputs, weights and truth never come from the candidate's process, only bytes do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from harness.candidates import answers
from harness.candidates.diagnosis import Past, diagnose
from harness.candidates.exam import SLACK, Exam, Reply, Rules, frozen, received
from harness.candidates.forms import Candidate
from harness.candidates.packing import spec, storage
from harness.candidates.trials import Trial
from harness.candidates.verdict import Check, Found
from harness.candidates.worker import Worker
from harness.cases.inputs import Inputs
from harness.numerics.budget import Comparison
from reference.problem import Chain, Problem


class Examination(Exam):
    """Puts one candidate to the trials; `checks` grows, and Found is raised at the first fault."""

    def __init__(self, candidate: Candidate, worker: Worker, rules: Rules) -> None:
        super().__init__(candidate, worker, rules)
        self._model: _Model | None = None
        self._pace = inf  # seconds per element of x, of the fastest call so far

    def load(self) -> None:
        """Hand the files over and have them read."""
        self.hand_over(self.candidate.form)

    def affordable(self, trial: Trial) -> Trial:
        """The trial, with fewer samples of a published shape if a call on all of them would take too long."""
        problem, patience = trial.problem, self.rules.patience
        takes = self._pace * prod(problem.in_shape)
        if not (trial.public and self.interpreted) or patience is None or takes <= patience:
            return trial
        n = max(2, int(problem.n * patience / takes))
        self.notes.append(f"{trial.name}: {n} of its {problem.n} samples, for kernels are interpreted here")
        return replace(trial, problem=replace(problem, n=n))

    # --- one model after the other ---

    def build(self, trial: Trial) -> _Model:
        """A new model of the candidate with the trial's problem."""
        problem = trial.problem
        fields = vars(problem) if isinstance(problem, Chain) else {"n": problem.n, "c": problem.c}
        known = {key: value for key, value in fields.items() if not key.startswith("_") and key != "out_area"}
        if isinstance(problem, Chain):
            known |= {"operator": "chain", "out": [problem.out_size(0), problem.out_size(1)]}
        else:
            known["operator"] = "tail"
        answer, _ = self.ask("build", problem=known, multiplier=trial.multiplier, seed=trial.seed, dtype=trial.dtype)
        first = trial.inputs(0)
        initial = _initial(trial) if self.candidate.form == "kernelbench" else {}
        self._model = _Model(trial, first, initial, dict(initial))
        missing = {name for name in ("weight", "bias") if getattr(first, name) is not None} - set(answer["weights"])
        if missing and not self.rules.frozen:
            name = min(missing)
            raise frozen(name, tuple(getattr(first, name).shape))
        return self._model

    def set_weights(self, number: int, how: str = "copy") -> None:
        """Another draw of weight and bias, set in place ("copy") or as a checkpoint does ("load")."""
        model = self.current
        drawn = model.trial.inputs(number)
        values = {name: getattr(drawn, name) for name in ("weight", "bias") if getattr(drawn, name) is not None}
        if not values or self.rules.frozen:
            return
        model.past_weights.append(dict(model.weights))
        self.ask(
            "weights",
            [storage(value) for value in values.values()],
            how=how,
            tensors={name: spec(value, f"new {name}") for name, value in values.items()},
        )
        model.weights = values

    def call(
        self,
        x: Tensor,
        what: str,
        *,
        slot: str = "a",
        late: bool = False,
        skip: str = "",
        fail: str = "",
        count: bool = False,
        same: bool = False,
    ) -> tuple[Reply, Comparison | None]:
        """One call: everything but a planted failure must be right. Found says what was not.

        same: on the tensor of the call before, untouched. late: looked at again a moment after the call returned.
        """
        model = self.current
        problem = _sized(model.trial.problem, x)
        sent = storage(x)
        shape = problem.out_shape
        room = prod(shape) * x.element_size() * 4 + len(sent) + SLACK
        room += sum(value.numel() * value.element_size() for value in model.weights.values())
        room += len(model.before or b"")
        start = time.perf_counter()
        answer, blobs = self.ask(
            "call",
            [sent],
            most=room,
            x=spec(x, slot),
            out=list(shape),
            late=late,
            skip=skip,
            fail=fail,
            count=count,
            same=same,
        )
        self._pace = min(self._pace, (time.perf_counter() - start) / max(x.numel(), 1))
        planted = bool(skip or fail)
        if reply := self.failed(answer, what, planted=planted):
            return reply, None
        out = self._unchanged(model, answer, blobs, sent, what)
        reply = Reply(out, launches=answer["launches"], operations=answer.get("operations"))
        inputs = replace(model.first, x=x, **model.weights)
        expected = answers.right(problem, inputs)
        verdict = answers.judge(out, problem, inputs, expected, tf32=self.rules.tf32, chain=self.rules.chain)
        if planted:
            return reply, verdict
        if not verdict.passed:
            past = Past(model.answers, [*model.past_weights, model.initial], model.trial.problem)
            raise Found(*diagnose(out, problem, inputs, expected, verdict, past, what, self.rules.tf32))
        self.keep(verdict)
        model.answers.append((what, slot, out))
        return reply, verdict

    def _unchanged(
        self, model: _Model, answer: dict[str, Any], blobs: list[bytearray], sent: memoryview, what: str
    ) -> Tensor:
        """The answer as a tensor, once nothing else has changed that was to stay."""
        first, later, x, *rest = blobs
        names = answer["weights"]
        if bytes(x) != bytes(sent):
            raise Found("refused", f"inputs: changed its argument x ({what})")
        for name, now in zip(names, rest):
            if name in model.weights and bytes(now) != bytes(storage(model.weights[name].contiguous())):
                raise Found("refused", f"weights: changed its {name} ({what})")
        if first != later:
            raise Found("refused", f"late: the answer changed after the call had returned ({what})")
        if answer["before"] and model.before is not None and bytes(rest[len(names)]) != model.before:
            raise Found("refused", f"buffer: the answer of an earlier call changed in the next one ({what})")
        if answer.get("random"):
            raise Found("refused", f"random: the call moved torch's random generator ({what})")
        model.before = bytes(first)
        return received(first, getattr(torch, str(answer["dtype"])), answer["shape"])

    # --- small things ---

    @property
    def current(self) -> _Model:
        """The model that was built last."""
        assert self._model is not None
        return self._model

    def passed(self, trial: Trial, what: str, comparison: Comparison | None) -> None:
        """Enter a check that was passed."""
        worst = comparison.worst if comparison else None
        self.checks.append(Check(f"{trial.name}: {what}", True, comparison.message if comparison else "", worst))


@dataclass
class _Model:
    """What the judge knows of the model that is built in the candidate's process."""

    trial: Trial
    first: Inputs
    initial: dict[str, Tensor]
    weights: dict[str, Tensor]
    past_weights: list[dict[str, Tensor]] = field(default_factory=list)
    answers: list[tuple[str, str, Tensor]] = field(default_factory=list)
    before: bytes | None = None


def _initial(trial: Trial) -> dict[str, Tensor]:
    """Weight and bias as the constructor of the published model draws them from the trial's seed."""
    p = trial.problem
    assert isinstance(p, Chain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        layer = torch.nn.ConvTranspose2d(p.c_in, p.c_out, p.kernel, p.stride, p.padding, p.output_padding)
    dtype = getattr(torch, trial.dtype)
    assert layer.bias is not None
    return {"weight": layer.weight.detach().to(dtype), "bias": layer.bias.detach().to(dtype)}


def _sized(problem: Problem, x: Tensor) -> Problem:
    return replace(problem, n=x.shape[0])
