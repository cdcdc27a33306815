"""The form of a kernel whose sizes are constants: shorter, and the same order of additions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import convgap
from harness.cases.case import Case
from harness.cases.catalogue import select
from harness.cases.inputs import make_inputs
from harness.machine import compilers
from harness.mutants.interpose import interposed
from reference.problem import Chain, Tail
from tests.triton_impl.test_kinds import X2, contiguous
from triton_impl import prepare
from triton_impl.launch import INTERPRETED, Launch

ROOT = Path(__file__).parents[2]
GPU = torch.cuda.is_available()

# The kernels must not be interpreted functions here, which is settled when they are decorated.
PROGRAM = r"""
import json, re
from dataclasses import replace

import torch
from triton.backends.compiler import GPUTarget

from harness.machine.compiled import launches
from reference.problem import Chain, Tail
from tests.triton_impl.test_kinds import X2, contiguous
from triton_impl import prepare

CALLS = [
    # Whole planes: in parts, several a program with neighbours read together, one behind the other.
    (Tail(2, 3, 300, 300), "contiguous", torch.float32),
    (Tail(2, 128, 12, 12), "channels_last", torch.float32),
    (Tail(2, 30, 7, 7), "contiguous", torch.float32),
    # Every row the same: a stride of 0.
    (Chain(1, 1, 1, 64, 4000, (2, 1), padding=(1, 0)), "equal rows", torch.float32),
    # One launch, then two of them with the gradients; weights that are folded; planes of a few elements.
    (Chain(2, 8, 16, 128, 128, **X2), "contiguous", torch.float16),
    (Chain(3, 64, 32, 30, 30, **X2), "channels_last", torch.float32),
    (Chain(3, 1024, 512, 4, 4, (4, 4), (2, 2), (1, 1)), "contiguous", torch.float32),
    (Chain(5, 64, 48, 1, 1, (4, 4)), "contiguous", torch.float32),
    # Every row is in every band, which only the sizes tell here: a branch that is never taken.
    (Chain(8, 128, 3, 64, 64, (4, 4), (4, 4)), "contiguous", torch.float32),
]

def order(text):
    "Axis, operand and its layout of each sum, and operand layouts of each product: they fix the order of additions."
    layouts = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE))
    sums = re.findall(r'"tt.reduce"\(.*?axis = (\d+).*?\n *\}\) : \((tensor<[^)]*)\) ->', text, re.DOTALL)
    dots = re.findall(r"tt\.dot [^\n]* : (.*?) loc", text)
    found = [f"{axis} {kind}" for axis, kind in sums] + dots
    # An axis of one element has no order.
    trivial = [one for one in found[: len(sums)] if re.findall(r"[<x](\d+)(?=x)", one)[int(one[0])] == "1"]
    assert len(found) == text.count('"tt.reduce"') + text.count("tt.dot "), "a sum or product that was not read"
    found = [one for one in found if one not in trivial]
    for _ in range(3):
        # A layout may be made from others.
        found = [re.sub(r"#\w+", lambda name: layouts.get(name[0], name[0]), one) for one in found]
    return set(found)

found = []
for problem, layout, dtype in CALLS:
    _, c, h, w = shape = problem.in_shape
    last = layout == "channels_last"
    stride = (c * h * w, 1, w * c, c) if last else (w, w, 0, 1) if layout == "equal rows" else contiguous(shape)
    for made, _, _ in launches(prepare, problem, stride, dtype, True, backward=last):
        forms = []
        for special in (made.launch.special, replace(made.launch.special, sizes=made.launch.sizes)):
            compiled = special.compile(GPUTarget("cuda", 89, 32))
            forms.append((order(compiled.asm["ttgir"]), compiled.asm["ptx"].count(";\n")))
        (general, long), (fixed, short) = forms
        if made.launch.kernel == "weight_grad":
            # Its one sum picks a column: of a number and zeros, which any order adds alike.
            fixed = {one for one in fixed if one.startswith("tensor")}
            assert fixed, "no product was read"
        found.append((made.launch.kernel, sorted(fixed - general), long, short))
print(json.dumps(found))
"""


def test_every_kernel_has_a_shorter_form_for_its_sizes_which_adds_in_the_same_order(tmp_path: Path) -> None:
    environment = compilers.environment()
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # Of each launch of some calls: the kernel, sums and products of the fixed form that the general one has not in the
    # same layout, instructions of the general form and of the fixed one.
    compiled: list[tuple[str, list[str], int, int]] = json.loads(done.stdout)
    assert {kernel for kernel, *_ in compiled} == {
        "multiply_gap", "multiply_gap_flat", "band_sums", "contract", "band_sums_contract", "planes_contract", "expand",
        "band_fill", "weight_grad",
    }  # fmt: skip
    assert [row for row in compiled if row[3] >= row[2]] == []
    assert [(kernel, other) for kernel, other, *_ in compiled if other] == []


def launched(problem: Chain) -> Launch:
    made = prepare.prepare_band_sums(problem, contiguous(problem.in_shape), torch.float32, 0).launch
    assert isinstance(made, Launch)
    return Launch(made.special, made.grid, made.sizes)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU, where `fix` compiles, the next test shows what comes of it")
def test_a_fixed_launch_is_a_kind_of_its_sizes() -> None:
    """Launches of one kind part when they are fixed, and a launch that was not stays as it was."""
    device = torch.device("cpu")
    a, b, c = (launched(Chain(2, 8, 16, h, 128, **X2)) for h in (128, 160, 128))
    assert a.kind == b.kind == c.kind and not a.fixed
    general, sizes = c.kind, a.sizes
    a.fix(device)
    b.fix(device)
    assert a.fixed and b.fixed and not c.fixed
    assert a.sizes == sizes and len({a.kind, b.kind, general}) == 3 and c.kind == general
    c.fix(device)
    assert c.kind == a.kind and hash(c.kind) == hash(a.kind)


def answer(case: Case, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The output of a case and, if it is about training, the gradients."""
    inputs = make_inputs(case, device)
    if not case.backward:
        return (inputs.call(convgap, backend="triton"),)
    leaves = inputs.x.requires_grad_(), inputs.weight.requires_grad_()  # pyright: ignore[reportOptionalMemberAccess]
    out = inputs.call(convgap, backend="triton")
    return out, *torch.autograd.grad(out.square().sum(), leaves)


CASES = [
    *(case for case in select(gpu=GPU) if not case.backward),
    Case("fixed/training", Chain(3, 40, 24, 30, 33, **X2), "gradients", values="normal", backward=True),
    Case("fixed/small", Chain(5, 64, 48, 1, 1, (4, 4)), "planes of one element", values="normal"),
    Case("fixed/flat", Tail(3, 70, 7, 7), "planes in a run", values="normal"),
]


@pytest.mark.skipif(not GPU, reason="without a GPU nothing is compiled, so both forms are one")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_bits(case: Case, device: torch.device) -> None:
    general = answer(case, device)
    fixed_kinds = []

    def fix(launch: Any, device: torch.device, stream: int, *arguments: Any) -> None:
        own = Launch(launch.special, launch.grid, launch.sizes)
        own.fix(device)
        own(device, stream, *arguments)
        fixed_kinds.append(own.kind)

    with interposed(fix):
        fixed = answer(case, device)
    assert fixed_kinds and all(kind.sizes for kind in fixed_kinds)
    for a, b in zip(general, fixed, strict=True):
        assert torch.equal(a, b)
