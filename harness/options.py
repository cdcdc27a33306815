"""Command-line options that several commands share: which cases, which entries."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from harness.cases import operators, spelling
from harness.cases.case import LAYOUTS, VALUES, Case
from harness.cases.catalogue import SETS, select
from harness.entries.entry import Entry, choose
from harness.errors import UsageError

DTYPES = ("float32", "float16", "bfloat16", "float64")


def words(text: str) -> list[str]:
    """Words of a comma-separated option, each once; a list without any asks for nothing, and is refused."""
    found = list(dict.fromkeys(word for word in (part.strip() for part in text.split(",")) if word))
    if not found:
        raise argparse.ArgumentTypeError(f"expected words separated by commas, got {text!r}")
    return found


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1, 1 << 62)


def seed(text: str) -> int:
    """A whole number that every generator takes as its seed."""
    return _whole(text, 0, (1 << 32) - 1)


def _whole(text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
    return int(text)


def refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """UsageError for the first of the options that was given, where it would be ignored: `why` says why it would."""
    for name in names:
        if getattr(args, name) != args.default(name):
            raise UsageError(f"--{name.replace('_', '-')}: {why}")


def require_known(option: str, values: Iterable[str] | None, known: Collection[str]) -> None:
    """UsageError for the first of the option's words that is none of those known; None stands for no words."""
    for value in values or ():
        if value not in known:
            raise UsageError(f"--{option}: expected some of {', '.join(known)}, got {value!r}")


def add_operator(parser: Any) -> None:
    """The option that puts an operator of one's own in the place of chain and tail."""
    parser.add_argument(
        "--operator",
        type=Path,
        metavar="FILE",
        help="an operator of your own, which FILE describes as OPERATOR (docs/design.md), in place of "
        f"{' and '.join(operators.BUILT_IN)}",
    )


def chosen_operator(args: argparse.Namespace) -> Any:
    """The operator of the command line, loaded; None for the project's own. UsageError if it cannot be loaded."""
    return operators.load(args.operator) if args.operator else None


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose cases and entries."""
    add_operator(parser)
    group = parser.add_argument_group("cases and entries (lists are separated by commas)")
    group.add_argument(
        "--cases",
        type=words,
        metavar="LIST",
        help=f"sets ({', '.join(SETS)}), names or globs such as 'tail/*'",
    )
    group.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="SHAPE",
        help=f"a case of your own: {spelling.usage()}; may be repeated",
    )
    group.add_argument("--op", choices=operators.BUILT_IN, help="only this operator")
    group.add_argument(
        "--dtype", type=words, metavar="LIST", help=f"run the cases in these dtypes: {', '.join(DTYPES)}"
    )
    group.add_argument(
        "--layout", type=words, metavar="LIST", help=f"run the cases in these layouts: {', '.join(LAYOUTS)}"
    )
    group.add_argument("--values", metavar="KIND", help=f"values of x: {', '.join(VALUES)}")
    group.add_argument(
        "--multiplier",
        metavar="M",
        help="a number, or 'tensor' for one value a channel (default: the case's)",
    )
    group.add_argument("--backends", type=words, metavar="LIST", help="only these entries")
    group.add_argument(
        "--seed", type=seed, default=0, help="seed of the inputs and of the order of entries (default: 0)"
    )


def chosen_entries(args: argparse.Namespace, *, gpu: bool) -> list[Entry]:
    """Entries of the command line; without any, all that make sense here. UsageError for what does not exist."""
    own = chosen_operator(args)
    try:
        return choose(args.backends, gpu=gpu, table=own and own.entries())
    except ValueError as error:
        raise UsageError(str(error)) from None


def chosen_cases(args: argparse.Namespace, default: Sequence[str], *, gpu: bool) -> list[Case]:
    """Cases of the command line, at the size that fits the machine. UsageError for what does not exist.

    default: the sets without any; of an operator of one's own those of them that it has, or all it has.
    """
    operator = chosen_operator(args)
    sets = operator.cases if operator else SETS
    dtypes, layouts = (operator.dtypes, operator.layouts) if operator else (DTYPES, LAYOUTS)
    if operator:
        default = [name for name in default if name in sets] or list(sets)
    for name, values, known in (("dtype", args.dtype, dtypes), ("layout", args.layout, layouts)):
        if unknown := [value for value in values or [] if value not in known]:
            raise UsageError(f"--{name}: unknown {name} {unknown[0]!r}, expected some of {', '.join(known)}")
    try:
        own = [spelling.own_case(spelling.parse(text), "given on the command line") for text in args.shape]
        named = list(select(args.cases or default, op=args.op, gpu=gpu, sets=sets)) if args.cases or not own else []
    except ValueError as error:
        raise UsageError(str(error)) from None
    for case in own:
        if operator and case.op != operator.name:
            raise UsageError(f"--shape: expected {operator.usage} with --operator, got {spelling.spell(case.problem)}")
        require_memory(case)
    cases = [*named, *(case for case in own if args.op in (None, case.op))]
    if not gpu:
        cases = [case.small() for case in cases]
    cases = [
        spelling.variant(case, dtype, layout)
        for case, dtype, layout in product(cases, args.dtype or [None], args.layout or [None])
    ]
    cases = list({case.name: case for case in cases}.values())
    if not cases:
        raise UsageError(f"no case is left: --op {args.op} excludes all that were chosen")
    cases = [replace(case, seed=case.seed + args.seed) for case in cases]
    if args.values is not None:
        kinds = operator.values if operator else VALUES
        if args.values not in kinds:
            raise UsageError(f"--values: expected one of {', '.join(kinds)}, got {args.values!r}")
        cases = [replace(case, values=args.values) for case in cases]
    if args.multiplier is not None:
        if operator and not operator.multiplied:
            raise UsageError(f"--multiplier: {operator.name} has none")
        cases = [replace(case, multiplier=_multiplier(args.multiplier)) for case in cases]
    return cases


def require_memory(case: Case) -> None:
    """UsageError if the float64 truth of a case of one's own cannot fit this machine."""
    # Each tensor, and the same in float64.
    needed = 12 * sum(prod(size) for size in operators.of(case.problem).shapes(case.problem))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UsageError(
            f"--shape {spelling.spell(case.problem)}: needs {needed / 2**30:.3g} GiB to be checked, this machine has "
            f"{there / 2**30:.3g}"
        )


def _multiplier(text: str) -> float | None:
    if text == "tensor":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--multiplier: expected a number or 'tensor', got {text!r}") from None
