"""`bench.py fuzz`: random calls against what must hold for every call."""

from __future__ import annotations

import argparse
from typing import Any

import torch

import convgap
from harness.errors import UsageError
from harness.numerics.campaign import search
from harness.options import add_operator, chosen_operator, count, require_known, seed, words

SUMMARY = "draw random calls and check what must hold for every call"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py fuzz`."""
    add_operator(parser)
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
    """Print one line a backend; 0 if examples were drawn and none missed, else 1; 130 after Ctrl-C."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    operator = chosen_operator(args)
    usable = _reasons(operator, device)
    require_known("backends", args.backends, usable)
    for name in args.backends or ():
        if usable[name]:
            raise UsageError(f"backend {name!r} is not usable on {device}: {usable[name]}")
    chosen = args.backends or [name for name, reason in usable.items() if not reason]
    if not args.budget_seconds > 0:
        raise UsageError(f"--budget-seconds: expected a positive number, got {args.budget_seconds}")
    missed = False
    for name in chosen:
        options: dict[str, Any] = {"examples": args.examples, "seed": args.seed, "pool_size": args.templates}
        found = search(name, device, **options, budget_seconds=args.budget_seconds, operator=operator)
        print(found.report(), flush=True)
        if found.interrupted:
            raise KeyboardInterrupt
        missed = missed or bool(found.miss) or not found.ran
    return int(missed or not chosen)


def _reasons(operator: Any, device: str) -> dict[str, str]:
    """Why each backend cannot run on the device, "" if it can: convgap's, or an operator's own."""
    if operator:
        ways = operator.implementations.items()
        return {name: way.unusable(torch.device(device)) for name, way in ways if way.product}
    return {status.name: "" if status.usable else status.reason for status in convgap.status(device)}
