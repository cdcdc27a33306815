"""What Nsight Compute looks at: one call of one row on one case, between two marks of the CUDA profiler.

`python -m harness.machine.profile_target SHAPE DTYPE LAYOUT BACKEND`. Everything is compiled and warmed up before the
first mark, so what is profiled is the call alone; ncu itself empties the caches before each pass over a kernel.
"""

from __future__ import annotations

import argparse

import torch

from harness.cases.catalogue import Case
from harness.cases.inputs import make_inputs
from harness.cases.spelling import parse
from harness.entries.entry import PEERS


def main() -> None:
    """Profile one call."""
    parser = argparse.ArgumentParser()
    for name in ("shape", "dtype", "layout", "backend"):
        parser.add_argument(name)
    args = parser.parse_args()
    case = Case("profile", parse(args.shape), "one profiled call", dtype=args.dtype, layout=args.layout)
    device = torch.device("cuda")
    built = PEERS[args.backend].build(case, make_inputs(case, device))
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
