"""Tables of the documents, made from the records under docs/results: `python3 docs/figures.py [--check]`.

Each table stands between two marks, `<!-- NAME -->` and `<!-- end NAME -->`, and nobody writes there by hand. With
--check nothing is written: the exit code is 1, and each page that says something else than its record is named.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parent
# Run as a script, Python looks in docs/ only.
sys.path.insert(0, str(DOCS.parent))

from docs import on_4090  # noqa: E402
from harness.candidates.problems import calibration  # noqa: E402
from harness.cases import catalogue, spelling  # noqa: E402
from harness.errors import UsageError  # noqa: E402
from harness.files import split_at_marks, write_whole  # noqa: E402
from harness.records.as_json import load  # noqa: E402
from harness.records.record import CaseRecord, Run  # noqa: E402
from harness.show.text import number  # noqa: E402
from harness.timing.intervals import summarise  # noqa: E402

OURS = ("triton", "cupy")
# The same kernels, compiled for just the sizes of the case, and the record that has them beside the others.
SIZED = ("triton-sized", "cupy-sized")
BOTH = "h100-sizes"
EAGER = ("eager-ieee", "eager-tf32")
COMPILED = ("inductor", "inductor-max")
# What is not a peer of the fused tail: it is the schedule that the project began from.
SCHEDULE = "baseline"
PEERS_OF_CHAIN = ("torch", *EAGER, *COMPILED, SCHEDULE)
PEERS_OF_TAIL = ("torch", *EAGER, *COMPILED, "cub")
# Goals, in floors, and in us beyond them; "" is for every other case.
GOALS = {
    "chain/headline": (1.10, 0.0),
    "chain/headline-float16": (1.15, 0.0),
    "chain/headline-bfloat16": (1.15, 0.0),
    "tail/headline": (1.03, 0.0),
    "chain": (1.25, 3.0),
    "tail": (1.15, 0.0),
}
# Of the layers of models: in floors, or in times of the products at a share of the float32 peak, whichever is
# longer, and in us beyond. The peak is of the datasheet of the H100.
MODELS_GOAL = 1.5, 3.0
SHARE_OF_PEAK = 0.6
H100_FLOPS = 66.9e12
# As fast as a peer: within the noise between two runs.
AS_FAST = 1 / 0.98


@cache
def record(name: str) -> Run:
    """The record docs/results/NAME.json.gz."""
    return load(DOCS / "results" / f"{name}.json.gz")


def case(name: str, of: str = "h100") -> CaseRecord:
    """One case of a record. UsageError if it is not there."""
    for found in record(of).cases:
        if found.name == name:
            return found
    raise UsageError(f"docs/results/{of}.json.gz: no case {name}")


def median(of: CaseRecord, entry: str) -> float | None:
    """Median time in us with a clean cold L2, None if the entry was not timed."""
    result = of.result(entry)
    summary = result.summary("cold") if result else None
    return summary.median if summary else None


def fastest(of: CaseRecord, entries: Iterable[str]) -> tuple[float, str] | None:
    """(us, entry) of the fastest of these entries."""
    return min(((us, entry) for entry in entries if (us := median(of, entry)) is not None), default=None)


def sizes(of: CaseRecord) -> str:
    """[N,Cin,H,W] -> Cout and the convolution's arguments, or [N,C,H,W]; then what is not usual."""
    fields = of.shape.partition(":")[2].split(",")
    if of.shape.startswith("chain"):
        n, c_in, c_out, h, w, *rest = fields
        words = [f"[{n},{c_in},{h},{w}] -> {c_out}", " ".join(rest)]
    else:
        words = [f"[{','.join(fields)}]"]
    words += [word for word in (of.dtype, of.layout) if word not in ("float32", "contiguous")]
    return ", ".join(words + (["its gradients"] if of.op == "backward" else []))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def us(value: float | None) -> str:
    """A time in us, three digits; empty where there is none."""
    return "" if value is None else number(value)


def provenance(of: str = "h100") -> str:
    """The hardware, the versions, the commit and the command of a record."""
    found = record(of).environment
    names = {"torch": "torch", "triton": "Triton", "cupy": "CuPy"}
    versions = ", ".join(f"{names[name]} {v}" for name, v in found.versions.items() if name in names)
    return (
        f"One {found.gpu}, driver {found.driver}, CUDA {found.cuda}, {versions}; {found.date[:10]}, commit "
        f"{found.commit}:\n`{found.command}`."
    )


def both(of: CaseRecord) -> list[str]:
    """Of each kernel set its time for any sizes, and behind a stroke that for just these sizes."""
    return [
        " / ".join(us(time) for entry in pair if (time := median(of, entry)) is not None)
        for pair in zip(OURS, SIZED, strict=True)
    ]


def overview(names: Iterable[str]) -> str:
    """One line a case: the floor, each backend, the best of what others offer."""
    rows = []
    for name in names:
        found = case(name, BOTH)
        eager = fastest(found, EAGER)
        tf32 = " (TF32)" if eager and eager[1] == "eager-tf32" and found.dtype == "float32" else ""
        rows.append([
            sizes(found), us(found.floor_us["cold"]), *both(found), us(median(found, "torch")),
            us((fastest(found, COMPILED) or [None])[0]), f"{us(eager[0])}{tf32}" if eager else "",
        ])  # fmt: skip
    return table(("sizes", "floor", "Triton", "CUDA", "plain torch", "torch.compile", "eager"), rows)


def is_model(of: CaseRecord) -> bool:
    """Whether the case is a layer of a model."""
    return of.name in {case.name for case in catalogue.SETS["models"]}


def goal(of: CaseRecord) -> float:
    """The longest time in us that meets this case's goal."""
    floor = of.floor_us["cold"]
    if floor is None:
        raise UsageError(f"the record has no floor of {of.name}")
    if not is_model(of):
        floors, beyond = GOALS.get(of.name) or GOALS[of.op]
        return floors * floor + beyond
    floors, beyond = MODELS_GOAL
    p = spelling.parse(of.shape)
    products = p.n * p.c_out * p.c_in // p.groups * len(p.distinct(0)) * len(p.distinct(1))
    return floors * max(floor, 1e6 * 2 * products / (SHARE_OF_PEAK * H100_FLOPS)) + beyond


def met(times: Iterable[float | None], limit: float) -> str:
    """Yes or no for each."""
    return " / ".join("yes" if time is not None and time <= limit else "no" for time in times)


def chain_goals(*, models: bool) -> str:
    """Chains of the record, layers of models or the others, against their goals, and the fastest that is not ours."""
    rows = []
    for found in record("h100").cases:
        if found.op != "chain" or is_model(found) != models:
            continue
        times, peer = [median(found, entry) for entry in OURS], fastest(found, PEERS_OF_CHAIN)
        rows.append([
            found.name.removeprefix("chain/"), sizes(found), us(found.floor_us["cold"]), *map(us, times),
            us(goal(found)), met(times, goal(found)), f"{us(peer[0])} {peer[1]}" if peer else "",
        ])  # fmt: skip
    return table(("case", "sizes", "floor", "Triton", "CUDA", "goal", "met", "fastest other"), rows)


def tail_goals() -> str:
    """Every tail of the record against its goal and against the fastest that is not ours."""
    rows = []
    for found in (found for found in record("h100").cases if found.op == "tail"):
        times = [median(found, entry) for entry in OURS]
        peer = fastest(found, PEERS_OF_TAIL)
        rows.append([
            sizes(found), us(found.floor_us["cold"]), *map(us, times), us(goal(found)), met(times, goal(found)),
            f"{us(peer[0])} {peer[1]}" if peer else "", met(times, AS_FAST * peer[0]) if peer else "",
        ])  # fmt: skip
    heads = ("y", "floor", "Triton", "CUDA", "goal", "met", "fastest other", "as fast")
    return table(heads, rows)


KNOWN_SIZES = ("host", "wall", "step host", "step wall")
"""Kinds of calls that wait for no compiler."""


def calls() -> str:
    """What a person waits for: each kind of call on each problem, in us, and how often eager torch's time it is."""
    entries = ("triton", "cupy", "torch", "eager", "mean")
    rows = []
    for found in record("h200-calls").calls:
        if found.call not in KNOWN_SIZES:
            continue
        middle = {name: summarise(samples).median for name, samples in found.samples.items() if samples}
        base = middle.get("eager")
        cells = [
            f"{us(middle[name])}{f' ({middle[name] / base:.2f})' if base and name != 'eager' else ''}"
            if name in middle
            else ""
            for name in entries
        ]
        rows.append([found.call, found.shape, *cells])
    heads = (
        "call",
        "problem",
        "Triton",
        "CUDA",
        "plain torch",
        "eager",
        "torch.mean",
    )
    return table(heads, rows)


README = (
    "chain/headline",
    "chain/headline-float16",
    "chain/batch1",
    "chain/dcgan8",
    "chain/unet-k2s2",
    "tail/headline",
    "tail/7x7",
)


def claim() -> str:
    """The one result that matters, with its hardware."""
    found = case("chain/headline", BOTH)
    own = fastest(found, OURS)
    eager, compiled = fastest(found, EAGER), fastest(found, COMPILED)
    if not own or not eager or not compiled:
        raise UsageError("the record lacks an entry of chain/headline")
    return (
        f"**{eager[0] / own[0]:.0f} times faster than eager PyTorch and {compiled[0] / own[0]:.0f} times faster than "
        f"torch.compile** on one {record(BOTH).environment.gpu}, at\n{sizes(found)} (problem 44 of KernelBench's "
        "level 2), because the convolution's output of 512 MiB never exists."
    )


def times_4090() -> str:
    """Every case on an RTX 4090, each time marked measured or projected."""
    own = on_4090.measured(DOCS / "results")
    rows = ([found.name, sizes(found), *cells] for found, cells in on_4090.times(record("h100"), own, OURS))
    return table(("case", "sizes", "Triton, cold", "CUDA, cold", "Triton, warm", "CUDA, warm"), rows)


def from_4090() -> str:
    """Where these times come from."""
    return on_4090.provenance(record("h100"), on_4090.measured(DOCS / "results"))


def seen_4090() -> str:
    """What 4090s are seen to reach in public."""
    return table(("memory", "rate", "share", "what was run", "source"), on_4090.seen())


def calibrated() -> str:
    """Honest and faulty answers to known problems, by `bench.py judge --calibrate --json`."""
    found = [calibration.Row(**row) for row in json.loads((DOCS / "results" / "calibration.json").read_text())]
    least, most = next(row.derived for row in found if row.derived)
    words = f"On this project's own chain the derived budget is {least:.0f} to {most:.0f} times the estimated one"
    why = "it holds for the worst order and the worst signs of all roundings."
    return "\n".join(["", *calibration.table(found), "", f"{words}: {why}", ""])


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "claim": claim,
        "provenance": lambda: provenance(BOTH),
        "results": lambda: overview(README),
    },
    "docs/benchmarking.md": {"calls provenance": lambda: provenance("h200-calls"), "calls": calls},
    "docs/kernels.md": {
        "provenance": provenance,
        "chain goals": lambda: chain_goals(models=False),
        "model goals": lambda: chain_goals(models=True),
        "tail goals": tail_goals,
    },
    "docs/rtx4090.md": {"seen": seen_4090, "4090 from": from_4090, "4090 times": times_4090},
    "docs/judging.md": {"calibration": calibrated},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or with --check say which differ; 0 if all is well, 1 if a page differs, 2 for a bad record."""
    parser = argparse.ArgumentParser(description="Make the tables of the documents from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page differs")
    args = parser.parse_args(argv)
    try:
        return run(DOCS.parent, check=args.check)
    except UsageError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2


def run(root: Path, *, check: bool) -> int:
    """The same for the pages below `root`."""
    differ = 0
    for page, blocks in BLOCKS.items():
        path = root / page
        before = after = path.read_text(encoding="utf-8")
        for name, text in blocks.items():
            start, end = split_at_marks(after, name, path)
            after = f"{start}\n{text()}\n{end}"
        if after == before:
            continue
        differ = 1
        if check:
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), page, "its record", "", "", 0, "")
            print("\n".join(lines))
        else:
            write_whole(path, after)
            print(f"{page}: written")
    return differ if check else 0


if __name__ == "__main__":
    sys.exit(main())
