"""The two operators in the files of flashinfer-bench: definitions that solutions name, and traces of a run."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import check_writable, replaced, write_whole
from reference.problem import Chain, Problem, Tail

DEFINITIONS = {"multiply_gap": "tail", "conv_transpose2d_multiply_gap_k3_s2_p1_op1": "chain"}

# What a verdict is called there.
STATUS = {"accepted": "PASSED", "wrong": "INCORRECT_NUMERICAL", "timeout": "TIMEOUT"}

_TAIL = '''\
import torch


def run(y, multiplier):
    """Mean over height and width of multiplier * y."""
    return (y * multiplier).mean(dim=(-2, -1), keepdim=True)
'''

_CHAIN = '''\
import torch
import torch.nn.functional as F


def run(x, weight, bias, multiplier):
    """Transposed convolution, times a number, averaged over height and width."""
    y = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
    return (y * multiplier).mean(dim=(-2, -1), keepdim=True)
'''


def _variable(text: str) -> dict[str, str]:
    return {"type": "var", "description": text}


def _one(text: str) -> dict[str, Any]:
    return {"type": "const", "value": 1, "description": text}


def _tensor(*shape: str) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": "float32"}


def definition(name: str) -> dict[str, Any]:
    """One of DEFINITIONS as flashinfer-bench writes it."""
    tail = DEFINITIONS[name] == "tail"
    axes: dict[str, Any] = {"n": _variable("samples"), "h": _variable("rows"), "w": _variable("columns")}
    axes["one"] = _one("what the averaged axes have left")
    scalar = {"shape": None, "dtype": "float32", "description": "a Python number"}
    if tail:
        axes["c"] = _variable("channels")
        inputs = {"y": _tensor("n", "c", "h", "w"), "multiplier": scalar}
    else:
        axes |= {"c_in": _variable("input channels"), "c_out": _variable("output channels")}
        axes["k"] = {"type": "const", "value": 3, "description": "rows and columns of the kernel"}
        inputs = {
            "x": _tensor("n", "c_in", "h", "w"),
            "weight": _tensor("c_in", "c_out", "k", "k"),
            "bias": _tensor("c_out"),
            "multiplier": scalar,
        }
    return {
        "name": name,
        "op_type": "conv_transpose2d_multiply_gap" if not tail else "multiply_gap",
        "description": "stride 2, padding 1, output_padding 1" if not tail else "y is what a convolution left",
        "axes": axes,
        "inputs": inputs,
        "outputs": {"out": _tensor("n", "c" if tail else "c_out", "one", "one")},
        "reference": _TAIL if tail else _CHAIN,
    }


def definition_files(folder: Path) -> list[Path]:
    """The files that write_definitions writes."""
    return [folder / f"{name}.json" for name in DEFINITIONS]


def write_definitions(folder: Path) -> list[Path]:
    """Write every definition to `folder`, one file each. UsageError if that cannot be."""
    paths = definition_files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            check_writable(path)
    except OSError as error:
        raise UsageError(f"--definitions: {error}") from None
    for path in paths:
        write_whole(path, json.dumps(definition(path.stem), indent=1) + "\n")
    return paths


def trace(found: Any, problem: Problem, multiplier: float, solution: str, environment: dict[str, Any]) -> str:
    """One line of a trace file for a verdict (harness.candidates.verdict.Verdict) on a problem."""
    tail = isinstance(problem, Tail)
    axes = {"n": problem.n, "h": problem.h, "w": problem.w}
    axes |= {"c": problem.c} if isinstance(problem, Tail) else {"c_in": problem.c_in, "c_out": problem.c_out}
    names = ("y",) if tail else ("x", "weight", "bias")
    inputs: dict[str, Any] = {name: {"type": "random"} for name in names}
    inputs["multiplier"] = {"type": "scalar", "value": multiplier}
    chain = isinstance(problem, Chain)
    definition_name = "conv_transpose2d_multiply_gap_k3_s2_p1_op1" if chain else "multiply_gap"
    return line(found, definition_name, axes, inputs, solution, environment)


def require_trace(path: Path | None) -> None:
    """UsageError if a file that is there already holds anything but lines of a trace: nothing is appended to it."""
    if path is None or not replaced(path) or not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            # A line that was cut off, as by a kill, begins like this too.
            if text.strip() and not re.match(r'\s*\{\s*"definition"', text):
                raise UsageError(
                    f"--trace: {path}: expected lines of a trace, got {text.strip()[:60]!r} in line {number}"
                )


def line(
    found: Any,
    definition_name: str,
    axes: dict[str, int],
    inputs: dict[str, Any],
    solution: str,
    environment: dict[str, Any],
) -> str:
    """One line of a trace file for a verdict on any workload."""
    status = STATUS.get(found.verdict, "RUNTIME_ERROR")
    times = found.timing.get("rows", {})
    own, reference = times.get("candidate"), times.get(found.timing.get("reference"))
    correctness = None
    if status in ("PASSED", "INCORRECT_NUMERICAL"):
        correctness = {
            "max_relative_error": found.relative_error,
            "max_absolute_error": found.absolute_error,
            "extra": {"budgets": found.worst if found.worst is None or found.worst < 1e300 else "inf"},
        }
    performance = None
    if status == "PASSED":
        performance = {
            "latency_ms": own["us"] / 1000 if own else 0.0,
            "reference_latency_ms": reference["us"] / 1000 if reference else 0.0,
            "speedup_factor": reference["us"] / own["us"] if own and reference else 0.0,
        }
    return json.dumps(
        {
            "definition": definition_name,
            "workload": {"axes": axes, "inputs": inputs, "uuid": str(uuid.uuid4())},
            "solution": solution,
            "evaluation": {
                "status": status,
                "environment": environment,
                "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
                "log": "; ".join(found.reasons),
                "correctness": correctness,
                "performance": performance,
            },
        }
    )
