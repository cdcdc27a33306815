"""What Nsight Compute looks at: one call of one entry on one case, between two marks of the CUDA profiler.

`python -m harness.machine.profile_target` takes harness.cases.spelling.arguments. Everything is compiled and warmed up
before the first mark, so what is profiled is the call alone; ncu itself empties the caches before each pass over a
kernel.
"""

from __future__ import annotations

import sys

import torch

from harness.cases import operators
from harness.cases.inputs import make_inputs
from harness.cases.spelling import case_and_entry
from harness.entries.entry import Unavailable

REFUSED = "unavailable: "
"""What it prints, with the reason, where the entry has nothing to do with the case."""


def main() -> None:
    """Profile one call."""
    case, name = case_and_entry(sys.argv[1:])
    entry = operators.of(case.problem).entries()[name]
    try:
        built = entry.build(case, make_inputs(case, torch.device("cuda")))
    except Unavailable as reason:
        print(f"{REFUSED}{reason}")
        return
    with built.context():
        for _ in range(3):
            built.call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        built.call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
