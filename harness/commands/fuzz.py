"""`bench.py fuzz`: random calls against the properties of harness/numerics/properties.py.

Kernels are compiled for a call's sizes, geometry, dtype and layout, so a run draws a bounded pool of templates
that fix those, and then thousands of examples from the pool: batch, values, multiplier, seed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import torch

import convgap
from harness.errors import UsageError
from harness.numerics.properties import PROPERTIES, Example, Miss, Template, check, make_case, templates
from harness.options import words

SUMMARY = "draw random calls and check what must hold for every call"

Pool = Sequence[Template]

BLOCK = 500
"""Examples of one run of hypothesis, each with a seed of its own: a run cannot be stopped before its end."""


def draw(backend: str, device: str, pool: Pool, prop: str, template: int, seed: int) -> Example:
    """The example that these numbers stand for."""
    case = make_case(pool[template], Random(seed), PROPERTIES[prop].values)
    return Example(backend, device, prop, case, seed)


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
    miss: str = ""

    def report(self) -> str:
        """In one line, and the smallest miss found."""
        state = "MISS" if self.miss else "no miss"
        line = (
            f"{self.backend} on {self.device}: {self.ran.total()} examples, {state}; "
            f"{self.templates} templates, seed {self.seed}, {self.seconds:.0f} s"
        )
        if self.out_of_time:
            line += ", stopped by --budget-seconds"
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
) -> Campaign:
    """Check `examples` examples; a miss is shrunk to the smallest example that shows it, and ends the run."""
    # Only the fuzzer needs it: the other commands run without.
    import hypothesis
    from hypothesis import strategies as st

    pool = templates(seed, pool_size)
    campaign = Campaign(backend, device, seed, len(pool))
    names = [name for name, p in PROPERTIES.items() for _ in range(p.weight)]
    started = time.monotonic()

    def run(template: int, prop: str, number: int) -> None:
        campaign.out_of_time = time.monotonic() - started > budget_seconds
        if campaign.out_of_time or campaign.ran.total() >= examples:
            return
        if check(draw(backend, device, pool, prop, template, number)):
            campaign.ran[prop] += 1
        else:
            campaign.skipped += 1

    numbers = st.integers(0, len(pool) - 1), st.sampled_from(names), st.integers(0, (1 << 32) - 1)
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
    campaign.seconds = time.monotonic() - started
    return campaign


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py fuzz`."""
    parser.add_argument("--backends", type=words, metavar="LIST", help="default: all that run here")
    parser.add_argument("--examples", type=int, default=1000, help="per backend (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the templates and examples (default: 0)")
    parser.add_argument(
        "--templates", type=int, default=40, help="distinct geometries, each one a compilation (default: 40)"
    )
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), metavar="S", help="stop a backend after this"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line a backend; 0 if nothing missed, else 1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usable = {status.name: status for status in convgap.status(device)}
    for name in args.backends or ():
        if name not in usable:
            raise UsageError(f"--backends: expected some of {', '.join(usable)}, got {name!r}")
        if not usable[name].usable:
            raise UsageError(f"backend {name!r} is not usable on {device}: {usable[name].reason}")
    chosen = args.backends or [name for name, status in usable.items() if status.usable]
    missed = False
    for name in chosen:
        options: dict[str, Any] = {"examples": args.examples, "seed": args.seed, "pool_size": args.templates}
        found = search(name, device, **options, budget_seconds=args.budget_seconds)
        print(found.report(), flush=True)
        missed = missed or bool(found.miss)
    return int(missed)
