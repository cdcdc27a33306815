"""What a search found: as text, as auto-tuning results in the T4 format, and as a plan."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from harness.console import console
from harness.records.record import Environment
from harness.show.text import NONE, error_text, new_table, number, print_lines
from harness.timing.intervals import summarise
from harness.tuning.search import EFFECT, Found, Gain, Sweep
from harness.tuning.sweep import shipped
from harness.tuning.trial import CORRECT, Trial
from runtime.plan import Plan

T4 = "1.0.0"
"""Version of the schema of auto-tuning results that Kernel Tuner writes: T4/1.0.0/results-schema.json there."""


def render(found: Found, environment: Environment, mode: str) -> str:
    """A table for each case and kernel set, what was confirmed, and a verdict."""
    out = io.StringIO()
    shown = console(out)
    print_lines(shown, [
        f"{environment.gpu}, driver {environment.driver}, CUDA {environment.cuda}, "
        + ", ".join(f"{name} {version}" for name, version in environment.versions.items()),
        f"{environment.date}; commit {environment.commit or 'unknown'}", "",
        f"us: median, {mode} L2. gain: shipped over this one, with its 95 % interval, from the same rounds.",
        "regs: registers of a thread. local: bytes of a thread's local memory, where spilled registers are.",
        "error: in units of the budget, which is derived for each setting anew.",
    ])  # fmt: skip
    for sweep in found.sweeps:
        print_lines(shown, ["", f"{sweep.case}, {sweep.backend}: {sweep.rounds} rounds{_disturbed(sweep)}"])
        shown.print(_table(sweep))
        shown.print(nearness(sweep), soft_wrap=True)
    if found.confirmed:
        print_lines(shown, ["", "Measured anew, in rounds of their own"])
        table = new_table(("constants", "kernels", "case", "shipped us", "us", "gain", "interval"), 3)
        for sweep in found.confirmed:
            base, trial = sweep.trials
            table.add_row(trial.name, sweep.backend, sweep.case, _us(base), _us(trial), *_gain(sweep.gain(trial)))
        shown.print(table)
    print_lines(shown, ["", *map(" ".join, verdicts(found))])
    return out.getvalue()


def _disturbed(sweep: Sweep) -> str:
    return f", the card throttled in {sweep.throttled}" if sweep.throttled else ""


def _table(sweep: Sweep) -> Any:
    table = new_table(("constants", "us", "gain", "interval", "regs", "local", "error"))
    for trial in sweep.trials:
        gain = None if trial is sweep.trials[0] else sweep.gain(trial)
        cells = _us(trial), *_gain(gain)
        if trial.invalidity != CORRECT:
            cells = trial.invalidity, NONE, NONE
        registers = "+".join(str(kernel.registers) for kernel in trial.kernels) or NONE
        local = "+".join(str(kernel.local) for kernel in trial.kernels) or NONE
        table.add_row(trial.name, *cells, registers, local, error_text(trial.error))
    return table


def _us(trial: Trial) -> str:
    return number(summarise(trial.samples).median) if trial.samples else NONE


def _gain(gain: Gain | None) -> tuple[str, str]:
    if gain is None:
        return NONE, NONE
    return f"{gain.ratio:.3f}", f"{gain.interval.low:.3f} to {gain.interval.high:.3f}"


def nearness(sweep: Sweep) -> str:
    """How far the shipped constants are from the best that was tried, in one sentence."""
    best = sweep.best()
    if best is None:
        reason = sweep.trials[0].reason
        return f"nothing to compare with{f': {reason}' if reason else ''}"
    trial, gain = best
    if gain.ratio <= 1:
        return "the shipped constants are the fastest that were tried"
    away = f"{100 * (gain.ratio - 1):.1f} % (interval {100 * (gain.interval.low - 1):.1f} to "
    away += f"{100 * (gain.interval.high - 1):.1f} %)"
    within = "within" if gain.ratio < 1 + EFFECT else "not within"
    return f"shipped is {within} {EFFECT:.0%} of the best that was tried: {trial.name} is faster by {away}"


def verdicts(found: Found) -> Iterable[Sequence[str]]:
    """One line for each kernel set, in pieces: what a plan would set."""
    for backend, values in found.plans.items():
        if values:
            said = ", ".join(f"{name} {value}" for name, value in values.items())
            was = shipped(backend)
            yield f"{backend}:", f"{said} (shipped:", ", ".join(str(was[name]) for name in values) + ")"
        else:
            yield (
                f"{backend}:",
                "the shipped constants stay, nothing else was surely faster by",
                f"{EFFECT:.0%}",
            )


def plan(found: Found, environment: Environment) -> Plan:
    """The plan of what was confirmed; one without constants is of a card on which the shipped ones stay."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    made = f"{environment.command}; {environment.date}; commit {environment.commit}; {versions}"
    constants = {backend: values for backend, values in found.plans.items() if values}
    return Plan("", environment.gpu or "", made, constants)


def t4(found: Found, environment: Environment, mode: str) -> dict[str, Any]:
    """Auto-tuning results in the T4 format. Times are in ms there; a configuration has the value of every constant."""
    trials = [trial for sweep in (*found.sweeps, *found.confirmed) for trial in sweep.trials]
    about = {"gpu": environment.gpu, "driver": environment.driver, "cuda": environment.cuda, "mode": mode}
    about |= {"date": environment.date, "commit": environment.commit, "command": environment.command}
    return {
        "schema_version": T4,
        "metadata": about | {"versions": environment.versions, "plans": found.plans},
        "results": [_result(trial) for trial in trials],
    }


def _result(trial: Trial) -> dict[str, Any]:
    measurements: list[dict[str, Any]] = []

    def measure(name: str, value: float, unit: str) -> None:
        measurements.append({"name": name, "value": value, "unit": unit})

    if trial.samples:
        measure("time", summarise(trial.samples).median / 1e3, "ms")
    for kernel in trial.kernels:
        measure(f"{kernel.name}_registers", kernel.registers, "registers per thread")
        measure(f"{kernel.name}_local", kernel.local, "bytes per thread")
    if trial.error is not None:
        measure("error", trial.error, "budgets")
    return {
        "timestamp": trial.when,
        "configuration": {"case": trial.case, "kernels": trial.backend} | shipped(trial.backend) | trial.values,
        "objectives": ["time"],
        "times": {
            "compilation_time": trial.compile_ms,
            "runtimes": [us / 1e3 for us in trial.samples],
            "framework": 0.0,
            "search_algorithm": 0.0,
            "validation": trial.validate_ms,
        },
        "invalidity": trial.invalidity,
        "correctness": float(trial.invalidity == CORRECT),
        "measurements": measurements,
    }
