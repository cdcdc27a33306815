"""More than two records in a row: how each entry's time on each case went from one commit to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.records.differences import EFFECT, Change, compare
from harness.records.record import Run


@dataclass(frozen=True)
class Line:
    """One entry on one case in one mode: medians in us, one a record, None where it was not timed.

    last: what the newest record changed against the one before it.
    """

    case: str
    entry: str
    mode: str
    medians: tuple[float | None, ...]
    last: Change | None


def history(runs: Sequence[Run], effect: float = EFFECT) -> list[Line]:
    """A line for everything that any of the records timed, in the newest record's order. The oldest comes first."""
    steps = [compare(old, new, effect) for old, new in pairwise(runs)]
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for i, changes in reversed(list(enumerate(steps))):
        for change in changes:
            medians = found.setdefault((change.case, change.entry, change.mode), {})
            medians |= {at: us for at, us in ((i, change.old_us), (i + 1, change.new_us)) if us == us}
    last = {(change.case, change.entry, change.mode): change for change in steps[-1]}
    return [
        Line(*key, tuple(medians.get(i) for i in range(len(runs))), last.get(key)) for key, medians in found.items()
    ]
