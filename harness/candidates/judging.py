"""One file, from reading it to its verdict (without times: harness/candidates/ranking.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness.candidates import cheating, questions, rules
from harness.candidates.checks import Examination
from harness.candidates.exam import Rules
from harness.candidates.forms import ONLY_FILE, Candidate
from harness.candidates.isolation import Isolation, strongest
from harness.candidates.problems import calls as general
from harness.candidates.problems import derived
from harness.candidates.problems import questions as general_questions
from harness.candidates.problems.derived import OperatorProblem
from harness.candidates.problems.file import ProblemFile
from harness.candidates.trials import trials
from harness.candidates.verdict import UNJUDGED, Check, Found, Verdict
from harness.candidates.worker import Ended, Limits, Worker
from harness.numerics.estimate import SAMPLES, WIDE_SAMPLES, Estimate

PATIENCE_S = 20.0
ESTIMATED = f"estimated from {SAMPLES + WIDE_SAMPLES} runs with random rounding, not derived"


@dataclass(frozen=True)
class Settings:
    """seed: of the hidden shapes and all values. chain: longest chain of additions, if known. strict: rules of form.

    problem: in place of this project's own operators, a file of KernelBench's form or an operator of one's own.
    random: whether it draws random numbers itself. estimates: of its calls, which all candidates share.
    """

    seed: int
    gpu: bool
    limits: Limits = field(default_factory=Limits)
    chain: int | None = None
    frozen: bool = False
    strict: bool = False
    full: bool = False
    run: bool = True
    problem: ProblemFile | OperatorProblem | None = None
    random: bool = False
    estimates: dict[bytes, Estimate] = field(default_factory=dict)


@dataclass
class Judged:
    """A candidate, its verdict so far and, while it may still be timed, its process."""

    candidate: Candidate
    verdict: Verdict
    examination: Examination | general.Examination | None = None


def judge(
    candidate: Candidate, settings: Settings, stack: ExitStack, tell: Callable[[str], None] | None = None
) -> Judged:
    """Everything but times. The process of an accepted candidate lives until `stack` ends it.

    tell: is called with how far it came.
    """
    verdict = Verdict(str(candidate.path), candidate.form, settings=_described(candidate, settings))
    judged = Judged(candidate, verdict)
    if settings.strict:
        broken = (
            rules.form(candidate.text) if candidate.form == "kernelbench" else ["form: only ModelNew has strict rules"]
        )
        verdict.checks.append(Check("rules of form", not broken, f"{len(broken)} broken"))
        if broken:
            verdict.verdict, verdict.reasons = "refused", broken
            return judged
    if signs := list(cheating.signs(candidate.code)):
        verdict.verdict, verdict.reasons = "refused", signs
        return judged
    if not settings.run:
        verdict.notes.append("the file was not run, because of --form-only: whether its answers are right is not known")
        return judged
    verdict.settings = _described(candidate, settings, strongest(settings.gpu))
    with ExitStack() as own:
        worker = own.enter_context(Worker(settings.limits, interpret=not settings.gpu))
        patience = None if settings.gpu or settings.full else PATIENCE_S
        tf32 = settings.gpu and candidate.convolves
        asked = Rules(tf32, settings.chain, settings.frozen, patience, settings.gpu, tell)
        if settings.problem is None:
            own_trials = trials(candidate, settings.seed, gpu=settings.gpu, full=settings.full)
            examination = Examination(candidate, worker, asked)
            _examine(examination, partial(questions.run, examination, own_trials), verdict)
        elif isinstance(settings.problem, OperatorProblem):
            given: Any = settings.problem
            examination = derived.Examination(given, candidate, worker, asked, settings.seed)
            _examine(examination, partial(derived.run, examination), verdict)
        else:
            examination = general.Examination(settings.problem, candidate, worker, asked, settings.seed)
            examination.random, examination.estimates = settings.random, settings.estimates
            _examine(examination, partial(general_questions.run, examination), verdict)
            if examination.apart == 1.0 and verdict.verdict == "accepted":
                verdict.verdict, verdict.reasons = UNJUDGED, ["apart: no element of any output has a bound"]
        judged.examination = examination
        more = list(cheating.printed(worker.printed()))
        if more and verdict.verdict != UNJUDGED:
            verdict.reasons += more
            verdict.verdict = "refused" if verdict.verdict == "accepted" else verdict.verdict
        if verdict.verdict == "accepted" and settings.gpu:
            stack.push(own.pop_all())
    return judged


def _examine(examination: Examination | general.Examination, ask: Callable[[], None], verdict: Verdict) -> None:
    try:
        examination.load()
        ask()
    except Found as found:
        verdict.verdict, verdict.reasons = found.verdict, [found.reason]
    except Ended as ended:
        verdict.verdict = UNJUDGED if ended.verdict == "unsupported" else ended.verdict
        verdict.reasons = [ended.reason]
    # The file bears another name in the candidate's process than its author knows.
    candidate = examination.candidate
    if candidate.details.get("file") == ONLY_FILE:
        verdict.reasons = [reason.replace(ONLY_FILE, candidate.path.name) for reason in verdict.reasons]
    verdict.checks += examination.checks
    verdict.notes += examination.notes
    verdict.absolute_error, verdict.relative_error = examination.largest


def _described(candidate: Candidate, settings: Settings, isolation: Isolation | None = None) -> dict[str, object]:
    """What a verdict rests on. isolation: how its process was cut off, if it had one."""
    found: dict[str, object] = {"seed": settings.seed}
    if settings.problem is None:
        found["depth"] = settings.chain or "of a plain left-to-right sum"
    elif isinstance(settings.problem, OperatorProblem):
        found["operator"] = str(settings.problem.operator.file)
        found["budget"] = "derived, as the operator's truth says"
        found["depth"] = settings.chain or "of the operator as written"
    else:
        found |= {"problem": str(settings.problem.path), "budget": ESTIMATED}
    if isolation is not None:
        found["isolation"] = str(isolation)
    device = "GPU" if settings.gpu else "CPU: kernels interpreted, nothing timed"
    found["device"] = device if settings.run else "none"
    if settings.problem is None:
        found["dtypes"], found["layouts"] = list(candidate.dtypes), list(candidate.layouts)
    else:
        found["dtypes"] = [settings.problem.dtype]
    if settings.frozen:
        found["weights"] = "taken once, at construction (--frozen-weights): not asked to follow later changes"
    return found
