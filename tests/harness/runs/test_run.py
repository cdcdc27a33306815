"""A kernel that costs the process its GPU costs its own entry alone; what has no room costs its own case alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.cases.case import Case
from harness.entries.entry import Entry
from harness.records.as_json import load, to_json
from harness.records.environment import environment
from harness.records.record import Environment, Run
from harness.runs import run as running
from harness.runs.check import device_lost
from harness.runs.run import begun, run_cases
from reference.problem import Tail

ROOT = Path(__file__).parents[3]

FAKE = """
import sys
import torch
from harness.cli import main
from harness.entries import entry
from harness.entries.entry import Built, Entry
from harness.runs import check, run
from tests.harness.planted import eagerly, three

# A device that answers no more once `crasher` was called, to any entry, for as long as this process lives.
lost = []
torch.cuda.is_available = lambda: False
check.device_lost = run.device_lost = lambda device: bool(lost)


def alive(build):
    def built(case, inputs):
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return build(case, inputs)

    return built


def crash(case, inputs):
    def call():
        lost.append(case.name)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    return Built(call, "crasher", 1)


table = {name: Entry(name, "planted", alive(old.build), old.product, True) for name, old in three().items()}
crasher = Entry("crasher", "planted", alive(crash), product=PRODUCT, cpu=True)
entry.ENTRIES = {"right": table["right"], "crasher": crasher, "eager-ieee": table["eager-ieee"]}
sys.exit(main())
"""


@pytest.mark.parametrize("command, product", [([], True), (["check"], False)])
def test_entries_behind_a_crash_are_right(command: list[str], product: bool, tmp_path: Path) -> None:
    script, path = tmp_path / "fake.py", tmp_path / "run.json"
    script.write_text(FAKE.replace("PRODUCT", str(product)))
    words = [*command, "--shape", "tail:2,3,4,5"]
    words += ["--json", str(path)] if command != ["check"] else []
    done = subprocess.run(
        [sys.executable, str(script), *words], check=False, capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == int(product), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"1 cases: 2 answers inside their budget, {int(product)} wrong" in done.stdout
    assert "crasher: the GPU was lost, and a new process goes on" in done.stdout
    # What the processes handed on is gone.
    assert not list(tmp_path.glob("convgap-run-*"))
    if path.exists():
        for case in load(path).cases:
            assert [result.entry for result in case.results] == ["right", "crasher", "eager-ieee"]
            assert [result.status for result in case.results] == [
                "right", "wrong" if product else "unavailable", "right",
            ]  # fmt: skip
            assert "illegal memory access" in case.results[1].reason


def test_a_gpu_that_is_gone_for_new_processes_too_ends_the_run(tmp_path: Path) -> None:
    there = Environment("", "", "", "", "", {}, gpu="a card")
    path = tmp_path / "run.json"
    path.write_text(to_json(Run(there, {})))
    with pytest.raises(ValueError, match="lost for new processes too"):
        begun(path, environment(torch.device("cpu"), None), {})
    assert not path.exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_a_case_without_room_is_flagged_and_the_others_go_on(
    error: Exception, entries: dict[str, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = running.check_case

    def check_case(case: Case, *others):
        if case.name == "large":
            raise error
        return right(case, *others)

    monkeypatch.setattr(running, "check_case", check_case)
    device = torch.device("cpu")
    run = Run(environment(device, None), {})
    cases = [Case("large", Tail(1, 1, 2, 2), ""), Case("small", Tail(1, 1, 2, 2), "")]
    run_cases(run, cases, list(entries.values()), device, None, lambda _: None)
    large, small = run.cases
    assert large.unmade and {result.status for result in large.results} == {"unavailable"}
    assert not small.unmade and small.results[0].status == "right" and run.finished


GPU = """
import sys
import torch
from harness.cli import main
from harness.entries import entry
from harness.entries.entry import Built, Entry
from tests.harness.planted import eagerly


def crash(case, inputs):
    import cupy

    write = cupy.RawKernel('extern "C" __global__ void wild(float* p) { p[1ll << 40] = 1; }', "wild")

    def call():
        write((1,), (1,), (8,))
        torch.cuda.synchronize()

    return Built(call, "a wild pointer", 1)


entry.ENTRIES = {
    "crasher": Entry("crasher", "planted", crash),
    "right": Entry("right", "planted", eagerly(), product=True),
    "eager-ieee": Entry("eager-ieee", "planted", eagerly()),
}
sys.exit(main())
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="loses a GPU's context, and there is no GPU")
def test_entries_behind_a_real_illegal_access_are_right(tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    (tmp_path / "gpu.py").write_text(GPU)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "gpu.py"), "check", "--shape", "tail:2,3,64,64", "--dtype", "float64"],
        check=False, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases: 2 answers inside their budget, 0 wrong" in done.stdout


def test_a_cpu_is_never_lost() -> None:
    assert not device_lost(torch.device("cpu"))
