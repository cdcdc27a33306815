"""A verdict as a page of text, and several as a ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.candidates.verdict import UNJUDGED, Verdict

WORDS = {
    "accepted": "ACCEPTED",
    "wrong": "WRONG",
    "refused": "REFUSED",
    "crashed": "CRASHED",
    "timeout": "TIMEOUT",
    UNJUDGED: "NOT JUDGED",
}
NEXT = {
    "inputs": "work on a copy of x, or in registers",
    "weights": "read the weights, and leave them as they are",
    "cached": "compute every answer from the arguments of the call",
    "frozen": "read the weights at the call; fold them there, or when their _version changes",
    "buffer": "allocate an output for each call",
    "late": "enqueue all work on the current stream before returning",
    "stream": "work on the current stream, or make it wait for yours",
    "thread": "enqueue all work on the current stream before returning",
    "lazy": "return a plain tensor",
    "idle": "let the kernel compute the answer, or leave it out",
    "fallback": "let what fails raise",
    "precision": "accumulate in float32; for tl.dot ask for input_precision='ieee'",
    "shortcut": "take the same path for every shape",
    "impossible": "look for work that is left out or done outside the timed call",
}


def lines(verdict: Verdict) -> Iterator[str]:
    """The page of one verdict."""
    yield f"{WORDS[verdict.verdict]}  {verdict.file} ({verdict.form})"
    yield from (f"  {reason}" for reason in verdict.reasons)
    if verdict.reasons and (hint := NEXT.get(verdict.reasons[0].partition(":")[0])):
        yield f"  next: {hint}"
    yield ""
    passed = sum(check.passed for check in verdict.checks)
    if verdict.checks:
        budget = "estimated budget" if "problem" in verdict.settings else "budget"
        worst = f"; largest error {verdict.worst:.3g} of the {budget}" if verdict.worst is not None else ""
        yield f"  {passed} of {len(verdict.checks)} checks passed{worst}"
    yield from (f"  failed: {check.name}: {check.message}" for check in verdict.checks if not check.passed)
    yield from (f"  {name}: {_word(value)}" for name, value in verdict.settings.items())
    yield from (f"  note: {note}" for note in verdict.notes)
    if verdict.timing.get("rows"):
        yield from _times(verdict)
    elif verdict.verdict == "accepted" and str(verdict.settings.get("device", "")).startswith("CPU"):
        yield "  nothing was timed: timing needs a GPU"


def _word(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _times(verdict: Verdict) -> Iterator[str]:
    timing = verdict.timing
    yield ""
    yield f"  {timing['case']} on {timing['gpu']}, cold and clean L2; medians and 95 % intervals, in us"
    for name, row in sorted(timing["rows"].items(), key=lambda item: item[1]["us"]):
        ratio = ""
        if "over_candidate" in row:
            low, high = row["over_candidate"]
            word = "slower" if low > 1 else "faster" if high < 1 else "no different"
            ratio = f"   {low:.2f} to {high:.2f} times the candidate's: {word}"
        yield f"    {name:<12} {row['us']:9.2f}  [{row['low']:.2f}, {row['high']:.2f}]{ratio}"
    if timing.get("share_of_floor"):
        floor = timing["floor_us"]
        yield f"  {100 * timing['share_of_floor']:.0f} % of what reading the input allows ({floor:.2f} us, measured)"
    warm = timing["warm"]["candidate"]
    wall = timing.get("wall_us", float("nan"))
    yield f"  warm L2: {warm['us']:.2f} us; by the judge's own clock, cold: {wall:.2f} us a call"
    for kernel in timing.get("kernels", ()):
        registers = kernel.get("registers per thread")
        more = f", {registers} registers a thread" if registers else ""
        yield f"    {kernel['count']:.0f} x {kernel['name'][:70]}: {kernel['us']:.2f} us a call{more}"
    if "throttled" in timing:
        yield f"  the card was throttled: {', '.join(timing['throttled'])}"
    yield f"  next: {_advice(verdict)}"


def _advice(verdict: Verdict) -> str:
    timing = verdict.timing
    share, kernels = timing.get("share_of_floor") or 0.0, timing.get("kernels", [])
    if share > 0.9:
        return "it moves its bytes as fast as the card reads them: nothing to gain but fewer bytes"
    if len(kernels) > 2:
        return f"{len(kernels)} kernels run in a call: what one leaves for the next is written and read again"
    if share < 0.3:
        if "problem" in verdict.settings:
            return "most of the time goes to arithmetic, or to bytes that are stored only to be read again: fuse them"
        return "most of the time goes to bytes that need not be moved: do not store the convolution's output"
    return "more loads in flight: wider loads, more blocks, or several tiles a block; bench.py profile shows the stalls"


def ranking(found: Sequence[Verdict]) -> Iterator[str]:
    """All verdicts, the fastest accepted first."""
    yield "ranking"

    def key(verdict: Verdict) -> tuple[int, float]:
        rows = verdict.timing.get("rows", {})
        return (verdict.verdict != "accepted"), rows["candidate"]["us"] if rows else float("inf")

    for place, verdict in enumerate(sorted(found, key=key), 1):
        rows = verdict.timing.get("rows", {})
        own = rows.get("candidate")
        times = f"{own['us']:.2f} us [{own['low']:.2f}, {own['high']:.2f}]" if own else "not timed"
        shown = times if verdict.verdict == "accepted" else (verdict.reasons or ["no reason"])[0][:90]
        number = place if verdict.verdict == "accepted" else "-"
        yield f"  {number}  {WORDS[verdict.verdict]:<10} {verdict.file}  {shown}"
