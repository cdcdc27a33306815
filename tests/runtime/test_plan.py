"""A plan is read, checked and named, and under one plan results have the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from harness.cli import main
from runtime import plan
from runtime.plan import Plan, PlanError
from tests.usable import require

ROOT = Path(__file__).parents[2]
CARD = "NVIDIA A Card"
# Each changes the launches of the call below: a plane of 40 x 40 is neither tiny nor of several parts.
CONSTANTS = {"triton": {"BANDS_ELEMENTS": 32}, "cupy": {"SMALL_BYTES": 4 << 10}}
GOOD = Plan("plan.json", CARD, "by a test", CONSTANTS)

PROGRAM = """
import sys, torch, convgap
torch.manual_seed(0)
x, weight = torch.rand(2, 3, 40, 40), torch.rand(3, 16, 3, 3)
call = lambda x: convgap.conv_transpose2d_multiply_gap(x, weight, stride=2, padding=1, backend=sys.argv[1])
out = call(x)
assert torch.equal(out[:1], call(x[:1])), "a sample's bits depend on the batch"
print(out.flatten().tolist())
print(convgap.explain(call, x))
"""


def run(backend: str, path: Path | None, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which reads the plan as it imports the kernel set."""
    environment = {name: value for name, value in os.environ.items() if name != plan.VARIABLE}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment |= {} if path is None else {plan.VARIABLE: str(path)}
    command = [sys.executable, "-c", program, backend]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def written(path: Path, **changes: Any) -> Path:
    path.write_text(replace(GOOD, **changes).to_json())
    return path


@pytest.fixture(autouse=True)
def read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is kept once it is read: each test reads its own."""
    monkeypatch.setattr(plan, "PATH", None)
    plan._kept.cache_clear()


def test_a_plan_is_what_was_written(tmp_path: Path) -> None:
    found = plan.load(written(tmp_path / "plan.json"))
    assert replace(found, source=GOOD.source) == GOOD
    assert str(found) == f"plan.json ({GOOD.digest}, for {CARD})"


def test_the_digest_is_of_card_and_constants_alone(tmp_path: Path) -> None:
    assert replace(GOOD, source="other.json", made="later").digest == GOOD.digest
    assert replace(GOOD, card="another").digest != GOOD.digest
    assert replace(GOOD, constants={"cupy": {"THREADS": 256}}).digest != GOOD.digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "expected an object, got []"),
        ("{}", "expected schema 'convgap-plan-1', got None"),
        ('{"schema": "convgap-plan-1"}', "expected the fields schema, card, made, constants"),
        (replace(GOOD, card="").to_json(), "expected the name of a card, got ''"),
        (replace(GOOD, made=3).to_json(), "expected in 'made' a text, got 3"),  # pyright: ignore
        (replace(GOOD, constants=[]).to_json(), "expected in 'constants' an object"),  # pyright: ignore
        (replace(GOOD, constants={"torch": {}}).to_json(), "expected constants of triton and cupy"),
        (replace(GOOD, constants={"cupy": 3}).to_json(), "expected an object of cupy's constants"),  # pyright: ignore
        (replace(GOOD, constants={"cupy": {"THREADS": True}}).to_json(), "whole number for cupy's THREADS"),
        (
            replace(GOOD, constants={"cupy": {"THREADS": 1.5}}).to_json(),  # pyright: ignore
            "whole number for cupy's THREADS",
        ),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_plan_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match="CONVGAP_PLAN: ") as found:
        plan.load(path)
    assert words in str(found.value) and str(path) in str(found.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be read \(No such file"):
        plan.load(tmp_path / "absent.json")


@pytest.mark.parametrize("kernels", plan.KERNEL_SETS)
def test_only_tunable_constants_and_their_values_are_set(
    kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply(values: dict[str, int]) -> tuple[int, int]:
        plan._kept.cache_clear()
        written(path, constants={kernels: values})
        constants = ModuleType("constants")
        constants.WARP, constants.MINE = 32, 7  # pyright: ignore[reportAttributeAccessIssue]
        plan.apply(kernels, constants, {"MINE": (1, 2)})
        return constants.WARP, constants.MINE

    path = tmp_path / "plan.json"
    monkeypatch.setattr(plan, "PATH", path)
    assert apply({}) == (32, 7)
    assert apply({"MINE": 2}) == (32, 2)
    assert apply({"MINE": 7}) == (32, 7)
    with pytest.raises(PlanError, match=f"expected constants of {kernels} among MINE, got WARP"):
        apply({"WARP": 64})
    with pytest.raises(PlanError, match=f"expected one of 1, 2 for {kernels}'s MINE, got 3"):
        apply({"MINE": 3})
    plan._kept.cache_clear()


@pytest.mark.parametrize("kernels", plan.KERNEL_SETS)
def test_what_a_plan_may_set_is_there_with_the_value_that_is_shipped(kernels: str) -> None:
    constants = import_module(f"{kernels}_impl.constants")
    tunable = import_module(f"{kernels}_impl.tunable").TUNABLE
    odd = [name for name, values in tunable.items() if getattr(constants, name, None) not in values]
    assert odd == []


@pytest.mark.parametrize("backend", plan.KERNEL_SETS)
def test_the_same_bits_under_one_plan_which_explain_names(backend: str, tmp_path: Path) -> None:
    require(backend, torch.device("cpu"))
    first, second = (run(backend, written(tmp_path / f"{name}.json")) for name in ("a", "b"))
    without = run(backend, None)
    for done in (first, second, without):
        assert done.returncode == 0, done.stderr
    bits, said = first.stdout.splitlines()
    assert said.endswith(f"; plan a.json ({GOOD.digest}, for {CARD})")
    assert second.stdout.splitlines()[0] == bits
    # Another order of additions: of 32 outputs some are rounded another way. The values are as good.
    other, said = without.stdout.splitlines()
    assert other != bits and "; plan " not in said
    torch.testing.assert_close(torch.tensor(json.loads(bits)), torch.tensor(json.loads(other)))


@pytest.mark.parametrize("backend", plan.KERNEL_SETS)
def test_a_wrong_value_is_an_error_and_no_reason_for_another_backend(backend: str, tmp_path: Path) -> None:
    require(backend, torch.device("cpu"))
    path = written(tmp_path / "plan.json", constants={backend: {"PART_BYTES": 12345}})
    done = run(backend, path)
    assert done.returncode and "PlanError: CONVGAP_PLAN: plan.json" in done.stderr
    assert f"for {backend}'s PART_BYTES, got 12345" in done.stderr


def test_a_plan_of_another_card_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PATH", written(tmp_path / "plan.json"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA B Card")
    cuda = torch.device("cuda", 0)
    with pytest.raises(PlanError, match=r"expected a plan for NVIDIA B Card, got plan\.json .*NVIDIA A Card"):
        plan.require_card(cuda)
    plan.require_card(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: CARD)
    plan.require_card(cuda)


def test_a_command_answers_a_bad_plan_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "PATH", tmp_path / "absent.json")
    assert main(["doctor"]) == 2
    assert "bench.py doctor: CONVGAP_PLAN: " in capsys.readouterr().err


def test_doctor_and_records_name_the_plan_and_export_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else CARD
    mine = replace(GOOD, card=card)
    monkeypatch.setattr(plan, "PATH", written(tmp_path / "plan.json", card=card))
    name = f"plan.json ({mine.digest}, for {card})"
    main(["doctor"])
    assert f"plan       {name}" in capsys.readouterr().out
    record = tmp_path / "record.json"
    words = ["--shape", "tail:1,2,3,4", "--backends", "torch", "--json", str(record)]
    assert main(["compare", *words]) == 0
    assert json.loads(record.read_text())["settings"]["plan"] == name
    assert name in " ".join(capsys.readouterr().out.split())
    assert main(["export"]) == 2
    assert "unset CONVGAP_PLAN" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "found"), [("", "None"), ("here.json", "/here.json")])
def test_the_variable_is_read_at_import_and_empty_counts_as_unset(value: str, found: str, tmp_path: Path) -> None:
    """A relative name is of the folder that the program was started in, whatever it does later."""
    environment = {**os.environ, plan.VARIABLE: value, "PYTHONPATH": str(ROOT)}
    program = "import os; from runtime import plan; os.chdir('/'); print(plan.PATH)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (found if found == "None" else f"{tmp_path}{found}")
