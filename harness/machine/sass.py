"""Machine code as nvdisasm prints it: what an instruction moves, and what a thread has under way."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction: its name with modifiers, the general registers it writes and reads."""

    mnemonic: str
    written: frozenset[int]
    read: frozenset[int]


_SASS = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_NO_RESULT = ("ST", "RED", "BRA", "EXIT", "BAR", "ISETP", "FSETP", "DSETP", "MEMBAR", "CCTL")


def parse_sass(line: str) -> Instruction | None:
    """One line of nvdisasm; None if it is no instruction."""
    match = _SASS.search(line)
    if match is None:
        return None
    mnemonic, operands = match[1], match[2].split(",")
    count = max(1, width_of(mnemonic) // 32) if mnemonic.startswith(("LDG", "LDL", "LDS")) else 1
    result = operands[0] if operands and not mnemonic.startswith(_NO_RESULT) else ""
    written = [int(r) + i for r in re.findall(r"\bR(\d+)", result) for i in range(count)]
    sources = operands[1:] if result else operands
    used = [int(r) for text in sources for r in re.findall(r"\bR(\d+)", text)]
    if mnemonic.startswith("ST"):
        used += [r + i for r in used[-1:] for i in range(max(1, width_of(mnemonic) // 32))]
    return Instruction(mnemonic, frozenset(written), frozenset(used))


def width_of(mnemonic: str) -> int:
    """Bits that a load or store moves per thread."""
    for part in mnemonic.split("."):
        if part in ("64", "128", "256"):
            return int(part)
        if part in ("U8", "S8", "8"):
            return 8
        if part in ("U16", "S16", "16"):
            return 16
    return 32


def widths(mnemonics: list[str], prefix: str) -> dict[str, int]:
    counted = Counter(width_of(name) for name in mnemonics if name.startswith(prefix))
    return {str(bits): counted[bits] for bits in sorted(counted, reverse=True)}


def bytes_in_flight(code: list[Instruction]) -> int:
    """Most bytes of global loads issued by a thread before an instruction needs one of them.

    Read from top to bottom: a loop counts once, as it is written in the machine code.
    """
    most = 0
    pending: dict[int, int] = {}
    for instruction in code:
        if pending.keys() & (instruction.read | instruction.written):
            pending.clear()
        if instruction.mnemonic.startswith("LDG") and instruction.written:
            size = width_of(instruction.mnemonic) // 8
            pending |= dict.fromkeys(instruction.written, 0)
            pending[min(instruction.written)] = size
            most = max(most, sum(pending.values()))
    return most
