"""Records made up from a seed, for tests of everything that comes after the measurement."""

from __future__ import annotations

import numpy as np

from harness.records.record import CaseRecord, Environment, Result, Run
from harness.timing.floors import Card, Ceiling
from harness.timing.telemetry import Reading

# Median us (cold) of a made-up card; the first number of each case is its floor.
TIMES = {
    "chain-headline": (
        18.6,
        {"triton": 23.9, "cupy": 22.1, "torch": 32.0, "inductor": 541.0, "eager-ieee": 4203.0},
    ),
    "tail-256x256": (
        118.6,
        {"triton": 119.9, "cupy": 120.3, "torch": 137.0, "inductor": 119.5, "eager-ieee": 137.5},
    ),
}


def samples(median: float, *, rounds: int = 60, seed: int = 0, spread: float = 0.004) -> list[float]:
    """Timings with a hard floor and a tail to the right whose median is `median`, in us."""
    rng = np.random.default_rng(seed)
    raw = 1 + spread * rng.lognormal(0, 0.8, rounds)
    return [float(v) for v in median * raw / (1 + spread)]


def run(*, seed: int = 0, factor: float = 1.0, gpu: str = "Made-up GPU") -> Run:
    """A finished run of two cases; `factor` slows every entry down."""
    cases = []
    for name, (floor, times) in TIMES.items():
        results = [
            Result(
                entry=entry,
                status="timed",
                what=f"{entry}, compiled",
                error=0.1,
                how="graph",
                samples={
                    "cold": samples(factor * us, seed=seed + 10 * i),
                    "warm": samples(factor * us * 0.9, seed=seed + 10 * i + 1),
                },
                host_us=[6.0, 6.1, 6.3],
                extra_bytes=8192,
                first_call_s={"empty cache": 1.5, "warm cache": 0.1},
            )
            for i, (entry, us) in enumerate(times.items())
        ]
        results.append(Result("cub", "unavailable", reason="CuPy's mean has no convolution to serve a chain"))
        cases.append(
            CaseRecord(
                name=name,
                op=name.partition("-")[0],
                shape=f"{name.partition('-')[0]}:16,64,128,128",
                dtype="float32",
                layout="contiguous",
                why="made up",
                values="uniform",
                multiplier="0.5",
                seed=0,
                compulsory_bytes=67_108_864 if name.startswith("chain") else 536_870_912,
                reference="eager-ieee",
                working_set_over_l2=1.1,
                floor_us={"cold": floor, "warm": floor * 0.9},
                datasheet_us=floor * 0.75,
                rtx4090_us=66.6,
                results=results,
                pairwise={
                    "triton": {"cupy": 0.2, "torch": 0.1},
                    "cupy": {"triton": 0.2},
                    "torch": {"triton": 0.1},
                },
                marks={"cold": [[] for _ in range(60)], "warm": [[] for _ in range(60)]},
                ended={"cold": "settled", "warm": "settled"},
                before=Reading(1980, 3201, 41, 120.0, []),
                after=Reading(1980, 3201, 45, 310.5, []),
            )
        )
    return Run(
        environment=Environment(
            date="2030-01-01T00:00:00+00:00",
            command="bench.py compare",
            commit="0123456789ab",
            platform="Linux",
            python="3.12.3",
            versions={"torch": "2.11.0", "triton": "3.6.0", "cupy": "14.2.0"},
            gpu=gpu,
            capability="90",
            driver="580.1",
            cuda="13.0",
        ),
        settings={"flush": "read"},
        card=Card(gpu, 4800.0, 60 << 20, 132, "datasheet"),
        ceilings=[
            Ceiling("read", 1 << 29, 118.6, "c", "cold"),
            Ceiling("empty", 0, 3.2, "c", "cold"),
        ],
        cases=cases,
    )
