"""Honest candidates of every form are accepted; what fails ends in a verdict about that file; the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from cupy_impl.interpret import unavailable
from harness.candidates.worker import Limits
from harness.cli import main
from tests.harness.candidates.judged import judged

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "candidates"

pytestmark = pytest.mark.usefixtures("fewer_samples")

MODEL = """
import torch
import torch.nn as nn


class ModelNew(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, output_padding, multiplier):
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, output_padding=output_padding
        )
        self.multiplier = multiplier

    def forward(self, x):
        return self.answer(x)

    def answer(self, x):
        return torch.mean(self.conv_transpose(x) * self.multiplier, dim=[2, 3], keepdim=True)
"""
FUNCTIONS = """
import torch
import torch.nn.functional as F


def multiply_gap(y, multiplier):
    return (y * multiplier).mean(dim=(2, 3), keepdim=True)


def conv_transpose2d_multiply_gap(
    x, weight, bias=None, *, multiplier=1.0, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return multiply_gap(y, multiplier)
"""
CUPY = '''
import cupy
import torch

CODE = r"""
extern "C" __global__ void tail(const float* y, float* out, float multiplier, int plane) {
    float sum = 0.0f;
    for (int i = 0; i < plane; ++i) sum += y[(long long)(blockIdx.x * 32 + threadIdx.x) * plane + i];
    out[blockIdx.x * 32 + threadIdx.x] = sum * multiplier / plane;
}
"""
KERNEL = cupy.RawKernel(CODE, "tail")


def multiply_gap(y, multiplier):
    n, c, h, w = y.shape
    planes = torch.zeros(-(-n * c // 32) * 32, h * w, device=y.device, dtype=y.dtype)
    planes[: n * c] = y.reshape(n * c, h * w)
    out = torch.empty(planes.shape[0], device=y.device, dtype=y.dtype)
    arguments = planes.data_ptr(), out.data_ptr(), cupy.float32(multiplier), cupy.int32(h * w)
    with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        KERNEL((planes.shape[0] // 32,), (32,), arguments)
    return out[: n * c].view(n, c, 1, 1).clone()
'''
INLINE = '''
import torch
from torch.utils.cpp_extension import load_inline

CUDA = r"""
#include <torch/extension.h>
#include <ATen/cuda/CUDAContext.h>
__global__ void tail(const float* y, float* out, float multiplier, int plane) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < plane; i += 32) sum += y[(long long)blockIdx.x * plane + i];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
    if (threadIdx.x == 0) out[blockIdx.x] = sum * multiplier / plane;
}
torch::Tensor forward(torch::Tensor y, double multiplier) {
    auto out = torch::empty({y.size(0), y.size(1), 1, 1}, y.options());
    int planes = y.size(0) * y.size(1), plane = y.size(2) * y.size(3);
    tail<<<planes, 32, 0, at::cuda::getCurrentCUDAStream()>>>(
        y.data_ptr<float>(), out.data_ptr<float>(), multiplier, plane);
    return out;
}
"""
EXTENSION = load_inline(
    name="tail_extension",
    cpp_sources="torch::Tensor forward(torch::Tensor y, double multiplier);",
    cuda_sources=CUDA,
    functions=["forward"],
)


def multiply_gap(y, multiplier):
    return EXTENSION.forward(y.contiguous(), multiplier)
'''


def write(folder: Path, text: str, name: str = "candidate_of_a_test.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def replaced(old: str, new: str, text: str = MODEL) -> str:
    assert old in text
    return text.replace(old, new)


HONEST = {
    "plain": MODEL,
    "slow": replaced("return self.answer(x)", "return sum(self.answer(x) for _ in range(8)) / 8"),
    "functions": FUNCTIONS,
    "cupy": CUPY,
    "half": "# judge: dtypes = float32, float16\n# judge: layouts = contiguous, channels_last\n" + MODEL,
    "folds when weights change": replaced(
        "return self.answer(x)",
        "version = self.conv_transpose.weight._version\n"
        "        if getattr(self, 'version', None) != version:\n"
        "            self.scaled, self.version = self.conv_transpose.weight * self.multiplier, version\n"
        "        c = self.conv_transpose\n"
        "        y = nn.functional.conv_transpose2d(\n"
        "            x, self.scaled, c.bias * self.multiplier, c.stride, c.padding, c.output_padding)\n"
        "        return y.mean((2, 3), keepdim=True)",
    ),
}


QUICK = ("plain", "raises", "bad address", "memory")


def some(names: Iterable[str]) -> list[Any]:
    """The names, all but the quick ones left to -m slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(HONEST))
def test_honest_is_accepted(name: str, tmp_path: Path) -> None:
    if name == "cupy" and not torch.cuda.is_available() and (reason := unavailable()):
        pytest.skip(reason)
    verdict = judged(write(tmp_path, HONEST[name]))
    assert (verdict.verdict, verdict.reasons) == ("accepted", [])
    assert len(verdict.checks) > 20


@pytest.mark.parametrize("name", ["tail_triton.py", "tail_cuda.cu"])
def test_examples_are_accepted(name: str) -> None:
    if name.endswith(".cu") and not torch.cuda.is_available() and (reason := unavailable()):
        pytest.skip(reason)
    if name.endswith(".py"):
        pytest.importorskip("triton")
    verdict = judged(EXAMPLES / name)
    assert (verdict.verdict, verdict.reasons) == ("accepted", [])
    assert any("1 kernel, each needed" in check.name for check in verdict.checks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.compile takes half a minute on a CPU")
def test_torch_compile_is_accepted(tmp_path: Path) -> None:
    text = replaced(
        "        self.multiplier = m",
        "        self.fast = torch.compile(self.answer)\n        self.multiplier = m",
    )
    verdict = judged(write(tmp_path, replaced("return self.answer(x)", "return self.fast(x)", text)))
    assert (verdict.verdict, verdict.reasons) == ("accepted", [])


def test_load_inline_is_accepted_or_left_to_a_gpu(tmp_path: Path) -> None:
    verdict = judged(write(tmp_path, INLINE), limits=Limits(seconds=300))
    if torch.cuda.is_available():
        assert (verdict.verdict, verdict.reasons) == ("accepted", [])
    else:
        assert verdict.verdict == "unjudged" and "GPU" in verdict.reasons[0]


def baseline() -> str:
    """The starting point's schedule as a ModelNew."""
    text = (ROOT / "triton_impl" / "baseline.py").read_text(encoding="utf-8")
    kernel = text[text.index("@triton.jit") : text.index("def depth(")]
    head = "import triton\nimport triton.language as tl\n\nBLOCK_C, BLOCK_P, NUM_WARPS = 64, 512, 4\n\n\n"
    return head + kernel + replaced("self.answer(x)", "multiply_gap(self.conv_transpose(x), self.multiplier)")


@pytest.mark.slow
def test_baseline_schedule_is_accepted(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = write(tmp_path, "import torch\n" + baseline())
    verdict = judged(path)
    assert (verdict.verdict, verdict.reasons) == ("accepted", [])


@pytest.mark.slow
def test_autotuned_is_accepted(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    text = (EXAMPLES / "tail_triton.py").read_text(encoding="utf-8")
    configs = "[triton.Config({'BLOCK': 256}), triton.Config({'BLOCK': 1024})]"
    text = replaced("@triton.jit\n", f"@triton.autotune(configs={configs}, key=['PLANE'])\n@triton.jit\n", text)
    verdict = judged(write(tmp_path, replaced(", BLOCK=1024)", ")", text)))
    assert (verdict.verdict, verdict.reasons) == ("accepted", [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can judge the file")
def test_what_needs_a_gpu_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", str(write(tmp_path, INLINE))]) == 3
    assert "NOT JUDGED" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("output", [False, True])
def test_solution(output: bool, tmp_path: Path) -> None:
    given = "def run(y, multiplier, out):\n    out.copy_(answer(y, multiplier))\n"
    returned = "def run(y, multiplier):\n    return answer(y, multiplier)\n"
    sources = [
        {"path": "main.py", "content": f"from parts.tail import answer\n\n\n{given if output else returned}"},
        {
            "path": "parts/tail.py",
            "content": "def answer(y, m):\n    return (y * m).mean((2, 3), keepdim=True)\n",
        },
    ]
    spec = {"language": "python", "target_hardware": ["any"], "entry_point": "main.py::run"}
    solution = {
        "name": "mine",
        "definition": "multiply_gap",
        "author": "me",
        "spec": spec,
        "sources": sources,
    }
    verdict = judged(write(tmp_path, json.dumps(solution), "solution.json"))
    assert (verdict.verdict, verdict.reasons) == ("accepted", [])


# What ends a call early: text in the place of the answer, verdict, the beginning of the reason.
FAILING = {
    "raises": ("raise RuntimeError('broken')", "crashed", "raised: "),
    "sys.exit": ("raise SystemExit(0)", "refused", "exit: "),
    "bad address": ("import ctypes; ctypes.string_at(0)", "crashed", "killed by SIGSEGV"),
    "hangs": ("import time; time.sleep(1000)", "timeout", "no answer"),
    "memory": ("return torch.ones(3 << 28)", "crashed", "memory: "),
    "fills a file": ("open('big', 'wb').write(bytes(1 << 28))", "crashed", "raised: "),
    "shape": ("return self.answer(x)[0]", "wrong", "shape: "),
    "dtype": ("return self.answer(x).double()", "wrong", "wrong: "),
    "no tensor": ("return None", "wrong", "type: "),
    "writes elsewhere": ("open('/tmp/judged-escape', 'w')", "crashed", "raised: "),
}


@pytest.mark.parametrize("name", some(FAILING))
def test_failure_is_the_candidates_verdict(name: str, tmp_path: Path) -> None:
    text, expected, reason = FAILING[name]
    limits = Limits(seconds=8.0 if name == "hangs" else 120.0, memory=2 << 30, disk=1 << 27)
    if torch.cuda.is_available() and name == "memory":
        pytest.skip("a process that uses CUDA holds more memory than this test allows")
    verdict = judged(write(tmp_path, replaced("return self.answer(x)", text)), limits=limits)
    assert verdict.verdict == expected, verdict.reasons
    assert verdict.reasons[0].startswith(reason)


def test_progress_is_told_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, replaced("return self.answer(x)", "return x"), "mine.py")
    assert main(["judge", str(path)]) == 1
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["judge", str(path)]) == 1
    said = capsys.readouterr()
    assert "1 of 1, mine.py: 0 checks passed" in said.err and "mine.py: 0" not in said.out


def test_a_file_that_cannot_be_read_as_python_crashes(tmp_path: Path) -> None:
    verdict = judged(write(tmp_path, MODEL + "\n)"))
    assert verdict.verdict == "crashed" and "SyntaxError" in verdict.reasons[0]


@pytest.mark.slow
def test_weights_taken_at_construction_need_a_word(tmp_path: Path) -> None:
    folded = replaced(
        "        self.multiplier = multiplier\n",
        "        self.multiplier = multiplier\n"
        "        c = self.conv_transpose\n"
        "        self.kept = c.weight.detach().clone(), c.bias.detach().clone()\n",
    )
    sizes = "c.stride, c.padding, c.output_padding"
    text = replaced(
        "        return torch.mean(self.conv_transpose(x) *",
        "        c = self.conv_transpose\n"
        f"        return torch.mean(nn.functional.conv_transpose2d(x, *self.kept, {sizes}) *",
        folded,
    )
    path = write(tmp_path, text)
    assert judged(path).reasons[0].startswith("frozen: ")
    allowed = judged(path, frozen=True)
    assert (allowed.verdict, allowed.reasons) == ("accepted", [])
    assert "--frozen-weights" in str(allowed.settings["weights"])
