"""`bench.py inspect`: both kernel sets compiled for a card that need not be there, and the fusion audit."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from harness.cases.catalogue import select
from harness.console import console
from harness.errors import UsageError
from harness.files import add_outputs, check_outputs, write_outputs
from harness.machine import audit
from harness.machine.compiled import CASES, Compiled, collect_elsewhere
from harness.machine.occupancy import ARCHITECTURES, Architecture, blocks_per_sm, occupancy
from harness.options import words
from harness.show.text import new_table, number

SUMMARY = "what the compilers make of both kernel sets for a given architecture; needs no GPU"
BASELINE = "baseline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py inspect`."""
    parser.add_argument(
        "--arch",
        type=int,
        choices=sorted(ARCHITECTURES),
        default=89,
        help="compute capability without its dot (default: 89, the RTX 4090)",
    )
    parser.add_argument(
        "--cases",
        type=words,
        default=CASES,
        metavar="LIST",
        help="sets, names or globs, as bench.py list has them (default: one case of each operator, dtype and layout)",
    )
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table; 1 if a kernel of the two sets breaks a rule of the audit."""
    check_outputs(args, "inspect")
    try:
        select(args.cases)
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = collect_elsewhere(args.arch, args.cases)
    text = render(found, args.arch)
    block = render([item for item in found if item.main], args.arch)
    write_outputs(args, "inspect", text, document(found, args.arch), block=block)
    return int(any(audit.violations(item) for item in found if item.backend != BASELINE))


def resident(item: Compiled, architecture: Architecture) -> int:
    """Blocks of the kernel that one multiprocessor of the card holds, were there enough of them."""
    return blocks_per_sm(architecture, item.threads, item.registers, item.shared)


def in_flight_per_sm(item: Compiled, architecture: Architecture) -> int:
    """Bytes of global loads that one multiprocessor of the card can have under way, grid considered."""
    blocks = min(resident(item, architecture), -(-item.grid // architecture.sms))
    return item.in_flight * item.threads * blocks


def waves(item: Compiled, architecture: Architecture) -> float:
    """How many times the grid fills the card."""
    return item.grid / (architecture.sms * max(1, resident(item, architecture)))


def derived(item: Compiled, arch: int) -> dict[str, object]:
    """What follows from the facts on the architecture's card."""
    architecture = ARCHITECTURES[arch]
    return {
        "blocks_per_sm": resident(item, architecture),
        "occupancy": occupancy(architecture, item.threads, item.registers, item.shared),
        "waves": waves(item, architecture),
        "in_flight_per_sm": in_flight_per_sm(item, architecture),
        "spills": item.spills,
        "audit": audit.violations(item),
    }


def document(found: Iterable[Compiled], arch: int) -> dict[str, object]:
    """Facts and what follows from them."""
    kernels = [asdict(item) | derived(item, arch) for item in found]
    return {"arch": arch, "card": ARCHITECTURES[arch].card, "kernels": kernels}


def render(found: list[Compiled], arch: int) -> str:
    """The tables as text of 100 columns: per case and kernel, Triton above CUDA."""
    out = io.StringIO()
    card = ARCHITECTURES[arch]
    with redirect_stdout(out):
        shown = console(out)
        for line in (
            f"Compiled for sm_{arch}, figures per multiprocessor of an {card.card} ({card.sms} of them).",
            "",
            "regs      registers per thread          spill  local-memory instructions, in machine code",
            "stack     bytes per thread              smem   bytes of shared memory per block",
            "CTAs      blocks that fit one SM        occ    share of the SM's warps that they make up",
            "waves     grid over what the card holds",
            "flight    KiB of global loads that one SM can have under way (grid considered)",
            "bits      widest global load            ld,st  global load and store instructions",
            "stmt      most statements that store to one buffer",
            "audit     ok, or the first letter of each broken rule (listed below)",
            "* the kernel that the case launches; the others are for training or other shapes",
        ):
            shown.print(line)
        for case in dict.fromkeys(item.case for item in found):
            shown.print()
            shown.print(case)
            shown.print(_table([item for item in found if item.case == case], arch))
        shown.print()
        shown.print("fusion audit: " + ", ".join(RULES))
        shown.print()
        broken = [(item, line) for item in found for line in audit.violations(item)]
        for item, line in broken:
            shown.print(Text(f"{item.backend} {item.case} {item.kernel}: {line}"), soft_wrap=True)
        sets = [item for item in found if item.backend != BASELINE]
        bad = sum(bool(audit.violations(item)) for item in sets)
        shown.print(f"{len(sets)} kernels of the two sets, {bad} break a rule")
    return out.getvalue()


RULES = ("o one store per output", "y nothing of the size of y", "r no reload", "s no spill")
_LETTERS = {"one store": "o", "no y": "y", "no reload": "r", "no spill": "s"}


def _table(items: list[Compiled], arch: int) -> Table:
    architecture = ARCHITECTURES[arch]
    headers = (
        *("kernel", "backend", "regs", "spill", "stack", "smem", "CTAs", "occ", "waves", "flight"),
        *("bits", "ld", "st", "stmt", "audit"),
    )
    table = new_table(headers, 2)
    order = list(dict.fromkeys(item.kernel for item in items))
    for item in sorted(items, key=lambda item: order.index(item.kernel)):
        broken = "".join(dict.fromkeys(_LETTERS[line.split(":")[0]] for line in audit.violations(item)))
        share = occupancy(architecture, item.threads, item.registers, item.shared)
        table.add_row(
            item.kernel + (" *" if item.main else ""),
            item.backend,
            *(str(value) for value in (item.registers, item.spills, item.stack, item.shared)),
            str(resident(item, architecture)),
            f"{share:.0%}",
            number(waves(item, architecture), 2),
            number(in_flight_per_sm(item, architecture) / 1024),
            str(item.width),
            str(sum(item.loads.values())),
            str(sum(item.stores.values())),
            str(max(item.stored.values(), default=0)),
            broken or "ok",
        )
    return table
