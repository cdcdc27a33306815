"""How many blocks of a kernel one multiprocessor holds, from the limits of its architecture.

Limits: table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide. Allocation
units: a warp's registers come in runs of 256, on the quarter of the multiprocessor that it is scheduled on;
shared memory comes in runs of 128 bytes, and the system keeps 1 KiB per block.
"""

from __future__ import annotations

from dataclasses import dataclass

QUARTERS = 4
REGISTERS = 64 * 1024 // QUARTERS
REGISTER_RUN = 256
SHARED_RUN = 128
SHARED_SYSTEM = 1024


@dataclass(frozen=True)
class Architecture:
    """Limits of one multiprocessor: resident warps and blocks, bytes of shared memory; and a card that has it.

    sms: multiprocessors of that card.
    """

    warps: int
    blocks: int
    shared: int
    card: str
    sms: int


ARCHITECTURES = {
    80: Architecture(64, 32, 164 << 10, "A100 80GB", 108),
    86: Architecture(48, 16, 100 << 10, "RTX 3090", 82),
    89: Architecture(48, 24, 100 << 10, "RTX 4090", 128),
    90: Architecture(64, 32, 228 << 10, "H200", 132),
}


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks_per_sm(architecture: Architecture, threads: int, registers: int, shared: int) -> int:
    """Blocks that fit one multiprocessor at once; 0 if not even one does.

    threads: per block. registers: per thread. shared: bytes per block, without what the system adds.
    """
    warps = -(-threads // 32)
    per_warp = _round_up(max(registers, 1) * 32, REGISTER_RUN)
    return min(
        architecture.blocks,
        architecture.warps // warps,
        QUARTERS * (REGISTERS // per_warp) // warps,
        architecture.shared // _round_up(shared + SHARED_SYSTEM, SHARED_RUN),
    )


def occupancy(architecture: Architecture, threads: int, registers: int, shared: int) -> float:
    """Share of the multiprocessor's warps that those blocks make up."""
    blocks = blocks_per_sm(architecture, threads, registers, shared)
    return blocks * -(-threads // 32) / architecture.warps
