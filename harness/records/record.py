"""What a run found, as plain data: raw samples, provenance, environment.

Only raw samples are stored. Medians and intervals are worked out from them wherever they are shown, so a
file can never disagree with itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from harness.timing.calls import CallTimes
from harness.timing.floors import Card, Ceiling
from harness.timing.intervals import Interval, Summary, ratio_of_medians, summarise
from harness.timing.telemetry import Reading

SCHEMA = 2
Status = Literal["timed", "right", "wrong", "unavailable"]


@dataclass
class Environment:
    """Where the numbers come from."""

    date: str
    command: str
    commit: str
    platform: str
    python: str
    versions: dict[str, str]
    gpu: str | None = None
    capability: str | None = None
    driver: str | None = None
    cuda: str | None = None


@dataclass
class Result:
    """What one entry gave on one case.

    error: worst error in units of the budget, None if it gave no answer. what: what actually ran.
    how: "graph" or "events". samples: us per call, by mode: "cold" (clean), "dirty", "unflushed" or "warm".
    host_us: host time per call, one per chunk.
    extra_bytes: peak memory beyond the inputs. first_call_s: seconds, by state of the disk cache.
    """

    entry: str
    status: Status
    what: str = ""
    reason: str = ""
    error: float | None = None
    how: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    host_us: list[float] = field(default_factory=list)
    extra_bytes: int | None = None
    first_call_s: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def summary(self, mode: str) -> Summary | None:
        """Summary of the samples of `mode`, None if there are none."""
        return summarise(self.samples[mode]) if self.samples.get(mode) else None


@dataclass
class CaseRecord:
    """One case: which problem it is, its floors in us by mode, and one result per entry.

    op, shape, dtype, layout, values, multiplier ("tensor" or a number) and seed say which problem; the last three are
    None in a record older than they are. marks: by mode, one list per round of what disturbed it. ended: by mode, what
    stopped the measurement. pairwise: largest difference between two entries in units of the sum of their budgets.
    reference: the entry that speed-ups are over. unmade: why there are no inputs or no truth, and so no results.
    """

    name: str
    op: str
    shape: str
    dtype: str
    layout: str
    why: str
    compulsory_bytes: int
    values: str | None = None
    multiplier: str | None = None
    seed: int | None = None
    reference: str | None = None
    working_set_over_l2: float | None = None
    floor_us: dict[str, float | None] = field(default_factory=dict)
    datasheet_us: float | None = None
    rtx4090_us: float | None = None
    results: list[Result] = field(default_factory=list)
    pairwise: dict[str, dict[str, float]] = field(default_factory=dict)
    marks: dict[str, list[list[str]]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    before: Reading | None = None
    after: Reading | None = None
    flags: list[str] = field(default_factory=list)
    unmade: str = ""

    def result(self, entry: str) -> Result | None:
        """Result of that entry, None if the case has none."""
        return next((result for result in self.results if result.entry == entry), None)

    def speed_up(self, result: Result, mode: str) -> tuple[float, Interval] | None:
        """How many times faster than the reference, with its interval; paired by round."""
        base = self.result(self.reference) if self.reference else None
        if base is None or not result.samples.get(mode) or not base.samples.get(mode):
            return None
        above, below = summarise(base.samples[mode]).median, summarise(result.samples[mode]).median
        return above / below, ratio_of_medians(base.samples[mode], result.samples[mode], paired=True)


@dataclass
class Run:
    """One run of the lab.

    finished is False when it was interrupted. lost: by case, the entries that made the GPU unusable for the process
    that ran them, each with its error; the run went on without them in a process of its own.
    """

    environment: Environment
    settings: dict[str, str]
    card: Card | None = None
    ceilings: list[Ceiling] = field(default_factory=list)
    cases: list[CaseRecord] = field(default_factory=list)
    calls: list[CallTimes] = field(default_factory=list)
    lost: dict[str, dict[str, str]] = field(default_factory=dict)
    finished: bool = True
    schema: int = SCHEMA

    def wrong(self) -> list[tuple[CaseRecord, Result]]:
        """Every result that was outside its budget."""
        return [(case, found) for case in self.cases for found in case.results if found.status == "wrong"]
