"""Accepted candidates for any problem, timed in the same rounds as its own Model, eager and compiled. Needs a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from harness.candidates.exam import received
from harness.candidates.judging import Judged
from harness.candidates.packing import pack, storage
from harness.candidates.problems.calls import Examination
from harness.candidates.problems.file import ProblemFile
from harness.candidates.problems.floor import Floor
from harness.candidates.ranking import MODES, Clocked, compete
from harness.candidates.verdict import Found
from harness.numerics.budget import Comparison
from harness.runs.timer import Settings, Timer
from harness.timing import session
from harness.timing.session import Stop


@dataclass
class TimedProblem(Clocked):
    """On any problem. inputs: the arguments, on the CPU."""

    examination: Examination
    inputs: list[Any]

    def unseen(self, seed: int) -> Comparison:
        """Every input overwritten in place by another draw of the problem's own."""
        problem = self.examination.problem
        fresh = problem.inputs(seed)
        tensors = [value.contiguous() for value in tree_leaves(fresh) if isinstance(value, Tensor)]
        expected = self.examination.estimate(fresh)
        shapes = [(list(o.expected.shape), o.dtype) for o in expected.outputs]
        most = sum(8 * o.expected.size for o in expected.outputs)
        _, blobs = self.worker.ask("time", [storage(t.clone()) for t in tensors], most=most, what="secret")
        if len(blobs) != len(shapes):
            raise Found("refused", f"forged: {len(blobs)} outputs after timing, expected {len(shapes)}")
        return expected.compare([received(b, getattr(torch, dtype), shape) for b, (shape, dtype) in zip(blobs, shapes)])


def rank(judged: Sequence[Judged], problem: ProblemFile, needed: Floor, *, seed: int, seconds: float) -> None:
    """Time the accepted among the candidates; their verdicts get `timing`, or a refusal."""
    device = torch.device("cuda", torch.cuda.current_device())
    timer = Timer.on(device, Settings(MODES, seed=seed % 2**32))  # pyright: ignore[reportArgumentType]
    stop = Stop(width=0.01, min_rounds=30, max_rounds=200, budget_s=seconds)
    chosen = [j for j in judged if j.verdict.verdict == "accepted" and isinstance(j.examination, Examination)]
    if not chosen:
        return
    with _exact():
        replays, _kept = _references(problem, seed, device)
        compete(chosen, _prepare, replays, timer, stop, problem.path.stem, needed.bytes)


def _prepare(item: Judged) -> Clocked:
    examination = item.examination
    assert isinstance(examination, Examination)
    examination.build(0)
    inputs = examination.problem.inputs(examination.seed)
    found = TimedProblem(item, examination.worker, examination, inputs)
    blobs: list[memoryview] = []
    found.capture(blobs, arguments=pack(inputs, "timed", blobs))
    return found


def _references(
    problem: ProblemFile, seed: int, device: torch.device
) -> tuple[dict[str, Callable[[], object]], list[Any]]:
    """The problem's own Model as captured graphs, and what has to live as long as they; without those that fail."""
    model = problem.model(seed).to(device)
    inputs = tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, problem.inputs(seed))
    found: dict[str, Callable[[], object]] = {}
    kept: list[Any] = [model, inputs]
    for name, call in (("eager-ieee", model), ("inductor", torch.compile(model))):

        def once(call: Any = call) -> Any:
            with torch.no_grad():
                return call(*inputs)

        with contextlib.suppress(Exception):  # what does not compile, or waits for the device, has no graph
            once()
            found[name], out = session.capture(once)
            kept.append(out)
    return found, kept


@contextlib.contextmanager
def _exact() -> Any:
    """Float32 where float32 is asked for, as in the candidates' processes."""
    held = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = held
