"""Calls that a kernel set cannot launch are left to the next, and cost no other call; the variable and the status."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import convgap
from convgap import probe
from cupy_impl.interpret import unavailable
from reference.problem import Chain
from runtime import call
from runtime.prepared import Unlaunchable
from tests.convgap.test_faults import DEVICE, GPU, PROGRAM, run
from torch_impl import forward

KIND = """
from triton_impl import launch
launched = launch.Launch.__call__
def only_float32(self, device, stream, *arguments):
    if arguments[0].dtype == torch.float64:
        tried.append(1)
        raise RuntimeError("out of resources: shared memory")
    return launched(self, device, stream, *arguments)
launch.Launch.__call__ = only_float32
tried = []
y = torch.rand(2, 3, 5, 6, device=device)
found = {"warned": []}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        for given in (y.double(), y):
            torch.testing.assert_close(convgap.multiply_gap(given, 0.5), eager.multiply_gap(given, 0.5))
found["warned"] = [str(w.message) for w in caught if "convgap" in str(w.message)]
found["served"] = [convgap.explain(convgap.multiply_gap, t, 0.5).steps[0].backend for t in (y.double(), y)]
found["why"] = convgap.explain(convgap.multiply_gap, y.double(), 0.5).steps[0].chosen
convgap.multiply_gap(y, 0.5, backend="triton")
try:
    convgap.multiply_gap(y.double(), 0.5, backend="triton")
except RuntimeError as error:
    found["named"] = str(error)
found["usable"] = convgap.status(device)[0].usable
found["tried"] = len(tried)
print(json.dumps(found))
"""


def test_a_call_that_cannot_be_launched_costs_no_other_call() -> None:
    reason = unavailable()
    if not GPU and reason:
        pytest.skip(f"the CUDA C++ interpreter is the next backend here, and cannot run: {reason}")
    found = run("", program=PROGRAM.partition("FAULT")[0] + KIND)
    assert found["served"] == ["cupy", "triton"]
    (warning,) = found["warned"]
    for said in (warning, found["named"], found["why"]):
        assert "out of resources: shared memory" in said
    assert found["usable"]
    # What failed to compile is not compiled again, whether it is asked for by name or not.
    assert found["tried"] == 1


def test_what_plain_torch_cannot_do_is_laid_on_no_kernel_set(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Chain(1, 2, 2, 5, 5, (3, 3))
    check = probe.check_chain(problem, torch.ones(1, 2, 5, 5), torch.ones(2, 2, 3, 3), None, False)
    assert check is not None

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    def nothing(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(call, "prepare_chain", nothing)
    monkeypatch.setattr(forward, "chain", fail)
    with pytest.raises(Unlaunchable, match="planted"):
        check(None)


@pytest.mark.parametrize("backend", ["auto", "triton", "cupy"])
def test_groups_beyond_a_grid(backend: str) -> None:
    groups = 65536
    x, weight = torch.rand(1, groups, 3, 3, device=DEVICE), torch.rand(groups, 1, 2, 2, device=DEVICE)
    expected = torch.nn.functional.conv_transpose2d(x, weight, groups=groups).mean((2, 3), keepdim=True)
    if backend != "auto" and not GPU:
        pytest.skip("an interpreter takes minutes for as many blocks")
    got = convgap.conv_transpose2d_multiply_gap(x, weight, groups=groups, backend=backend)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("value", "words"), [("", None), ("triton2", "CONVGAP_BACKEND"), ("torch", None)])
def test_the_variable(value: str, words: str | None) -> None:
    program = """
import json, torch, convgap
try:
    convgap.multiply_gap(torch.ones(1, 2, 3, 4), 1.0)
    print(json.dumps(None))
except ValueError as error:
    print(json.dumps(str(error)))
"""
    said = run("", "cpu", program, CONVGAP_BACKEND=value)
    assert said is None if words is None else words in said and value in said


@pytest.mark.parametrize("device", ["cpu:0", "cuda:0", "cuda", "cuda:99", "meta"])
def test_status_is_an_answer(device: str) -> None:
    program = f"import json, convgap\nprint(json.dumps([s.reason for s in convgap.status({device!r})]))"
    for visible in {"", *([os.environ.get("CUDA_VISIBLE_DEVICES", "0")] if GPU else [])}:
        reasons = run("", "cpu", program, CUDA_VISIBLE_DEVICES=visible)
        assert reasons[2] == ""
        if device.startswith("cuda") and not visible:
            assert reasons[:2] == ["RuntimeError: torch finds no CUDA device"] * 2
        assert not any("CUDA error" in reason for reason in reasons)
