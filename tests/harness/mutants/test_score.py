"""The judge must condemn every known-wrong implementation, and the right one never."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from harness.mutants import catalogue, score
from harness.mutants.catalogue import MUTANTS
from harness.mutants.interpose import kernels, parameters
from harness.mutants.mutant import Mutant
from harness.mutants.source import Source
from tests.usable import TRITON, require

BACKENDS = ("torch", "triton", "cupy")
PAIRS = [(backend, mutant) for backend in BACKENDS for mutant in catalogue.of(backend)]


@pytest.mark.parametrize(
    ("backend", "mutant"),
    [
        # What is wrong around a kernel is the same around either set; what is wrong in a kernel's text is not.
        pytest.param(b, m, id=f"{b}-{m.name}", marks=() if b in m.source else TRITON.marks if b == "triton" else ())
        for b, m in PAIRS
    ],
)
def test_is_killed(backend: str, mutant: Mutant, device: torch.device) -> None:
    require(backend, device)
    chosen = score.cases(gpu=device.type == "cuda")
    # Whatever kills it: Triton's interpreter takes seconds for a case, and few of them show these mutants.
    chosen.sort(key=lambda case: case.multiplier is not None and not case.values.startswith("nonfinite"))
    found = score.score(mutant, backend, chosen, device.type, to_the_end=False)
    assert found.killed, f"{mutant.name} ({mutant.wrong}) passes all {found.cases} cases"


@pytest.mark.parametrize("backend", ["torch", TRITON, "cupy"])
def test_the_right_implementation_lives(backend: str, device: torch.device) -> None:
    require(backend, device)
    chosen = score.cases(gpu=device.type == "cuda")
    found = score.score(score.RIGHT, backend, chosen, device.type, to_the_end=True)
    assert not found.killed, f"{found.killed_by}: {found.reason}"
    assert found.cases == len(chosen)


def test_there_are_enough_of_each_kind() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 40
    for backend in BACKENDS:
        assert len(catalogue.of(backend)) >= 40
    # What is wrong around plain torch or in its bands can be wrong in a kernel set too.
    everywhere = {mutant.name for mutant in catalogue.of("torch")}
    for backend in ("triton", "cupy"):
        assert everywhere <= {mutant.name for mutant in catalogue.of(backend)}


def test_the_usual_tolerances_miss_what_the_budget_catches() -> None:
    # The case that others test most: the headline, here with planes of 56 x 56.
    case = score.cases(gpu=False)[0]
    names = ("crop-top", "divisor-one-less", "sample-off", "tf32")
    for mutant in (m for m in MUTANTS if m.name in names):
        found = score.score(mutant, "torch", [case], "cpu", to_the_end=True)
        assert found.killed
        assert found.passes["allclose 1e-2"]


def test_a_source_mutant_says_when_its_text_is_gone() -> None:
    with pytest.raises(ValueError, match="expected 1 matches, found 0"):
        Source("no such text", "").apply("text")
    with pytest.raises(ValueError, match="expected 1 matches, found 2"):
        Source("x", "y").apply("x x")


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_source_mutants_still_find_their_text(backend: str) -> None:
    file = Path(__file__).parents[3] / {"triton": "triton_impl/kernels.py", "cupy": "cupy_impl/kernels.cu"}[backend]
    text = file.read_text()
    for mutant in MUTANTS:
        if backend in mutant.source:
            assert mutant.source[backend].apply(text) != text


def test_both_kernel_sets_name_their_parameters_alike() -> None:
    """A call's pointers and numbers are changed by name, and the names are read off one of the two. The sizes behind
    them are each set's own."""
    text = (Path(__file__).parents[3] / "triton_impl/kernels.py").read_text()
    last = ("scale", "bias_scale", "counters", "dx")

    def asked(names: Sequence[str]) -> list[str]:
        return list(names[: 1 + max(i for i, name in enumerate(names) if name in last)])

    assert kernels()
    for kernel in kernels():
        found = re.search(rf"^def {kernel}\(([^)]*)\)", text, re.MULTILINE)
        assert found, kernel
        names = [p.split(":")[0].strip() for p in found[1].split(",") if "constexpr" not in p]
        assert asked([n for n in names if n]) == asked(parameters(kernel))
