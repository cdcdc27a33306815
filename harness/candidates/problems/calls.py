"""Calls of a candidate on any problem, each held against the estimated bound of the problem's own Model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness.candidates.exam import SLACK, Exam, Reply, Rules, frozen, received
from harness.candidates.forms import Candidate
from harness.candidates.packing import pack, spec, storage
from harness.candidates.problems.file import ProblemFile, Wide, outputs
from harness.candidates.problems.likeness import likeness
from harness.candidates.verdict import Found
from harness.candidates.worker import Worker
from harness.errors import UsageError
from harness.numerics.budget import Comparison
from harness.numerics.estimate import Estimate, estimate

State = dict[str, Tensor]


@dataclass
class Model:
    """What the judge knows of the model in the candidate's process.

    state: the tensors that it was given, by the names of the problem's Model; names: what the candidate calls them.
    kept: which of them a call leaves as they are.
    """

    own: nn.Module
    state: State
    names: dict[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    answers: list[tuple[str, list[Tensor]]] = field(default_factory=list)
    before: list[bytes] | None = None


class Examination(Exam):
    """Puts one candidate to one problem; `checks` grows, and Found is raised at the first fault."""

    def __init__(self, problem: ProblemFile, candidate: Candidate, worker: Worker, rules: Rules, seed: int) -> None:
        super().__init__(candidate, worker, rules)
        self.problem, self.seed = problem, seed
        self.apart = 0.0
        self._model: Model | None = None
        self.estimates: dict[bytes, Estimate] = {}

    def load(self) -> None:
        """Hand the files over and have them read."""
        self.hand_over("problem")

    @property
    def current(self) -> Model:
        """The model that was built last."""
        assert self._model is not None
        return self._model

    def build(self, number: int) -> None:
        """A new Model here and a new ModelNew there, from the same seed."""
        seed = self.seed + number
        own = self.problem.model(seed)
        blobs: list[memoryview] = []
        try:
            init = pack(self.problem.init, "init", blobs)
        except TypeError as error:
            raise UsageError(f"--problem: {self.problem.path}: get_init_inputs: {error}") from None
        answer, _ = self.ask("build", blobs, init=init, seed=seed)
        state = {name: value.detach().clone() for name, value in own.state_dict().items()}
        model = self._model = Model(own, state)
        model.names = matched(state, answer["state"])
        lacking = [name for name, _ in own.named_parameters() if name not in model.names]
        if lacking and not self.rules.frozen:
            raise frozen(lacking[0], tuple(state[lacking[0]].shape))
        changing = self._changing(own)
        model.kept = tuple(name for name in model.names if name not in changing)

    def _changing(self, own: nn.Module) -> set[str]:
        """State that a call of the problem's own Model changes, such as running statistics."""
        before = {name: value.detach().clone() for name, value in own.state_dict().items()}
        with torch.random.fork_rng(devices=[]):
            outputs(self.problem, own, self.problem.inputs(self.seed))
        changed = {n for n, value in own.state_dict().items() if not torch.equal(before[n], value)}
        own.load_state_dict(before)
        return changed

    def set_weights(self, number: int, how: str = "copy") -> bool:
        """Another draw of the whole state, set in place or as a checkpoint does; whether there is any."""
        model = self.current
        drawn = varied(self.problem.model(self.seed + number), self.seed + number)
        values = {name: drawn[name] for name in model.names}
        if not values or self.rules.frozen:
            return False
        model.state.update(values)
        self._send_state(how)
        return True

    def _send_state(self, how: str) -> None:
        model = self.current
        tensors = {theirs: model.state[name].contiguous() for name, theirs in model.names.items()}
        blobs = [storage(value.clone()) for value in tensors.values()]
        specs = {name: spec(value.clone(), f"new {name}") for name, value in tensors.items()}
        self.ask("weights", blobs, how=how, tensors=specs)

    def call(
        self, x: list[Any], what: str, *, slot: str = "a", late: bool = False, skip: str = "", fail: str = "",
        count: bool = False, same: bool = False,
    ) -> tuple[Reply, Comparison | None]:  # fmt: skip
        """One call: everything but a planted failure must be right. Found says what was not."""
        model = self.current
        expected = self.estimate(x)
        # State that a call changes starts each call as the problem's own does.
        if len(model.kept) < len(model.names):
            self._send_state("copy")
        blobs: list[memoryview] = []
        packed = pack(x, slot, blobs)
        slots = _slots(packed)
        outs = [(list(o.expected.shape), o.dtype) for o in expected.outputs]
        room = 4 * sum(8 * o.expected.size for o in expected.outputs) + sum(map(len, blobs)) + SLACK
        room += sum(model.state[name].numel() * 8 for name in model.kept)
        answer, found = self.ask(
            "call", blobs, most=room, arguments=packed, slots=slots, outs=outs, late=late, skip=skip, fail=fail,
            count=count, same=same, kept=[model.names[name] for name in model.kept],
        )  # fmt: skip
        planted = bool(skip or fail)
        if reply := self.failed(answer, what, planted=planted):
            return reply, None
        out = self._unchanged(answer, found, blobs, [shape for shape, _ in outs], what)
        reply = Reply(out, launches=answer["launches"], operations=answer.get("operations"))  # pyright: ignore
        verdict = expected.compare(out)
        if planted:
            return reply, verdict
        if not verdict.passed:
            raise Found(*likeness(out, expected, verdict, model.answers, what))
        self.keep(verdict)
        model.answers.append((what, out))
        return reply, verdict

    def estimate(self, x: list[Any]) -> Estimate:
        """Truth and bounds for these arguments and the current state; kept, for questions come back to the same."""
        tensors = [v for v in (*tree_leaves(x), *self.current.state.values()) if isinstance(v, Tensor)]
        key = b"".join(_digest(value) for value in tensors)
        if key not in self.estimates:
            own = self.current.own
            own.load_state_dict(self.current.state)
            device = "cuda" if self.rules.gpu else "cpu"
            self.estimates[key] = estimate(Wide(self.problem, own, x), self.problem.dtype, self.seed, device=device)
        found = self.estimates[key]
        self.apart = max(self.apart, found.apart)
        return found

    def _unchanged(
        self, answer: dict[str, Any], found: list[bytearray], sent: list[memoryview], shapes: list[list[int]], what: str
    ) -> list[Tensor]:  # fmt: skip
        """The answer as tensors, once nothing else has changed that was to stay."""
        model, count = self.current, len(shapes)
        pairs, rest = found[: 2 * count], found[2 * count :]
        arguments, rest = rest[: len(sent)], rest[len(sent) :]
        state, before = rest[: len(model.kept)], rest[len(model.kept) :]
        if any(bytes(now) != bytes(then) for now, then in zip(arguments, sent, strict=True)):
            raise Found("refused", f"inputs: changed one of its arguments ({what})")
        for name, now in zip(model.kept, state, strict=True):
            if bytes(now) != bytes(storage(model.state[name].contiguous().clone())):
                raise Found("refused", f"weights: changed its {name} ({what})")
        if pairs[::2] != pairs[1::2]:
            raise Found("refused", f"late: the answer changed after the call had returned ({what})")
        if model.before is not None and before and [bytes(b) for b in before] != model.before:
            raise Found("refused", f"buffer: the answer of an earlier call changed in the next one ({what})")
        if answer.get("random") and not self.random:
            raise Found("refused", f"random: the call moved torch's random generator ({what})")
        model.before = [bytes(first) for first in pairs[::2]]
        return [
            received(data, getattr(torch, dtype), shape)
            for data, dtype, shape in zip(pairs[::2], answer["dtypes"], shapes)
        ]

    random = False  # whether the problem itself draws random numbers


def matched(state: State, theirs: list[list[Any]]) -> dict[str, str]:
    """Which tensor of a candidate's state is which of the Model's: of the same name, else the only one of its shape."""
    shapes = {name: tuple(shape) for name, shape in theirs}
    found = {name: name for name, value in state.items() if shapes.get(name) == tuple(value.shape)}
    free = {name: shape for name, shape in shapes.items() if name not in found}
    for name, value in state.items():
        if name not in found:
            shape = tuple(value.shape)
            alike = [other for other, there in free.items() if there == shape]
            rivals = [n for n, v in state.items() if n not in found and tuple(v.shape) == shape]
            named = [other for other in alike if other.rpartition(".")[2] == name.rpartition(".")[2]]
            if len(alike) == len(rivals) == 1 or len(named) == 1:
                found[name] = (named or alike)[0]
                del free[found[name]]
    return found


def varied(model: nn.Module, seed: int) -> State:
    """A model's state; what constructors leave the same every time, such as ones and zeros, a little apart."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if value.is_floating_point() and value.numel() and bool((value == value.flatten()[0]).all()):
            value += torch.empty_like(value).uniform_(0.1, 0.9, generator=generator)
            state[name] = value
    return state


def _slots(packed: Any) -> list[str]:
    if isinstance(packed, dict):
        if "tensor" in packed:
            return [packed["tensor"]["slot"]]
        return [slot for value in packed.values() for slot in _slots(value)]
    return [slot for value in packed for slot in _slots(value)] if isinstance(packed, list) else []


def _digest(value: Tensor) -> bytes:
    data = value.detach().contiguous().clone()
    return hashlib.sha256(bytes(storage(data)) + str((value.shape, value.dtype)).encode()).digest()
