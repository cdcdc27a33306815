"""Is a compiled kernel as fused as it claims? Four rules, and the exceptions with their reasons.

one store    every buffer is stored by one statement of the kernel's source, as the debug lines of the PTX tell
no y         the call allocates nothing of the size of y: less than a sixteenth of its bytes, or what any L2 holds
no reload    no buffer is both stored and loaded by one kernel
no spill     no local-memory instruction in the machine code: stack that none touches, which ptxas sets aside for a
             division of float64 say, holds no register
"""

from __future__ import annotations

from harness.machine.compiled import Compiled

WORKSPACE_SHARE = 1 / 16
"""What is less than this share of y's traffic cannot be seen in the time of a kernel that reads y."""

WORKSPACE_BYTES = 8 << 20
"""What is less stays in the L2 between two launches, however small y is: a ninth of an RTX 4090's."""

RELOADS = {"partials": "blocks hand their sums to the last one of them, which alone loads them: a few KiB, from L2"}
"""Buffers that a kernel may store and load."""

STORES = {
    ("triton", "band_fill", "dx"): (
        2,
        "the rows that all bands share and the rims: two loops, each element stored by one of them",
    ),
    ("cupy", "band_sums", "sums"): (
        2,
        "by every block where planes are whole, by the last one where they come in parts: a launch does one of the two",
    ),
}
"""Statements allowed beyond one, by backend, kernel and buffer."""


def violations(facts: Compiled) -> list[str]:
    """One line per broken rule; none if the kernel passes."""
    found = []
    for buffer, count in facts.stored.items():
        allowed = STORES.get((facts.backend, facts.kernel, buffer), (1, ""))[0]
        if count > allowed:
            found.append(f"one store: {buffer} is stored by {count} statements")
    if not facts.stored:
        found.append("one store: the kernel stores nothing")
    if facts.y_bytes and facts.workspace >= max(WORKSPACE_SHARE * facts.y_bytes, WORKSPACE_BYTES):
        share = facts.workspace / facts.y_bytes
        found.append(f"no y: the workspace of {facts.workspace} bytes is {share:.0%} of y")
    found += [f"no reload: {buffer} is stored and loaded" for buffer in facts.reloaded if buffer not in RELOADS]
    if facts.spills:
        found.append(
            f"no spill: {facts.local_stores} local stores, {facts.local_loads} local loads, "
            f"{facts.stack} bytes of stack per thread"
        )
    return found
