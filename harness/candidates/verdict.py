"""What the judge says of a candidate: data, and its JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
VERDICTS = ("accepted", "wrong", "refused", "crashed", "timeout")
UNJUDGED = "unjudged"  # the judge itself could not: no GPU for a file that needs one


@dataclass(frozen=True)
class Found(Exception):
    """What ends an examination: a verdict other than accepted, and its reason, "kind: sentence"."""

    verdict: str
    reason: str


@dataclass
class Check:
    """One thing that was asked. worst: error in units of the budget, None where no number says it."""

    name: str
    passed: bool
    message: str = ""
    worst: float | None = None


@dataclass
class Verdict:
    """All that was found about one file.

    reasons: why it was not accepted, each "kind: sentence". notes: what is worth knowing and no fault.
    """

    file: str
    form: str
    verdict: str = "accepted"
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    timing: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def worst(self) -> float | None:
        """Largest error of all checks, in units of the budget."""
        return max((check.worst for check in self.checks if check.worst is not None), default=None)

    absolute_error: float = 0.0
    relative_error: float = 0.0

    def document(self) -> dict[str, Any]:
        """The verdict for a JSON file; numbers that JSON lacks are texts."""
        return _plain({"schema": SCHEMA, **asdict(self), "worst_in_budgets": self.worst})


def exit_code(found: list[Verdict]) -> int:
    """0 if all were accepted, 3 if one could not be judged, else 1."""
    kinds = {verdict.verdict for verdict in found}
    if kinds - {"accepted", UNJUDGED}:
        return 1
    return 3 if UNJUDGED in kinds else 0


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
