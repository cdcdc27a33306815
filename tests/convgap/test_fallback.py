"""Without Triton, without CuPy, without both: what still works, and what the reasons say. In fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from convgap import probe

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# As if the packages had never been installed: None among the modules is Python's mark for what is not found.
PRELUDE = """
import json, sys, warnings

sys.modules.update(dict.fromkeys(MISSING))
"""

PROGRAM = """
import torch
import convgap
from reference import eager

device = sys.argv[1]
x, w, b = (torch.rand(s, device=device) for s in ((2, 3, 5, 6), (3, 4, 3, 3), (4,)))
arguments = {"multiplier": 0.5, "stride": 2, "padding": 1, "output_padding": 1}
with eager.ieee_float32():
    expected = eager.conv_transpose2d_multiply_gap(x, w, b, **arguments)
results, warned = {}, []
for name in ("auto", *convgap.BACKENDS):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            got = [convgap.conv_transpose2d_multiply_gap(x, w, b, **arguments, backend=name) for _ in range(2)]
            results[name] = "right" if all(torch.allclose(g, expected, rtol=1e-5) for g in got) else "wrong"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    warned += [str(w.message) for w in caught if "convgap" in str(w.message)]
status = {s.name: {"usable": s.usable, "how": s.how, "reason": s.reason} for s in convgap.status(device)}
there = [name for name in ("triton", "cupy") if sys.modules.get(name)]
print(json.dumps({"results": results, "warned": warned, "status": status, "imported": there}))
"""


def run(missing: set[str], device: str = DEVICE, program: str = PROGRAM, **variables: str) -> Any:
    """What `program` prints, as JSON, in a process that cannot import `missing`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CONVGAP_BACKEND")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    if device == "cpu":
        environment.setdefault("TRITON_INTERPRET", "1")
    done = subprocess.run(
        [sys.executable, "-c", f"MISSING = {missing!r}\n{PRELUDE}\n{program}", device],
        check=False, capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("missing", [{"triton"}, {"cupy"}, {"triton", "cupy"}], ids=["triton", "cupy", "both"])
def test_the_rest_works(missing: set[str]) -> None:
    found = run(missing)
    # Interpreting kernels.cu on the CPU takes no CuPy.
    lost = missing if DEVICE == "cuda" else missing & {"triton"}
    assert not set(found["imported"]) & missing
    for name in ("triton", "cupy"):
        status, label = found["status"][name], {"triton": "Triton", "cupy": "CuPy"}[name]
        if name in lost:
            assert not status["usable"]
            assert f"{label} is not installed" in status["reason"]
            assert found["results"][name].startswith(f"RuntimeError: backend '{name}' is not usable on {DEVICE}")
            assert status["reason"] in found["results"][name]
        elif status["usable"]:
            assert found["results"][name] == "right"
            assert status["reason"] == ""
        else:
            pytest.skip(f"{name} is not usable here: {status['reason']}")
    assert found["results"]["torch"] == found["results"]["auto"] == "right"
    # One warning per backend that "auto" has to skip, however often it is called. On the CPU nobody
    # expects a kernel, so nothing is said.
    skipped = {"triton": ["triton"], "triton+cupy": ["triton", "cupy"]}
    expected = skipped.get("+".join(sorted(lost, reverse=True)), []) if DEVICE == "cuda" else []
    assert len(found["warned"]) == len(expected), found["warned"]
    for name, warning in zip(expected, found["warned"], strict=True):
        assert f"'{name}'" in warning
        assert "is not installed" in warning


def test_import_and_cpu_need_neither_interpreter() -> None:
    # A plain `import convgap` and a call on the CPU load no kernel set at all.
    program = """
import torch, convgap
out = convgap.multiply_gap(torch.ones(2, 3, 4, 5), 2.0)
loaded = [m for m in ("triton_impl.kernels", "cupy_impl.launch", "cupy") if m in sys.modules]
print(json.dumps([out.flatten().tolist(), loaded]))
"""
    values, loaded = run(set(), "cpu", program)
    assert values == [2.0] * 6
    assert loaded == []


def test_reason_on_the_cpu_without_the_interpreter() -> None:
    found = run(set(), "cpu", TRITON_INTERPRET="0")
    assert "TRITON_INTERPRET=1" in found["status"]["triton"]["reason"]
    assert found["results"]["triton"].startswith("RuntimeError: ")


def test_reason_without_a_compiler(tmp_path: Path) -> None:
    found = run(set(), "cpu", CXX="no-such-compiler", CONVGAP_CACHE_DIR=str(tmp_path))
    assert "no-such-compiler" in found["status"]["cupy"]["reason"]
    assert found["results"]["cupy"].startswith("RuntimeError: ")
    assert found["results"]["auto"] == "right"


def test_environment_variable_names_the_default() -> None:
    found = run({"triton"}, "cpu", CONVGAP_BACKEND="triton")
    assert "Triton is not installed" in found["results"]["auto"]
    assert found["results"]["torch"] == "right"


def test_environment_variable_must_name_a_backend() -> None:
    found = run(set(), "cpu", CONVGAP_BACKEND="cuda")
    assert found["results"]["auto"].startswith("ValueError: ")
    assert "'cuda'" in found["results"]["auto"]


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [
        ("3.6.0", "2.3.5", True),
        ("3.6.0+git1a2b", "2.4.0rc1", False),
        ("3.7.0", "2.5.0", True),
        ("3.10.1", "2.10.0", True),
    ],
)
def test_versions_that_do_not_interpret_together_are_named(triton: str, numpy: str, works: bool) -> None:
    reason = probe.cannot_interpret(triton, numpy)
    assert reason is None if works else reason is not None and triton in reason and numpy in reason
