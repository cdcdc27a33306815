"""The PTX that both compilers make for sm_89, made anywhere and, on a GPU of 8.9 or more, run and judged."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import convgap
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import make_inputs
from harness.machine import compilers
from harness.mutants.interpose import interposed
from harness.mutants.score import Trial, trial
from harness.numerics.examine import examine
from tests.harness.machine import sm89

NAMES = (
    "chain/edge/prime",
    "chain/edge/groups3",
    "chain/edge/many-channels",
    "tail/edge/prime",
    "tail/headline",
)
CASES = [
    replace(case.small(), name=f"{case.name}@{dtype}@{layout}", dtype=dtype, layout=layout)
    for case in select(NAMES)
    for dtype, layout in (
        ("float32", "contiguous"),
        ("float16", "channels_last"),
        ("bfloat16", "sliced"),
        ("float64", "transposed"),
    )
]


@pytest.mark.parametrize("backend", ["triton", "cupy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_runs_and_is_right(case: Case, backend: str) -> None:
    if reason := sm89.unavailable():
        pytest.skip(reason)
    t: Trial = trial(case, "cuda")
    # The real launches first, so that a backend's probe is not run on this code.
    t.inputs.call(convgap, backend=backend)
    with sm89.executed() as ran:
        verdict = examine(
            lambda i: i.call(convgap, backend=backend), t.inputs, t.expected, case.dtype, t.plan(backend),
            batch_invariant=True,
        )  # fmt: skip
    assert ran, "no sm_89 kernel was launched"
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_gradients_run_too(backend: str) -> None:
    if reason := sm89.unavailable():
        pytest.skip(reason)
    case = replace(select(["chain/edge/prime"])[0], dtype="float64")
    inputs = make_inputs(case, "cuda")
    assert inputs.weight is not None
    leaves = (inputs.x.requires_grad_(), inputs.weight.requires_grad_())
    expected = inputs.call(convgap, backend="torch")
    grad = torch.ones_like(expected)
    wanted = torch.autograd.grad(expected, leaves, grad)
    inputs.call(convgap, backend=backend)
    with sm89.executed() as ran:
        found = torch.autograd.grad(inputs.call(convgap, backend=backend), leaves, grad)
    assert {"expand", "band_fill", "weight_grad"} <= set(ran)
    for a, b in zip(found, wanted, strict=True):
        # Both in float64, sums of at most a few thousand terms of size 1.
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_cuda_ptx_is_for_sm_89() -> None:
    """Needs NVRTC, which comes with CuPy's CUDA packages or a CUDA toolkit, but no GPU."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        pytest.skip(f"CuPy finds no NVRTC: {error}")
    device = torch.device("cpu")
    seen = {}

    def note(launch, device, stream, *arguments):
        seen[launch.kernel] = launch, len(arguments) + len(launch.sizes)
        launch(device, stream, *arguments)

    if not next(s for s in convgap.status(device) if s.name == "cupy").usable:
        pytest.skip("CUDA C++ cannot be interpreted here, so nothing is launched to look at")
    with interposed(note):
        for name in ("chain/edge/prime", "tail/edge/prime"):
            make_inputs(select([name])[0], device).call(convgap, backend="cupy")
    assert seen
    for name, (launch, arguments) in seen.items():
        made = sm89.code(launch, arguments)
        assert re.search(r"^\.target sm_89$", made.ptx, re.MULTILINE)
        entry = re.search(rf"\.entry {name}\(([^)]*)\)", made.ptx)
        assert entry
        assert entry[1].count(".param") == arguments


TRITON = """
import torch
from tests.harness.machine import sm89
from harness.machine.compiled import launches
from reference.problem import Chain, Tail
from triton_impl import prepare

problem = Chain(3, 5, 7, 31, 37, (3, 3), (2, 2), (1, 1))
tail = Tail(3, 5, 31, 37)
stride = 5 * 31 * 37, 31 * 37, 37, 1
for problem, dtype in ((tail, torch.float16), (problem, torch.float32), (problem, torch.bfloat16)):
    for made, *_ in launches(prepare, problem, stride, dtype, True, backward=dtype == torch.bfloat16):
        code = sm89.code(made.launch, len(made.launch.kind.types))
        print(code.entry, code.hidden, ".target sm_89" in code.ptx)
"""


def test_triton_ptx_is_for_sm_89() -> None:
    """In a process of its own, as Triton compiles nothing in one that interprets its kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = compilers.environment()
    done = subprocess.run(
        [sys.executable, "-c", TRITON], check=False, env=environment, capture_output=True, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} >= {"multiply_gap", "band_sums", "contract", "weight_grad"}
    # Two scratch pointers follow the kernel's own parameters.
    assert all(line.split()[1:] == ["2", "True"] for line in lines), done.stdout
