"""Published figures of cards, as a brief states them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """A card by its datasheet. bandwidth in GB/s, tf32 and half in dense TFLOP/s, shared memory in KB, L2 in MB.

    names: what torch may call it.
    """

    name: str
    architecture: str
    capability: str
    sms: int
    bandwidth: int
    fp32: float
    tf32: float
    half: float
    threads_per_sm: int
    shared_per_sm: int
    shared_per_block: int
    l2: int
    names: tuple[str, ...]

    @property
    def warps(self) -> int:
        """Warps that a multiprocessor holds."""
        return self.threads_per_sm // 32


CARDS = {
    "4090": Figures(
        "RTX 4090",
        "Ada Lovelace",
        "8.9",
        128,
        1008,
        82.6,
        82.6,
        165.2,
        1536,
        100,
        99,
        72,
        ("NVIDIA GeForce RTX 4090",),
    ),
    "h100": Figures(
        *("H100 SXM", "Hopper", "9.0", 132, 3350, 66.9, 494.7, 989.4, 2048, 228, 227, 50),
        ("NVIDIA H100 80GB HBM3",),
    ),
    "a100": Figures(
        *("A100 SXM 80GB", "Ampere", "8.0", 108, 2039, 19.5, 156.0, 312.0, 2048, 164, 163, 40),
        ("NVIDIA A100-SXM4-80GB",),
    ),
}


def of(name: str) -> str | None:
    """Key of the card that torch calls by this name, if its figures are here."""
    return next((key for key, card in CARDS.items() if name in card.names), None)
