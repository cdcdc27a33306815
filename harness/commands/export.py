"""`bench.py export`: one self-contained file with a ModelNew, written or checked."""

from __future__ import annotations

import argparse
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path

import torch

from harness.candidates import export, forms, judging, page
from harness.candidates.verdict import exit_code
from harness.errors import UsageError
from harness.files import require_writable, write_whole
from harness.options import refuse
from runtime import plan

SUMMARY = "write a single file with a ModelNew (KernelBench's form), or check one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py export`."""
    parser.add_argument(
        "--strategy",
        choices=export.STRATEGIES,
        default="collapsed",
        help="collapsed: never store the convolution output (default); tail: torch's convolution, then one "
        "fused kernel",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write (default: standard output)")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check a file instead, as judge --rules strict does")
    parser.add_argument("--form-only", action="store_true", help="with --check: do not run the file")


def run(args: argparse.Namespace) -> int:
    """Write, or check; the exit code of a check is that of `bench.py judge`."""
    if args.check:
        refuse(args, ("output", "strategy"), "expected without --check, which writes no file")
        return _check(args.check, run_it=not args.form_only)
    refuse(args, ("form_only",), "expected together with --check")
    if plan.active():
        raise UsageError(f"the file gets the launch constants as shipped: unset {plan.VARIABLE}")
    require_writable(args, "output")
    text = export.source(args.strategy)
    if args.output:
        write_whole(args.output, text)
        print(f"wrote {args.output}")
    else:
        sys.stdout.write(text)
    return 0


def _check(path: Path, *, run_it: bool) -> int:
    settings = judging.Settings(secrets.randbits(31), torch.cuda.is_available(), strict=True, run=run_it)
    with ExitStack() as stack:
        verdict = judging.judge(forms.read(path, "kernelbench"), settings, stack).verdict
    print("\n".join(page.lines(verdict)))
    return exit_code([verdict])
