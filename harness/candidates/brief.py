"""The task that candidates answer, as one text: card, rules, current code, its counters, what an answer looks like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from harness.candidates.cards import Figures
from harness.candidates.rules import FORBIDDEN, PARAMETERS
from harness.machine.ncu import METRICS

STAGES = {
    "memory": (
        "Memory pattern of a fused operation",
        (
            "A kernel may load every input that it needs: x, weight, bias.",
            "A kernel stores results only: one tl.store for each output tensor, and none for anything in between.",
            "What one step hands to the next stays in registers or shared memory.",
            "A value that is stored and then loaded again is a mistake: merge the two steps.",
        ),
    ),
    "parallelism": (
        "Enough work in flight",
        (
            "Enough programs for every multiprocessor, several each.",
            "Independent loads before the first use of any of them; wide, aligned, neighbouring.",
            "Sums that several programs share end in a fixed order: no atomics in floating point.",
        ),
    ),
}


def text(
    card: Figures,
    *,
    stage: str,
    code: str,
    counters: Mapping[str, Mapping[str, float]],
    measured: Sequence[str] = (),
) -> str:
    """The brief. counters: by kernel, Nsight Compute's names and figures. measured: lines about this very card."""
    title, rules = STAGES[stage]
    parts = [
        "Write the fastest Triton kernels that you can for the operator below. They will be judged: first whether\n"
        "every answer is right, then how long a call takes.",
        "# Card\n" + "\n".join((*_card(card), *measured)),
        f"# Stage: {title}\n" + "\n".join(f"- {rule}" for rule in rules),
        "# Operator\n"
        "out = mean over height and width of multiplier * ConvTranspose2d(x): x [N, C_in, H, W] -> [N, C_out, 1, 1]\n"
        "Published size: x [16, 64, 128, 128], 128 output channels, kernel 3, stride 2, padding 1, output_padding 1, "
        "multiplier 0.5, float32.\nOther sizes, weights set after construction, values of both signs are tried, too.",
        f"# Current code\n```python\n{code.rstrip()}\n```",
        f"# Nsight Compute\n{json.dumps(counters, indent=2) if counters else 'not measured'}",
        "# Task\nRead the counters, find what limits the current code, and write a faster one.",
        "# Limits of the language\n"
        f"- triton.language has none of: {', '.join(f'tl.{name}' for name in sorted(FORBIDDEN))}.\n"
        "- A block's sizes are powers of two, known at compile time.",
        "# Answer\n"
        "One file of Python, in this order:\n"
        "1. imports: torch, torch.nn as nn, triton, triton.language as tl, and no others\n"
        "2. kernels, decorated with @triton.jit\n"
        "3. functions that choose grids and launch them\n"
        f"4. class ModelNew(nn.Module) with __init__(self, {', '.join(PARAMETERS)}), an nn.ConvTranspose2d in "
        "self.conv_transpose, and forward(self, x)\n"
        "No tests, no `if __name__`, no get_inputs, no get_init_inputs.\n"
        "It is judged by: python3 bench.py judge FILE --rules strict",
    ]
    return "\n\n".join(parts) + "\n"


def _card(card: Figures) -> list[str]:
    return [
        f"Name: {card.name} ({card.architecture}, compute capability {card.capability})",
        f"Multiprocessors: {card.sms}",
        f"Memory bandwidth: {card.bandwidth} GB/s",
        f"L2: {card.l2} MB, shared by all multiprocessors",
        f"Float32: {card.fp32} TFLOP/s; tensor cores, dense: {card.tf32} in TF32, {card.half} in float16 and bfloat16",
        f"Shared memory: {card.shared_per_sm} KB a multiprocessor, at most {card.shared_per_block} KB a block",
        f"Threads: at most 1024 a block and {card.threads_per_sm} a multiprocessor ({card.warps} warps of 32)",
        "Registers: 65536 a multiprocessor, at most 255 a thread",
    ]


def counters(document: object, entry: str | None) -> dict[str, dict[str, float]]:
    """Nsight Compute's figures by kernel from the JSON of `bench.py profile`, of one entry or of the first.

    Raises ValueError for a document without any.
    """
    found: dict[str, dict[str, float]] = {}
    kernels = document.get("kernels") if isinstance(document, dict) else None
    for items in kernels.values() if isinstance(kernels, dict) else ():
        for item in items:
            entry = entry or item["entry"]
            if item["entry"] == entry:
                figures = {METRICS[key]: item[key] for key in METRICS if item.get(key) is not None}
                found.setdefault(item["kernel"], figures)
    if not found:
        raise ValueError("expected the JSON that bench.py profile writes, with figures of this entry")
    return found
