"""`bench.py doctor`: what is here, and which backends work, or why not."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import asdict

import torch

import convgap
from convgap import fast
from harness.console import console
from harness.records.environment import environment as environment_of
from harness.show.text import print_lines
from harness.timing.telemetry import Telemetry
from runtime import plan

SUMMARY = "environment, versions, and each backend usable or why not"
FAST = ("triton", "cupy")
VARIABLES = (
    "TRITON_INTERPRET",
    "CONVGAP_BACKEND",
    "CONVGAP_NATIVE",
    "CONVGAP_CACHE_DIR",
    "CONVGAP_PLAN",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CUDA_PATH",
    "CC",
    "CXX",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(args: argparse.Namespace) -> int:
    """Print what is here; 0 if triton or cupy is usable, 1 if neither is."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    calls = fast.wait() if device.type == "cuda" else "no CUDA device"
    telemetry = Telemetry(device) if device.type == "cuda" else None
    environment = environment_of(device, telemetry)
    used = plan.active()
    backends = {status.name: status for status in convgap.status(device)}
    tools = {name: shutil.which(name) for name in ("c++", "g++", "clang++", "nvcc", "ncu")}
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    usable = any(backends[name].usable for name in FAST)
    if args.json:
        found = {
            "environment": asdict(environment),
            "nvml": "no GPU" if telemetry is None else telemetry.reason or "works",
            "tools": tools,
            "variables": variables,
            "plan": None if used is None else str(used),
            "backends": {
                name: {"usable": status.usable, "how": status.how, "reason": status.reason}
                for name, status in backends.items()
            },
            "native_calls": calls,
            "fast_backend_usable": usable,
        }
        print(json.dumps(found, indent=1))
        return int(not usable)
    out = console()
    lines = [
        f"gpu        {environment.gpu or 'none: ' + _why_no_gpu()}",
        f"driver     {environment.driver or '-'}, CUDA {environment.cuda or torch.version.cuda or '-'}",
        f"nvml       {'no GPU' if telemetry is None else telemetry.reason or 'works'}",
        f"platform   {environment.platform}, Python {environment.python}",
        f"versions   {', '.join(f'{name} {version}' for name, version in environment.versions.items())}",
        f"tools      {', '.join(name for name, path in tools.items() if path) or 'none'}",
        f"plan       {used or 'none: launch constants as shipped'}",
        f"variables  {', '.join(f'{name}={value}' for name, value in variables.items()) or 'none set'}",
        "",
    ]
    for name, status in backends.items():
        lines.append(f"{name:<10} {f'usable, {status.how}' if status.usable else f'not usable: {status.reason}'}")
    lines.append(f"calls      {calls}")
    print_lines(out, lines)
    if not usable:
        print_lines(out, ["", "neither triton nor cupy is usable"])
    return int(not usable)


def _why_no_gpu() -> str:
    return "torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
