"""One file, from reading it to its verdict (without times: harness/candidates/ranking.py)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

from harness.candidates import cheating, questions, rules
from harness.candidates.checks import Examination, Rules
from harness.candidates.forms import Candidate
from harness.candidates.isolation import strongest
from harness.candidates.trials import Trial, trials
from harness.candidates.verdict import UNJUDGED, Check, Found, Verdict
from harness.candidates.worker import Ended, Limits, Worker

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Settings:
    """seed: of the hidden shapes and all values. chain: longest chain of additions, if known. strict: rules of form."""

    seed: int
    gpu: bool
    limits: Limits = field(default_factory=Limits)
    chain: int | None = None
    frozen: bool = False
    strict: bool = False
    full: bool = False
    run: bool = True


@dataclass
class Judged:
    """A candidate, its verdict so far and, while it may still be timed, its process."""

    candidate: Candidate
    verdict: Verdict
    examination: Examination | None = None


def judge(candidate: Candidate, settings: Settings, stack: ExitStack) -> Judged:
    """Everything but times. The process of an accepted candidate lives until `stack` ends it."""
    verdict = Verdict(str(candidate.path), candidate.form, settings=_described(candidate, settings))
    judged = Judged(candidate, verdict)
    if settings.strict:
        broken = (
            rules.form(candidate.text)
            if candidate.form == "kernelbench"
            else ["form: only ModelNew has strict rules"]
        )
        verdict.checks.append(Check("rules of form", not broken, f"{len(broken)} broken"))
        if broken:
            verdict.verdict, verdict.reasons = "refused", broken
            return judged
    if signs := list(cheating.signs(candidate.sources)):
        verdict.verdict, verdict.reasons = "refused", signs
        return judged
    if not settings.run:
        return judged
    chosen = trials(candidate, settings.seed, gpu=settings.gpu, full=settings.full)
    with ExitStack() as own:
        worker = own.enter_context(Worker(settings.limits, interpret=not settings.gpu))
        patience = None if settings.gpu or settings.full else PATIENCE_S
        tf32 = settings.gpu and candidate.convolves
        examination = Examination(
            candidate, worker, Rules(tf32, settings.chain, settings.frozen, patience, settings.gpu)
        )
        judged.examination = examination
        _examine(examination, chosen, verdict)
        more = list(cheating.printed(worker.printed()))
        if more and verdict.verdict != UNJUDGED:
            verdict.reasons += more
            verdict.verdict = "refused" if verdict.verdict == "accepted" else verdict.verdict
        if verdict.verdict == "accepted" and settings.gpu:
            stack.push(own.pop_all())
    return judged


def _examine(examination: Examination, chosen: list[Trial], verdict: Verdict) -> None:
    try:
        examination.load()
        questions.run(examination, chosen)
    except Found as found:
        verdict.verdict, verdict.reasons = found.verdict, [found.reason]
    except Ended as ended:
        verdict.verdict = UNJUDGED if ended.verdict == "unsupported" else ended.verdict
        verdict.reasons = [ended.reason]
    verdict.checks += examination.checks
    verdict.notes += examination.notes
    verdict.absolute_error, verdict.relative_error = examination.largest


def _described(candidate: Candidate, settings: Settings) -> dict[str, object]:
    depth = settings.chain or "of a plain left-to-right sum"
    found: dict[str, object] = {
        "seed": settings.seed,
        "depth": depth,
        "isolation": str(strongest(settings.gpu)),
    }
    found["device"] = "GPU" if settings.gpu else "CPU: kernels interpreted, nothing timed"
    found["dtypes"], found["layouts"] = list(candidate.dtypes), list(candidate.layouts)
    if settings.frozen:
        found["weights"] = "taken once, at construction (--frozen-weights): not asked to follow later changes"
    return found
