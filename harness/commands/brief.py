"""`bench.py brief`: the task that candidates answer, for people and for programs that write kernels."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from harness.candidates import brief, cards, export
from harness.errors import UsageError
from harness.files import require_writable, write_whole
from harness.options import refuse

SUMMARY = "write the task that candidates answer: card, rules, current code, its counters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py brief`."""
    parser.add_argument(
        "--card", choices=cards.CARDS, help="target (default: this card if its figures are here, or 4090)"
    )
    parser.add_argument("--stage", choices=brief.STAGES, default="memory", help="what to work on (%(default)s)")
    parser.add_argument("--code", type=Path, metavar="FILE", help="the current code (default: what export writes)")
    parser.add_argument("--strategy", choices=export.STRATEGIES, default="collapsed", help="of the exported code")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="counters: the JSON that bench.py profile wrote")
    parser.add_argument("--entry", help="whose counters (default: the first in the file)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """Write the brief."""
    require_writable(args, "output")
    if not args.profile:
        refuse(args, ("entry",), "expected together with --profile")
    if args.code:
        refuse(args, ("strategy",), "expected without --code, which is the code")
    here = cards.of(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    key = args.card or here or "4090"
    code = _read(args.code) if args.code else export.source(args.strategy)
    found = {}
    if args.profile:
        try:
            found = brief.counters(json.loads(_read(args.profile)), args.entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{args.profile}: {error}") from None
    measured = _measured() if key == here else []
    text = brief.text(cards.CARDS[key], stage=args.stage, code=code, counters=found, measured=measured)
    if args.output:
        write_whole(args.output, text)
        print(f"wrote {args.output}")
    else:
        sys.stdout.write(text)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None


def _measured() -> list[str]:
    """What this card gives, as a line each."""
    from harness.timing.floors import Ceilings
    from harness.timing.session import flusher

    device = torch.device("cuda", torch.cuda.current_device())
    ceilings = Ceilings(device, {"cold": flusher("read", device)})
    return [
        f"Measured here: {ceiling.kind} {ceiling.gb_per_s:.0f} GB/s" for ceiling in ceilings.large() if ceiling.size
    ]
