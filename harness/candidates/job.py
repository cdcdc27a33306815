"""One candidate judged as a job: plain data in, plain data out, in whatever process or machine it runs."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from harness.candidates import forms, judging
from harness.candidates.backlog import BYTE_FOR_BYTE, Task
from harness.candidates.problems import file, filters
from harness.candidates.problems.file import ProblemFile
from harness.candidates.problems.floor import floor
from harness.candidates.verdict import Verdict
from harness.candidates.worker import Limits
from harness.errors import UsageError


@dataclass(frozen=True)
class Terms:
    """What all candidates of a queue are judged by. problem: the file's name and text, if there is one.

    seconds: most time spent on sampling one candidate.
    """

    seed: int
    limits: Limits
    seconds: float
    chain: int | None = None
    frozen: bool = False
    form: str | None = None
    problem: tuple[str, str] | None = None


def run(task: Task, terms: Terms, *, gpu: bool) -> dict[str, object]:
    """The verdict, as a document. gpu: judged and timed on the GPU that this process sees, else interpreted."""
    with tempfile.TemporaryDirectory(prefix="queued-") as folder, ExitStack() as stack:
        path = Path(folder, task.file)
        path.write_text(task.text, **BYTE_FOR_BYTE)
        try:
            candidate = forms.read(path, terms.form)
            if terms.problem and candidate.form != "kernelbench":
                raise UsageError(f"expected class ModelNew, got form {candidate.form!r}")
        except UsageError as error:
            reason = f"form: {str(error).removeprefix(f'{path}: ')}"
            return Verdict(task.file, "unknown", "crashed", [reason]).document()
        settings, remarks = _settings(terms, gpu)
        judged = judging.judge(candidate, settings, stack)
        verdict = judged.verdict
        verdict.file = task.file
        verdict.notes = [f"problem: {remark}" for remark in remarks] + verdict.notes
        if gpu and verdict.verdict == "accepted" and judged.examination:
            from harness.candidates import ranking
            from harness.candidates.problems import timing

            if isinstance(settings.problem, ProblemFile):
                needed = floor(settings.problem, terms.seed)
                timing.rank([judged], settings.problem, needed, seed=terms.seed, seconds=terms.seconds)
            else:
                ranking.rank([judged], seed=terms.seed % 2**32, seconds=terms.seconds)
        return verdict.document()


@lru_cache(maxsize=2)
def _settings(terms: Terms, gpu: bool) -> tuple[judging.Settings, tuple[str, ...]]:
    """Read and looked at once in a process; estimates are shared by all candidates that come after."""
    torch.set_num_threads(1 if not gpu else torch.get_num_threads())
    problem, remarks = None, ()
    if terms.problem:
        with tempfile.TemporaryDirectory(prefix="problem-") as folder:
            path = Path(folder, terms.problem[0])
            path.write_text(terms.problem[1], encoding="utf-8")
            problem = file.read(path)
            remarks = tuple(filters.remarks(problem, terms.seed))
    random = any(remark.startswith("random:") for remark in remarks)
    settings = judging.Settings(
        terms.seed, gpu, terms.limits, terms.chain, terms.frozen, problem=problem, random=random
    )
    return settings, remarks
