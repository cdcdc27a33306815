"""Launch constants that a plan may set, each with the values that the kernels take.

Every value keeps what is promised of bits: no choice made by these constants depends on the batch, and whatever the
order of additions, it is fixed. The error budget is derived from the same constants (depth.py). They stand in the order
in which `bench.py tune` tries them: those that deal out memory first.
"""

from __future__ import annotations

REGISTERS = 64, 96, 128, 168, 255
"""Of a thread: for 32, 20, 16, 12 and 8 warps on a multiprocessor."""

TUNABLE: dict[str, tuple[int, ...]] = {
    "BANDS_ELEMENTS": (32, 64, 128),
    "PART_BYTES": (32 << 10, 64 << 10, 128 << 10, 256 << 10),
    "GAP_BYTES": (16 << 10, 32 << 10, 64 << 10),
    "WHOLE_WARPS": (4, 8, 16),
    "PART_WARPS": (4, 8, 16),
    "LARGE_PLANE_BYTES": (16 << 10, 32 << 10, 64 << 10, 128 << 10),
    "FLAT_BYTES": (2 << 10, 4 << 10, 8 << 10),
    "BANDS_REGISTERS": REGISTERS[2:],
    "GAP_REGISTERS": (32, 64, 128),
    "PROGRAMS": (128, 264, 384, 512, 768),
    "RIM_ROWS": (1, 2, 4, 8),
    "FINISH": (16, 32, 64),
    "UNCUT_BYTES": (64 << 10, 256 << 10, 1 << 20),
    "PLANES_WARPS": (2, 4, 8),
    "PLANES_LINE_BYTES": (128, 256, 512),
    "BANDS_PLANES_BYTES": (64, 128, 256),
    "BANDS_PLANES_ROWS": (2, 4, 8),
    "GRID_WARPS": (2, 4, 8),
    "GRID_ACCESSES": (2, 4, 8),
    "WHOLE_BYTES": (2 << 10, 4 << 10, 8 << 10),
    "SLICES": (16, 32),
    "TAP_STEPS": (2, 4, 8),
    "FOLD_REGISTERS": REGISTERS[2:],
    "TAP_REGISTERS": REGISTERS[1:4],
}
