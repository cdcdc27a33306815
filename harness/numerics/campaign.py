"""Random calls against the properties of their operator.

Kernels are compiled for a call's geometry, dtype and layout, so a run draws a bounded pool of templates
that fix those, and then thousands of examples from the pool: batch, values, multiplier, seed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from harness.cases import operators
from harness.numerics.example import Example, Miss, Skip, Template, make_case, templates, templates_of

Pool = Sequence[Template]

BLOCK = 500
"""Examples of one run of hypothesis, each with a seed of its own: a run cannot be stopped before its end."""


def draw(backend: str, device: str, pool: Pool, prop: str, template: int, seed: int) -> Example:
    """The example that these numbers stand for."""
    values = operators.of(pool[template].problem).properties()[prop].values
    case = make_case(pool[template], Random(seed), values)
    return Example(backend, device, prop, case, seed)


def check(example: Example) -> bool:
    """Check one example; False if its property says nothing about it. Raises Miss."""
    try:
        operators.of(example.case.problem).properties()[example.prop].check(example)
    except Skip:
        return False
    except Exception as error:
        raise Miss(f"{example}\n    {type(error).__name__}: {error}") from error
    return True


@dataclass
class Campaign:
    """A run on one backend. ran: examples checked, by property; skipped: those it says nothing about."""

    backend: str
    device: str
    seed: int
    templates: int
    ran: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    seconds: float = 0.0
    out_of_time: bool = False
    interrupted: bool = False
    miss: str = ""

    def report(self) -> str:
        """In one line, and the smallest miss found."""
        state = "MISS" if self.miss else "no miss" if self.ran else "nothing was checked"
        line = (
            f"{self.backend} on {self.device}: {self.ran.total()} examples, {state}; "
            f"{self.templates} templates, seed {self.seed}, {self.seconds:.0f} s"
        )
        if self.out_of_time:
            line += ", stopped by --budget-seconds"
        if self.interrupted:
            line += ", interrupted"
        counts = ", ".join(f"{name} {count}" for name, count in sorted(self.ran.items()))
        return "\n".join(filter(None, [line, f"  {counts}", self.miss]))


def search(
    backend: str,
    device: str,
    *,
    examples: int,
    seed: int,
    pool_size: int,
    budget_seconds: float = float("inf"),
    operator: Any = None,
) -> Campaign:
    """Check `examples` examples; a miss is shrunk to the smallest example that shows it, and ends the run.

    Ctrl-C ends it too, and the campaign says so and how far it came.
    operator: whose calls are drawn; without one, chains and tails.
    """
    # Only the fuzzer needs it: the other commands run without.
    import hypothesis
    from hypothesis import strategies as st

    pool = templates_of(operator, seed, pool_size) if operator else templates(seed, pool_size)
    properties = operators.of(pool[0].problem).properties()
    campaign = Campaign(backend, device, seed, len(pool))
    names = [name for name, p in properties.items() for _ in range(p.weight)]
    started = time.monotonic()

    def run(template: int, number: int) -> None:
        campaign.out_of_time = time.monotonic() - started > budget_seconds
        if campaign.out_of_time or campaign.ran.total() >= examples:
            return
        # Not drawn by hypothesis, some versions of which hardly ever take the last ones; not from the example's own
        # stream, whose first number would go with it.
        prop = Random(f"property {number}").choice(names)
        if check(draw(backend, device, pool, prop, template, number)):
            campaign.ran[prop] += 1
        else:
            campaign.skipped += 1

    numbers = st.integers(0, len(pool) - 1), st.integers(0, (1 << 32) - 1)
    try:
        for block in count():
            if campaign.out_of_time or campaign.ran.total() >= examples:
                break
            settings = hypothesis.settings(
                max_examples=BLOCK,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),  # pyright: ignore[reportArgumentType]
                phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
                print_blob=False,
            )
            hypothesis.seed((seed << 32) + block)(settings(hypothesis.given(*numbers)(run)))()
    except Miss as miss:
        campaign.miss = str(miss)
    except KeyboardInterrupt:
        campaign.interrupted = True
    campaign.seconds = time.monotonic() - started
    return campaign
