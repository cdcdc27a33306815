"""Which source lines load and store each buffer of a kernel, read off its PTX."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.machine.compilers import Binary


@dataclass
class Accesses:
    """Source lines from which one buffer is stored and loaded."""

    stores: set[str]
    loads: set[str]


_PARAM = re.compile(r"ld\.param\.[ub]64\s+(%\w+),\s*\[\w+_param_(\d+)\]")
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_PTX = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+(.+?);")


def _kernel(ptx: str) -> str:
    """The kernel's own text: functions that it calls count registers and parameters anew."""
    start = max(ptx.find(".entry"), 0)
    return ptx[start : ptx.find("\n}", start)]


def buffer_accesses(binary: Binary) -> dict[str, Accesses]:
    """Which source lines load and store each pointer parameter, found by following addresses through the PTX.

    An address belongs to every parameter that it was computed from; a loaded value belongs to none. Atomic
    operations are neither loads nor stores here.
    """
    lines = [line.split("//")[0] for line in _kernel(binary.ptx).splitlines()]
    owners: dict[str, set[str]] = {}
    moves: list[tuple[str, list[str]]] = []
    for line in lines:
        if found := _PARAM.search(line):
            name = binary.pointers.get(int(found[2]))
            owners.setdefault(found[1], set()).update({name} if name else set())
        elif (found := _PTX.match(line)) and not found[1].startswith(("ld", "st", "atom", "red", "setp")):
            registers = re.findall(r"%rd\d+", found[2])
            if registers and found[2].lstrip("{ ").startswith("%rd"):
                moves.append((registers[0], registers[1:]))
    # Loops carry addresses backwards: repeat until nothing new is learnt.
    changed = True
    while changed:
        changed = False
        for target, sources in moves:
            known = owners.setdefault(target, set())
            learnt = set().union(*(owners.get(source, set()) for source in sources)) - known
            known |= learnt
            changed |= bool(learnt)
    accesses = {name: Accesses(set(), set()) for name in binary.pointers.values()}
    place = ""
    for line in lines:
        if found := _LOC.search(line):
            place = f"{found[1]}:{found[2]}"
        elif (found := _PTX.match(line)) and (kind := found[1].split(".")[0]) in ("ld", "st"):
            address = re.search(r"\[\s*(%\w+)", found[2])
            for name in owners.get(address[1], set()) if address else ():
                getattr(accesses[name], "stores" if kind == "st" else "loads").add(place)
    return accesses
