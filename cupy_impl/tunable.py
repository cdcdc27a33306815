"""Launch constants that a plan may set, each with the values that the kernels take.

Every value keeps what is promised of bits: no choice made by these constants depends on the batch, and whatever the
order of additions, it is fixed. The error budget is derived from the same constants (depth.py). They stand in the order
in which `bench.py tune` tries them: those that deal out memory first.
"""

from __future__ import annotations

REGISTERS = 64, 96, 128, 168, 255
"""Of a thread: for 32, 20, 16, 12 and 8 warps on a multiprocessor."""

TUNABLE: dict[str, tuple[int, ...]] = {
    "THREADS": (64, 128, 256),
    "AHEAD": (4, 8, 16),
    "FAR_AHEAD": (8, 16, 32),
    "PART_BYTES": (32 << 10, 64 << 10, 128 << 10, 256 << 10),
    "WHOLE_THREADS": (128, 256, 512),
    "PAIRS": (16, 32, 64, 128),
    "FLAT_ELEMENTS": (1024, 2048, 4096),
    "SMALL_BYTES": (4 << 10, 16 << 10, 64 << 10),
    "SMALL_AHEAD": (2, 4, 8),
    "WHOLE_BYTES": (64 << 10, 256 << 10, 1 << 20),
    "LINE_BYTES": (128, 256, 512),
    "BANDS_LINE_BYTES": (64, 128, 256),
    "PLANES_PART_BYTES": (64 << 10, 128 << 10, 256 << 10),
    "PLANES_SUM_REGISTERS": (64, 72, 96, 128),
    "SHARES": (8, 16, 32),
    "FILL": (64, 100, 128, 256),
    "MIN_SLICE": (16, 32, 64),
    "SLICES": (8, 16, 32),
    "PLANES_SLICES": (8, 16, 32),
    "PRODUCT_REGISTERS": REGISTERS[1:4],
    "PLANES_REGISTERS": REGISTERS[2:],
}
