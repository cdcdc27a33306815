"""`bench.py fuzz`: random calls against what must hold for every call."""

from __future__ import annotations

import argparse
from typing import Any

import torch

import convgap
from harness.errors import UsageError
from harness.numerics.campaign import search
from harness.options import count, seed, words

SUMMARY = "draw random calls and check what must hold for every call"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py fuzz`."""
    parser.add_argument("--backends", type=words, metavar="LIST", help="default: all that run here")
    parser.add_argument("--examples", type=count, default=1000, help="per backend (default: 1000)")
    parser.add_argument("--seed", type=seed, default=0, help="of the templates and examples (default: 0)")
    parser.add_argument(
        "--templates",
        type=count,
        default=40,
        help="distinct geometries, each one a compilation (default: 40)",
    )
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), metavar="S", help="stop a backend after this"
    )


def run(args: argparse.Namespace) -> int:
    """Print one line a backend; 0 if examples were drawn and none missed, else 1."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usable = {status.name: status for status in convgap.status(device)}
    for name in args.backends or ():
        if name not in usable:
            raise UsageError(f"--backends: expected some of {', '.join(usable)}, got {name!r}")
        if not usable[name].usable:
            raise UsageError(f"backend {name!r} is not usable on {device}: {usable[name].reason}")
    chosen = args.backends or [name for name, status in usable.items() if status.usable]
    if not args.budget_seconds > 0:
        raise UsageError(f"--budget-seconds: expected a positive number, got {args.budget_seconds}")
    missed = False
    for name in chosen:
        options: dict[str, Any] = {"examples": args.examples, "seed": args.seed, "pool_size": args.templates}
        found = search(name, device, **options, budget_seconds=args.budget_seconds)
        print(found.report(), flush=True)
        missed = missed or bool(found.miss) or not found.ran
    return int(missed)
