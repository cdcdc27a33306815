"""Signs in a candidate's text of what cannot be seen in its answers here, such as what it does to a GPU's cache.

Few, and each one certain: everything else is found by what a candidate does (checks.py, inside/watch.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PERSISTING = re.compile(
    r"PersistingL2|persisting_l2|PERSISTING_L2|accessPolicyWindow|access_policy_window|ACCESS_POLICY_WINDOW"
)
JOINS = (
    "wait_stream",
    "wait_event",
    "synchronize",
    "cudaStreamWaitEvent",
    "cuStreamWaitEvent",
    "record_event",
)
STREAM = re.compile(r"(?:torch|cupy|cp)\.cuda\.Stream\(|cudaStreamCreate|cuStreamCreate|getStreamFromPool")
VERDICT = re.compile(
    r"""(?i:"verdict"\s*:)
    | (?i:\bverdict\b.{0,20}\baccepted\b)
    | (?i:\b(?:all|\d+\ of\ \d+)\ (?:tests|checks)\ passed\b)
    | (?i:^\W*accepted\W*$)
    | (?i:\b\d+\ of\ \d+\ accepted\b)
    | ^\W*(?:\d+\W+)?ACCEPTED\b""",
    re.VERBOSE | re.MULTILINE,
)
"""What reads like a line of the judge's own: other things than a candidate are accepted, as a configuration is."""


def signs(sources: dict[str, str]) -> Iterator[str]:
    """Reasons, each "kind: sentence", to refuse the files whatever they answer. sources: without comments."""
    for name, code in sources.items():
        if found := PERSISTING.search(code):
            yield f"persisting: {name} sets part of the L2 aside, where no flush reaches ({found[0]})"
        if (found := STREAM.search(code)) and not any(join in code for join in JOINS):
            yield f"stream: {name} works on a stream of its own that nothing joins ({found[0]}...)"


def printed(text: str) -> Iterator[str]:
    """Reasons in what a candidate printed."""
    if found := VERDICT.search(text):
        line = next((line for line in text.splitlines() if found[0] in line), found[0])
        yield f"verdict: printed a verdict of its own: {line.strip()[:120]}"
