"""Broken installations, each in a fresh process: the next backend gives the right answer, and one warning says why.

Without a GPU "auto" is told to try the interpreters of both kernel sets, so that the same machinery runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cupy_impl.interpret import unavailable

ROOT = Path(__file__).parents[2]
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

PROGRAM = """
import contextlib, io, json, sys, warnings
import torch

class Broken:
    # A package whose import fails with `error`.
    def __init__(self, package, error):
        self.package, self.error = package, error
    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise self.error

def hide(package, error=None):
    # As if the package were not installed: nobody finds it, and its import raises ModuleNotFoundError.
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]  # torch may have looked for it
    if error:
        sys.meta_path.insert(0, Broken(package, error))
    else:
        sys.modules[package] = None

def fail(error):
    def failing(*args, **kwargs):
        raise error
    return failing

import convgap
from convgap import selection
from runtime import call
from harness.cli import main
from reference import eager

device = torch.device(sys.argv[1])
selection.ORDER[device.type] = convgap.BACKENDS
FAULT

x, w, b = (torch.rand(s, device=device, dtype=torch.float64) for s in ((2, 3, 5, 6), (3, 4, 3, 3), (4,)))
arguments = {"multiplier": 0.5, "stride": 2, "padding": 1, "output_padding": 1}
expected = eager.conv_transpose2d_multiply_gap(x, w, b, **arguments)
found = {"warned": [], "named": {}}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        got = convgap.conv_transpose2d_multiply_gap(x, w, b, **arguments)
        found["right"] = torch.allclose(got, expected, rtol=1e-12, atol=0)
        tail = convgap.multiply_gap(x, 0.5)
        found["right"] &= torch.allclose(tail, eager.multiply_gap(x, 0.5), rtol=1e-12, atol=0)
found["warned"] = [str(w.message) for w in caught if "convgap" in str(w.message)]
(step,) = convgap.explain(convgap.conv_transpose2d_multiply_gap, x, w, b, **arguments).steps
found["served"], found["why"] = step.backend, step.chosen
for name in ("triton", "cupy"):
    try:
        convgap.multiply_gap(x, 0.5, backend=name)
    except RuntimeError as error:
        found["named"][name] = str(error)
found["status"] = {s.name: s.reason for s in convgap.status(device)}
with contextlib.redirect_stdout(io.StringIO()) as shown:
    main(["doctor"])
found["doctor"] = " ".join(shown.getvalue().split())
print(json.dumps(found))
"""


def run(fault: str, device: str = DEVICE, program: str = PROGRAM, **variables: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if k not in ("CONVGAP_BACKEND", "CC")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    if device == "cpu":
        # Whatever devices the caller has chosen, and whatever else a test asks for: the CPU is meant.
        environment = {"TRITON_INTERPRET": "1", **environment, "CUDA_VISIBLE_DEVICES": ""}
    else:
        environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", program.replace("FAULT", fault), device],
        check=False, capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NO_TRITON = 'hide("triton")'
WRONG = """
right = call.tail
def wrong(kernels, *rest):
    out = right(kernels, *rest)
    return out + 1 if kernels.__name__.startswith("KERNELS") else out
call.tail = wrong
"""


@dataclass(frozen=True)
class Fault:
    """Something broken: how, which backends it costs, and words that the reason must hold."""

    code: str
    lost: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)
    gpu: str = ""
    """Why it takes a GPU, if it does. `{tmp}` in a variable is a fresh directory."""


FAULTS = {
    "Triton not installed": Fault(NO_TRITON, {"triton": "Triton is not installed"}),
    "Triton wrong": Fault(WRONG.replace("KERNELS", "triton_impl"), {"triton": "its probe of the tail gave"}),
    "both wrong": Fault(
        WRONG.replace("KERNELS", ""), {"triton": "its probe of the tail gave", "cupy": "its probe of the tail gave"}
    ),
    "Triton's kernels not to be prepared": Fault(
        "import triton_impl.prepare as prepare\n"
        'prepare.prepare_band_sums_contract = fail(RuntimeError("PassManager::run failed"))',
        {"triton": "PassManager::run failed"},
    ),
    "Triton without a C compiler, which its own launcher would take": Fault(
        "", {}, {"PATH": "/nowhere", "TRITON_CACHE_DIR": "{tmp}"}, gpu="Triton's interpreter has no launcher",
    ),
    "Triton's compiler raises": Fault(
        'from triton.backends.nvidia.compiler import CUDABackend\n'
        'CUDABackend.make_cubin = fail(RuntimeError("ptxas fatal: unsupported"))',
        {"triton": "ptxas fatal: unsupported"}, {"TRITON_CACHE_DIR": "{tmp}"},
        gpu="Triton's interpreter compiles nothing",
    ),
    "cache directory not writable": Fault(
        "", {"triton": "NotADirectoryError"}, {"TRITON_CACHE_DIR": "/dev/null/triton"},
        gpu="Triton's interpreter writes no cache",
    ),
    "cache directory full": Fault(
        "from triton.runtime.cache import FileCacheManager\n"
        'FileCacheManager.put = fail(OSError(28, "No space left on device"))',
        {"triton": "No space left on device"}, {"TRITON_CACHE_DIR": "{tmp}"},
        gpu="Triton's interpreter writes no cache",
    ),
    "CuPy not installed": Fault(
        NO_TRITON + '\nhide("cupy")', {"triton": "Triton is not installed", "cupy": "CuPy is not installed"},
        gpu="on the CPU kernels.cu is interpreted, without CuPy",
    ),
    "CuPy for another CUDA": Fault(
        NO_TRITON + '\nhide("cupy", ImportError("libcublas.so.99: cannot open shared object file"))',
        {"triton": "Triton is not installed", "cupy": "libcublas.so.99"},
        gpu="on the CPU kernels.cu is interpreted, without CuPy",
    ),
    "NVRTC missing": Fault(
        NO_TRITON + "\nimport cupy\n"
        'cupy.RawKernel = fail(RuntimeError("CuPy failed to load libnvrtc.so.13: cannot open shared object file"))',
        {"triton": "Triton is not installed", "cupy": "libnvrtc.so.13"},
        gpu="on the CPU kernels.cu is interpreted, without NVRTC",
    ),
    "no host compiler for the CUDA C++ interpreter": Fault(
        NO_TRITON, {"triton": "Triton is not installed", "cupy": "no-such-compiler"},
        {"CXX": "no-such-compiler", "CONVGAP_CACHE_DIR": "{tmp}"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_the_next_backend_serves(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    if fault.gpu and not GPU:
        pytest.skip(f"takes a GPU: {fault.gpu}")
    device = "cpu" if "CXX" in fault.variables else DEVICE
    if not GPU and "CXX" not in fault.variables and (reason := unavailable()):
        pytest.skip(f"the CUDA C++ interpreter is the next backend here, and cannot run: {reason}")
    variables = {key: value.format(tmp=tmp_path) for key, value in fault.variables.items()}
    found = run(fault.code, device, **variables)
    assert found["right"]
    assert found["served"] == next(b for b in ("triton", "cupy", "torch") if b not in fault.lost)
    assert len(found["warned"]) == len(fault.lost), found["warned"]
    for (backend, words), warning in zip(fault.lost.items(), found["warned"], strict=True):
        # The warning, the exception of a call by name, the status, the doctor and the explanation say the same.
        assert f"'{backend}'" in warning
        assert words in warning
        assert words in found["named"][backend]
        assert words in found["status"][backend]
        assert f"{backend} not usable: {' '.join(found['status'][backend].split())}" in found["doctor"]
        assert f"{backend} was skipped" in found["why"]
    assert set(found["named"]) == set(fault.lost)


def test_no_driver_leaves_the_cpu() -> None:
    # No device to be seen: tensors are on the CPU, where "auto" is plain torch and says nothing.
    program = """
import json, warnings, torch, convgap
warnings.simplefilter("error", RuntimeWarning)
x = torch.ones(1, 2, 3, 4)
reasons = {s.name: s.reason for s in convgap.status()}
try:
    convgap.multiply_gap(x, 1.0, backend="triton")
except RuntimeError as error:
    reasons["named"] = str(error)
print(json.dumps([convgap.multiply_gap(x, 2.0).flatten().tolist(), reasons]))
"""
    values, reasons = run("", "cpu", program, TRITON_INTERPRET="0")
    assert values == [2.0, 2.0]
    assert reasons["torch"] == ""
    assert "TRITON_INTERPRET=1" in reasons["triton"]
    assert reasons["triton"] in reasons["named"]


@pytest.mark.parametrize("when", ["in the probe", "in a call"])
def test_out_of_memory_blames_no_backend(when: str) -> None:
    program = """
import json, sys, warnings, torch, convgap
from convgap import selection
from runtime import call
device = torch.device(sys.argv[1])
selection.ORDER[device.type] = convgap.BACKENDS
x = torch.ones(1, 2, 3, 4, device=device)
if WHEN == "in a call":
    convgap.multiply_gap(x, 2.0)
right = call.tail
def once(*args):
    call.tail = right
    raise torch.OutOfMemoryError("planted")
call.tail = once
found = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        convgap.multiply_gap(x, 2.0)
    except torch.OutOfMemoryError as error:
        found["raised"] = str(error)
    found["then"] = convgap.multiply_gap(x, 2.0).flatten().tolist()
found["warned"] = [str(w.message) for w in caught if "convgap" in str(w.message)]
found["served"] = convgap.explain(convgap.multiply_gap, x, 2.0).steps[0].backend
print(json.dumps(found))
"""
    found = run("", program=f"WHEN = {when!r}\n{program}", CONVGAP_NATIVE="0")
    assert found == {"raised": "planted", "then": [2.0, 2.0], "warned": [], "served": "triton"}


@pytest.mark.skipif(not GPU, reason="only a GPU's memory can be limited for one process")
def test_out_of_memory_on_the_device() -> None:
    # It leaves at once: torch's backward thread may be on its way out of Python, and aborts the process if the
    # interpreter goes first (pytorch/pytorch#38228).
    program = """
import json, os, time, torch, convgap
x = torch.rand(4, 64, 512, 512, device="cuda", requires_grad=True)  # 256 MiB, and its gradient as much
w = torch.rand(64, 8, 3, 3, device="cuda")
def gradient():
    return torch.autograd.grad(convgap.conv_transpose2d_multiply_gap(x, w, stride=2).sum(), x)[0]
expected = gradient().sum().item()
for _ in range(1000):  # the backward thread may let go of the gradient later than this one
    torch.cuda.empty_cache()
    if torch.cuda.memory_reserved() < 400 << 20:
        break
    time.sleep(0.01)
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
try:
    gradient()
    raised = False
except torch.OutOfMemoryError:
    raised = True
torch.cuda.set_per_process_memory_fraction(1.0)
print(json.dumps([raised, gradient().sum().item() == expected]), flush=True)
os._exit(0)
"""
    assert run("", program=program) == [True, True]


def test_threads_that_find_a_fault_together_warn_once() -> None:
    program = """
import json, sys, threading, warnings, torch, convgap
from convgap import selection
device = torch.device(sys.argv[1])
selection.ORDER[device.type] = ("triton", "torch")
def broken(name, device, check=None):
    raise RuntimeError("planted")
selection.probe = broken
x, barrier, outs = torch.ones(1, 2, 3, 4, device=device), threading.Barrier(8), []
def work():
    barrier.wait()
    outs.append(convgap.multiply_gap(x, 2.0).flatten().tolist())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
print(json.dumps([len([w for w in caught if "planted" in str(w.message)]), outs]))
"""
    warned, outs = run("", program=program)
    assert warned == 1
    assert outs == [[2.0, 2.0]] * 8
