"""Cost of the very first call, in a fresh process: with empty disk caches, and with what that left behind.

`python -m harness.timing.first_call` is the process that is measured, with harness.cases.spelling.arguments: it
prints the seconds of one call, imports and the CUDA context excluded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from harness.cases.case import Case
from harness.cases.spelling import arguments, case_and_entry
from harness.errors import last_line
from runtime.names import ROOT, importable, module_command

CACHES = ("TRITON_CACHE_DIR", "CUPY_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
LIMIT_S = 300  # max-autotune may take minutes; what takes longer is not waited for


class FirstCallError(RuntimeError):
    """The fresh process gave no figure; the message says why."""


def measure(case: Case, entry: str) -> dict[str, float]:
    """Seconds of an entry's first call, with empty caches, then with warm ones. FirstCallError if a process fails."""
    command = [*module_command("harness.timing.first_call"), *arguments(case, entry)]
    with tempfile.TemporaryDirectory() as caches:
        env = os.environ | {name: str(Path(caches) / name) for name in CACHES}
        return {state: _seconds(command, env) for state in ("empty cache", "warm cache")}


def _seconds(command: list[str], env: dict[str, str]) -> float:
    try:
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        return float(done.stdout.split()[-1])
    except subprocess.TimeoutExpired:
        raise FirstCallError(f"first call: no answer in {LIMIT_S} s") from None
    except subprocess.CalledProcessError as error:
        last = last_line(error.stderr)
        raise FirstCallError(f"first call: the fresh process failed: {last}") from None


def main() -> None:
    """Print the seconds of one first call."""
    import torch

    from harness.cases import operators
    from harness.cases.inputs import make_inputs

    for name in (importable("triton_impl.launch"), "cupy"):
        with suppress(ImportError):
            import_module(name)
    case, name = case_and_entry(sys.argv[1:])
    operator = operators.of(case.problem)
    entries, callers = operator.entries(), operator.callers()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = make_inputs(case, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    if name in entries:
        built = entries[name].build(case, inputs)
        with built.context():
            built.call()
    else:
        callers[name]()(inputs)
    wait()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
