"""`bench.py sanitize`: NVIDIA's compute-sanitizer over every kernel of both sets.

memcheck finds accesses outside a buffer, racecheck races in shared memory, initcheck reads of memory
that was never written, synccheck threads that miss a barrier. Memory comes straight from the driver
(PYTORCH_NO_CUDA_MEMORY_CACHING), since inside a caching allocator's block nothing is out of bounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import convgap
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import make_inputs
from harness.errors import UsageError, last_line
from harness.mutants.interpose import interposed, kernels
from harness.options import refuse, require_known, words
from runtime.names import ROOT, importable, module_command

SUMMARY = "run compute-sanitizer over every kernel of both sets; any finding fails"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 86
"""Exit code that compute-sanitizer is told to use for findings; no other one means that."""

_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")


def find() -> str:
    """Path of compute-sanitizer: on PATH, or where CUDA toolkits put it. UsageError where it cannot run."""
    if not torch.cuda.is_available():
        raise UsageError("compute-sanitizer needs a GPU, and torch finds none")
    for place in (None, *_PLACES):
        if found := shutil.which("compute-sanitizer", path=place):
            return found
    raise UsageError(f"compute-sanitizer is not on PATH nor in {', '.join(_PLACES)}; it is part of the CUDA toolkit")


def driver(backends: list[str]) -> list[str]:
    """Command line that launches every kernel of the backends, under no sanitizer."""
    return [*module_command("harness.commands.sanitize"), "--drive", "--backends", ",".join(backends)]


def command(tool: str, sanitizer: str, backends: list[str]) -> list[str]:
    """Command line of one tool over the driver."""
    return [
        sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20",
        *(["--leak-check", "no"] if tool == "memcheck" else []),
        *driver(backends),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """This process's environment with torch's caching allocator off."""
    return os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def driven_cases(device: str) -> Iterator[Case]:
    """Small calls that reach every kernel: one launch and two, one part a plane and several, all dtypes.

    On a GPU also one sample of the headline: large planes, of which a CUDA block contracts two; and weights large
    enough for the other form of `contract`.
    """
    if device != "cpu":
        large, many = select(("chain/headline", "chain/edge/many-samples"))
        yield replace(large, problem=replace(large.problem, n=1))
        yield replace(many, problem=replace(many.problem, c_in=200))
    named = select(
        (
            "chain/edge/1x1", "chain/edge/prime", "chain/edge/groups3", "chain/edge/many-samples", "tail/edge/prime",
            "tail/edge/7x7", "tail/1024",
        )
    )  # fmt: skip
    for case in named:
        small = case.small()
        for dtype, layout in (
            ("float32", "contiguous"),
            ("float32", "channels_last"),
            ("float16", "contiguous"),
            ("bfloat16", "sliced"),
            ("float64", "transposed"),
        ):
            yield replace(small, dtype=dtype, layout=layout)


def drive(backends: list[str], device: str) -> set[str]:
    """Run the cases forward and backward; gives the names of the kernels launched."""
    launched: set[str] = set()

    def note(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        launched.add(launch.kernel)
        launch(device, stream, *arguments)

    convgap.status(device)
    for case in driven_cases(device):
        # Made on the CPU and copied: what torch's own kernels do is not under test.
        inputs = make_inputs(case, "cpu")
        inputs = replace(inputs, **{name: _moved(value, device) for name, value in inputs.tensors().items()})
        for backend in backends:
            with interposed(note):
                inputs.call(convgap, backend=backend)
                leaves = [t.detach().requires_grad_() for t in (inputs.x, inputs.weight) if t is not None]
                names = ("x", "weight")[: len(leaves)]
                answer = replace(inputs, **dict(zip(names, leaves, strict=True))).call(convgap, backend=backend)
                torch.autograd.grad(answer.sum(), leaves)
    if device != "cpu":
        torch.cuda.synchronize()
    return launched


def _moved(value: Tensor, device: str) -> Tensor:
    """The tensor on the device, with its strides and what lies between its elements."""
    extent = value.untyped_storage().nbytes() // value.element_size()
    whole = value.as_strided((extent,), (1,), 0).to(device)
    return whole.as_strided(value.shape, value.stride(), value.storage_offset())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Command line of `bench.py sanitize`."""
    parser.add_argument("--tools", type=words, metavar="LIST", help=f"some of {', '.join(TOOLS)} (default: all)")
    parser.add_argument("--backends", type=words, metavar="LIST", help="triton, cupy (default: both)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep each tool's output in this directory")
    parser.add_argument("--drive", action="store_true", help="only launch the kernels, under no sanitizer")


def run(args: argparse.Namespace) -> int:
    """Print one line a tool; 0 if nothing was found, else 1 after the tool's own words."""
    backends, tools = args.backends or ["triton", "cupy"], args.tools or list(TOOLS)
    require_known("tools", tools, TOOLS)
    require_known("backends", backends, ("triton", "cupy"))
    if args.drive:
        refuse(args, ("tools", "logs"), "expected without --drive, which runs no tool")
        if not torch.cuda.is_available():
            raise UsageError("the kernels need a GPU, and torch finds none")
        launched = drive(backends, "cuda")
        print("launched", ", ".join(sorted(launched)))
        if missing := set(kernels()) - launched:
            print("not launched", ", ".join(sorted(missing)))
        return int(bool(missing))
    sanitizer = find()
    # First without: what is compiled now is read from the compilers' caches by the four runs that follow.
    done = subprocess.run(driver(backends), check=False, env=environment(), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"the kernels fail without a sanitizer already: {last_line(done.stderr or done.stdout)}")
    return max(_one(tool, command(tool, sanitizer, backends), args.logs) for tool in tools)


def _one(tool: str, words: list[str], logs: Path | None) -> int:
    started = time.monotonic()
    done = subprocess.run(
        words, check=False, env=environment(), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if logs:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{tool}.log").write_text(done.stdout)
    seconds = time.monotonic() - started
    if done.returncode == 0 and "launched" in done.stdout:
        print(f"{tool}: clean, {seconds:.0f} s", flush=True)
        return 0
    what = "findings" if done.returncode == FOUND else f"failed with exit code {done.returncode}"
    print(f"{tool}: {what}, {seconds:.0f} s\n{done.stdout}", flush=True)
    return 1


def main() -> int:
    """`python3 -m harness.commands.sanitize`: what the sanitizers run, and the same command without bench.py."""
    parser = argparse.ArgumentParser(prog=importable("harness.commands.sanitize"), description=SUMMARY)
    add_arguments(parser)
    parser.set_defaults(default=parser.get_default)
    try:
        return run(parser.parse_args())
    except UsageError as error:
        print(f"sanitize: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
