"""A record as CSV, for a spreadsheet: what is shown, not what was sampled."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from harness.records.record import Run
from harness.timing.intervals import summarise


def to_csv(run: Run) -> str:
    """One line per case, entry and mode; times in us, rates in GB/s."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(run))
    return out.getvalue()


_COLUMNS = (
    *(
        "case",
        "op",
        "shape",
        "dtype",
        "layout",
        "values",
        "multiplier",
        "seed",
        "entry",
        "status",
        "reference",
        "mode",
    ),
    *("median_us", "p20_us", "p80_us", "low_us", "high_us", "rounds", "gb_per_s", "floor_us", "floor_share"),
    *("speed_up", "speed_up_low", "speed_up_high", "error_over_budget", "host_us", "extra_bytes"),
    *("how", "gpu", "what", "reason"),
)


def _lines(run: Run) -> Iterator[dict[str, object]]:
    for case in run.cases:
        for result in case.results:
            common = {
                "case": case.name,
                "op": case.op,
                "shape": case.shape,
                "dtype": case.dtype,
                "layout": case.layout,
                "values": case.values,
                "multiplier": case.multiplier,
                "seed": case.seed,
                "entry": result.entry,
                "status": result.status,
                "reference": case.reference,
                "error_over_budget": result.error,
                "host_us": summarise(result.host_us).median if result.host_us else None,
                "extra_bytes": result.extra_bytes,
                "how": result.how,
                "gpu": run.environment.gpu,
                "what": result.what,
                "reason": result.reason,
            }
            for mode in result.samples or [""]:
                summary = result.summary(mode)
                if summary is None:
                    yield common
                    continue
                floor = case.floor_us.get(mode)
                gain = case.speed_up(result, mode)
                yield common | {
                    "mode": mode,
                    "median_us": summary.median,
                    "p20_us": summary.p20,
                    "p80_us": summary.p80,
                    "low_us": summary.interval.low,
                    "high_us": summary.interval.high,
                    "rounds": summary.count,
                    "gb_per_s": case.compulsory_bytes / summary.median / 1e3,
                    "floor_us": floor,
                    "floor_share": floor and floor / summary.median,
                    "speed_up": gain and gain[0],
                    "speed_up_low": gain and gain[1].low,
                    "speed_up_high": gain and gain[1].high,
                }
