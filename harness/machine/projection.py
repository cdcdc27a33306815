"""`bench.py project`: what an RTX 4090 would need, from a model, what was measured elsewhere, and the compilers' facts.

    t = a + max(B / (e * W), sm)                       one launch that reads B bytes, in us
    sm = passes * max(pass / w, issue, transfer)       the multiprocessors' side, passes per scheduler
    pass = 4 * issue + latency * batches + transfer    one warp, once around its loop

a and e come from the floors of the record: time to read B bytes is a + B / (e * W), W the datasheet's bandwidth. The
loop's instructions and bytes, and the bytes under way, are those of the machine code for each card. w: warps per
scheduler that fit and that the grid supplies. docs/rtx4090.md derives this and names what is assumed.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from rich.table import Table

from harness.commands.inspect_kernels import resident
from harness.errors import UsageError
from harness.files import add_outputs, check_outputs, write_outputs
from harness.machine.compiled import Compiled, collect_elsewhere
from harness.machine.occupancy import ARCHITECTURES, QUARTERS, Architecture
from harness.records.record import CaseRecord, Run, load
from harness.show import tables

SUMMARY = "projected times on an RTX 4090, with the model's error on what was measured"
TARGET = 89
ROWS = ("triton", "cupy", "baseline")

LATENCY_US = 0.7
"""Assumed: a load from DRAM under load, both cards."""

ISSUE_CYCLES = 4
"""Cycles between two dependent instructions of one warp, every architecture since Volta."""

TRANSFER = 64
"""Bytes per cycle that a multiprocessor takes from the L2."""

L2_GB_PER_S = 5000.0
"""Assumed: what the 4090's L2 delivers to all multiprocessors together."""

BASELINE_US, BASELINE_SHARE = 600.0, 0.8871
"""The baseline on a 4090, headline's convolution output: 512 MiB at 88.71 % of 1008 GB/s, by Nsight Compute."""


MISSES = 0.5
"""Relative error on the record's card beyond which the model does not know what limits a row: no projection then."""


@dataclass(frozen=True)
class Memory:
    """Reading costs start_us + bytes / (share * the datasheet's bandwidth)."""

    start_us: float
    share: float


@dataclass
class Line:
    """One row of one case, times in us.

    measured: cold median on the record's card. model: the same by the model. projected: on the 4090, cold, with the
    record's share of DRAM bandwidth and with the baseline's; and warm, None if the input does not fit the L2. None too
    where the model misses what was measured. bound: what the model says limits the 4090.
    """

    case: str
    row: str
    measured: float
    model: float
    projected: float | None
    projected_high: float | None
    projected_warm: float | None
    bound: str

    @property
    def error(self) -> float:
        """Of the model on the record's card, relative."""
        return self.model / self.measured - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py project`."""
    parser.add_argument(
        "--record",
        type=Path,
        required=True,
        action="append",
        metavar="FILE",
        help="what `bench.py compare --json` wrote on a GPU; repeated, a later one replaces cases of the same name",
    )
    add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Print validation and projection."""
    check_outputs(args, "project")
    record = joined([load(path) for path in args.record])
    arch = architecture_of(record)
    card = card_of(record, arch)
    memory = fit(floors(record), card.bandwidth)
    here, there = collect_elsewhere(arch), collect_elsewhere(TARGET)
    lines = project(record, memory, here, there, card)
    if not lines:
        raise UsageError(
            f"{', '.join(map(str, args.record))}: no timed row of a case that `bench.py inspect` compiles"
        )
    text = render(record, memory, lines, there)
    rows = [asdict(line) | {"error": line.error} for line in lines]
    document = {"projected_for": ARCHITECTURES[TARGET].card, "memory": asdict(memory), "rows": rows}
    write_outputs(args, "project", text, document)
    return 0


def joined(records: Sequence[Run]) -> Run:
    """One record with the cases of all, the last of each name. UsageError if they are of different GPUs."""
    gpus = dict.fromkeys(record.environment.gpu for record in records)
    if len(gpus) > 1:
        raise UsageError(f"--record: expected records of one GPU, got {', '.join(map(str, gpus))}")
    cases = {case.name: case for record in records for case in record.cases}
    return replace(records[-1], cases=list(cases.values()))


def architecture_of(record: Run) -> int:
    """Compute capability of the record's card, without its dot. UsageError if there is nothing to project from."""
    gpu, capability = record.environment.gpu, record.environment.capability
    if gpu is None or capability is None:
        raise UsageError("the record was made without a GPU: there is no time in it")
    arch = int(capability.replace(".", ""))
    if arch == TARGET:
        raise UsageError(
            f"the record was measured on {gpu}: its times are measured, there is nothing to project"
        )
    if arch not in ARCHITECTURES:
        raise UsageError(
            f"the record's card is {gpu}, sm_{arch}; known are {', '.join(map(str, ARCHITECTURES))}"
        )
    return arch


def card_of(record: Run, arch: int) -> Architecture:
    """The record's card: sm_<arch> comes in several, with memories of their own."""
    known = ARCHITECTURES[arch]
    if record.card is None or record.card.bandwidth is None:
        return known
    measured = record.card
    return replace(
        known, card=measured.name, sms=measured.sms, bandwidth=measured.bandwidth, l2_bytes=measured.l2_bytes
    )


def floors(record: Run) -> list[tuple[int, float]]:
    """(bytes, us) of every cold floor that the record measured."""
    found = {case.compulsory_bytes: case.floor_us.get("cold") for case in record.cases}
    return [(size, us) for size, us in sorted(found.items()) if us is not None]


def fit(points: list[tuple[int, float]], bandwidth: float) -> Memory:
    """Least squares of us = start + bytes / rate, each point weighed by its time. UsageError without two sizes."""
    if len({size for size, _ in points}) < 2:
        raise UsageError("the record holds fewer than two cold floors: run compare on cases of several sizes")
    weights = [1 / us**2 for _, us in points]
    total = sum(weights)
    x = sum(w * size for w, (size, _) in zip(weights, points, strict=True)) / total
    y = sum(w * us for w, (_, us) in zip(weights, points, strict=True)) / total
    spread = sum(w * (size - x) ** 2 for w, (size, _) in zip(weights, points, strict=True))
    slope = sum(w * (size - x) * (us - y) for w, (size, us) in zip(weights, points, strict=True)) / spread
    if slope <= 0:
        raise UsageError(
            "the record's cold floors do not grow with their bytes: no rate can be had from them"
        )
    return Memory(max(0.0, y - slope * x), 1 / slope / 1e3 / bandwidth)


def sm_us(item: Compiled, card: Architecture, size: int, latency_us: float = LATENCY_US) -> float:
    """Time in us that the card's multiprocessors need to take in `size` bytes through the kernel's loop."""
    blocks = -(-item.grid // card.sms)
    used = min(card.sms, item.grid)
    warps = min(resident(item, card), blocks) * -(-item.threads // 32) / QUARTERS
    per_pass = 32 * item.loop_bytes
    passes = size / per_pass / (used * QUARTERS)
    issue = item.loop_instructions / card.clock / 1e3
    transfer = per_pass / (TRANSFER / QUARTERS) / card.clock / 1e3
    batches = max(1.0, item.loop_bytes / max(item.in_flight, 1))
    once = ISSUE_CYCLES * issue + latency_us * batches + transfer
    return passes * max(once / max(warps, 1 / QUARTERS), issue, transfer)


def model_us(
    items: list[Compiled],
    card: Architecture,
    size: int,
    memory: Memory,
    bandwidth: float | None = None,
    slower: float = 1.0,
) -> tuple[float, str]:
    """(us, what limits it) of a call whose first kernel reads `size` bytes; each further one costs a start.

    bandwidth: GB/s in place of DRAM's. slower: factor on the multiprocessors' side.
    """
    dram = size / (memory.share * card.bandwidth if bandwidth is None else bandwidth) / 1e3
    sm = slower * sm_us(items[0], card, size)
    bound = ("DRAM" if bandwidth is None else "L2") if dram >= sm else "SMs"
    return len(items) * memory.start_us + max(dram, sm), bound


def project(
    record: Run, memory: Memory, here: list[Compiled], there: list[Compiled], card: Architecture
) -> list[Line]:
    """A line per timed row of every case that both lists of compiled kernels hold."""
    target = ARCHITECTURES[TARGET]
    worse = Memory(memory.start_us, min(memory.share, BASELINE_SHARE))
    lines = []
    for case in record.cases:
        for name in ROWS:
            mine, theirs = (_launched(items, case, name) for items in (here, there))
            row = case.row(name)
            summary = row and row.summary("cold")
            if not mine or not theirs or not summary:
                continue
            size, start = case.compulsory_bytes, len(mine) * memory.start_us
            measured = summary.median
            model, limit = model_us(mine, card, size, memory)
            if abs(model / measured - 1) > MISSES:
                lines.append(Line(case.name, name, measured, model, None, None, None, "unknown"))
                continue
            # Where the SMs limit the row, they are slower than the model says, on both cards. Where the memory
            # does, what comes on top is the kernel's start and end, which know nothing of bandwidth.
            slower, extra = 1.0, measured - model
            if limit == "SMs":
                slower, extra = (measured - start) / (model - start), 0.0
            cold, bound = model_us(theirs, target, size, memory, slower=slower)
            high, _ = model_us(theirs, target, size, worse, slower=slower)
            warm = None
            if size <= target.l2_bytes:
                warm = extra + model_us(theirs, target, size, memory, L2_GB_PER_S, slower)[0]
            cold, high = extra + cold, extra + high
            lines.append(Line(case.name, name, measured, model, cold, high, warm, bound))
    return lines


def _launched(items: Iterable[Compiled], case: CaseRecord, row: str) -> list[Compiled]:
    """Kernels that a call of the row launches, in order."""
    return [item for item in items if item.case == case.name and item.backend == row and item.main]


def baseline_us(there: list[Compiled], memory: Memory) -> float:
    """The model for the one time that is known of a 4090."""
    items = [item for item in there if item.case == "tail/headline" and item.backend == "baseline"]
    return model_us(items, ARCHITECTURES[TARGET], 512 << 20, memory)[0]


def render(record: Run, memory: Memory, lines: list[Line], there: list[Compiled]) -> str:
    """Validation first, then the projection; every projected figure says that it is one."""
    out = io.StringIO()
    console = tables.console(out)
    gpu = record.environment.gpu
    console.print(
        f"Measured on {gpu}: reading costs {memory.start_us:.1f} us + bytes at {memory.share:.1%} of DRAM's rate"
    )
    console.print()
    console.print("Validation: the model against what was measured, cold")
    table = _table(("case", "row", "measured us", "model us", "error"))
    for line in lines:
        table.add_row(
            line.case, line.row, *map(tables.number, (line.measured, line.model)), f"{line.error:+.0%}"
        )
    known = baseline_us(there, memory)
    error = known / BASELINE_US - 1
    table.add_row(
        "tail/headline",
        "baseline on RTX 4090",
        tables.number(BASELINE_US),
        tables.number(known),
        f"{error:+.0%}",
    )
    console.print(table)
    errors = [abs(line.error) for line in lines]
    console.print(
        f"error of the model: on {gpu} median {median(errors):.0%}, worst {max(errors):.0%}; "
        f"on the RTX 4090 {error:+.0%}, from one row",
        soft_wrap=True,
    )
    console.print()
    console.print("Projected for the RTX 4090 (a model's figures, not measured)")
    table = _table(("case", "row", "projected us, cold", "projected us, warm", "limit"))
    for line in lines:
        if line.projected is None:
            table.add_row(line.case, line.row, "none: the model misses it", tables.NONE, line.bound)
            continue
        cold = f"{tables.number(line.projected)} to {tables.number(line.projected_high)}"
        warm = "as cold" if line.projected_warm is None else tables.number(line.projected_warm)
        table.add_row(line.case, line.row, cold, warm, line.bound)
    console.print(table)
    console.print(
        f"cold: with the share of DRAM bandwidth that {gpu} gives, and with the {BASELINE_SHARE:.1%} that the "
        f"baseline had on a 4090; warm: the input is in the L2 (at most 72 MiB)",
        soft_wrap=True,
    )
    return out.getvalue()


def _table(headers: tuple[str, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for at, header in enumerate(headers):
        table.add_column(header, justify="left" if at < 2 else "right", no_wrap=True)
    return table
