"""`bench.py judge --problem`: files of KernelBench's form, right and wrong kernels for them, and what a page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.candidates.problems import file, filters
from harness.candidates.problems.calls import matched
from harness.candidates.problems.floor import floor
from harness.cli import main

KNOWN = Path(file.__file__).with_name("known")

PROBLEM = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, features, eps):
        super().__init__()
        self.norm = nn.LayerNorm(features, eps=eps)

    def forward(self, x, shift):
        return self.norm(x) + shift


def get_inputs():
    return [torch.randn(6, 40), torch.randn(6, 1)]


def get_init_inputs():
    return [40, 1e-5]
"""
KERNEL = """
import torch
from torch import nn


class ModelNew(nn.Module):
    def __init__(self, features, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x, shift):
        d = x - x.mean(1, keepdim=True)
        variance = (d * d).mean(1, keepdim=True)
        return self.finish(d / torch.sqrt(variance + self.eps) * self.weight + self.bias + shift)

    def finish(self, out):
        return out
"""
WRONG = {
    "epsilon": ("torch.sqrt(variance + self.eps)", "(torch.sqrt(variance) + self.eps)", "wrong", "wrong: as drawn"),
    "half": ("d / torch", "d.half().float() / torch", "wrong", "coarser format"),
    "bias": (" + self.bias", "", "wrong", "wrong: other weights"),
    "divisor": ("variance = (d * d).mean(1, keepdim=True)", "variance = d.var(1, keepdim=True)", "wrong", "as drawn"),
    "shape": ("return out", "return out[:3]", "wrong", "shape: "),
    "dtype": ("return out", "return out.double()", "wrong", "dtype float64"),
    "tuple": ("return out", "return out, out", "wrong", "2 outputs"),
    "constant": ("return out", "return out * 0 + 1", "wrong", "every element is the same"),
    "stale": ("return out", "self.o = getattr(self, 'o', out); return self.o.clone()", "refused", "cached: "),
    "inputs": ("d = x -", "x += 1\n        d = x -", "refused", "inputs: "),
    "weights": ("return out", "self.weight.data.mul_(2); return out", "refused", "weights: "),
    "generator": ("return out", "torch.rand(1); return out", "refused", "random: "),
    "raises": ("return out", "raise ValueError('no')", "crashed", "raised: "),
    "frozen": ("self.bias = nn.Parameter(torch.zeros(features))", "self.bias = 0.0", "refused", "frozen: "),
}  # fmt: skip


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "norm.py"
    path.write_text(PROBLEM)
    return path


def verdict(problem: Path, text: str, *more: str) -> tuple[int, dict]:
    path = problem.with_name("kernel.py")
    path.write_text(text)
    out = problem.with_name("out.json")
    code = main(["judge", "--problem", str(problem), str(path), "--seed", "3", "--json", str(out), *more])
    return code, json.loads(out.read_text())


def test_a_right_kernel_is_accepted_and_everything_says_estimated(
    problem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = problem.with_name("trace.jsonl")
    html = problem.with_name("page.html")
    code, found = verdict(problem, KERNEL, "--trace", str(trace), "--html", str(html))
    printed = capsys.readouterr().out
    assert code == 0 and found["verdict"] == "accepted", found["reasons"]
    assert 0 < found["worst_in_budgets"] < 0.5 and len(found["checks"]) >= 10
    assert "estimated" in found["settings"]["budget"] and "estimated" in html.read_text()
    assert "of the estimated budget" in printed
    assert printed.strip().endswith("1 of 1 accepted, by a budget that is estimated, not derived")
    line = json.loads(trace.read_text())
    assert line["definition"] == "norm" and line["evaluation"]["status"] == "PASSED"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_and_dishonest_ones(name: str, problem: Path) -> None:
    old, new, kind, reason = WRONG[name]
    assert old in KERNEL
    code, found = verdict(problem, KERNEL.replace(old, new))
    assert code == 1 and found["verdict"] == kind and reason in found["reasons"][0], found["reasons"]


def test_a_kernel_that_takes_its_weights_once_is_accepted_where_that_is_allowed(problem: Path) -> None:
    folded = KERNEL.replace("self.bias = nn.Parameter(torch.zeros(features))", "self.bias = 0.0")
    code, found = verdict(problem, folded, "--frozen-weights")
    assert code == 0 and "taken once" in found["settings"]["weights"]


@pytest.mark.parametrize("name", ["batch_norm", "attention", "loss"])
def test_a_problems_own_model_is_accepted(name: str, tmp_path: Path) -> None:
    copy = tmp_path / f"{name}.py"
    copy.write_text((KNOWN / f"{name}.py").read_text())
    code, found = verdict(copy, copy.read_text().replace("class Model(", "class ModelNew("))
    assert code == 0, found["reasons"]


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("def get_inputs", "def get_input", "no get_inputs"),
        ("return [torch.randn(6, 40), torch.randn(6, 1)]", "return 3", "expected a list with a tensor"),
        ("return [40, 1e-5]", "return [41, 1e-5]", "Model's forward raises"),
        ("return [40, 1e-5]", "return [object(), 1e-5]", "Model raises"),
        ("import torch\n", "import torch_of_nobody\n", "reading it raises ModuleNotFoundError"),
        ("torch.randn(6, 40)", "torch.randn(6, 40).double()", "computes in torch.float64"),
        ("return self.norm(x) + shift", "return 3", "no tensor"),
    ],
)
def test_what_is_no_problem_is_said_in_a_sentence(
    old: str, new: str, says: str, problem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in PROBLEM
    problem.write_text(PROBLEM.replace(old, new, 1))
    kernel = problem.with_name("kernel.py")
    kernel.write_text(KERNEL)
    assert main(["judge", "--problem", str(problem), str(kernel)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--rules", "strict"], ["--depth", "3"], ["--dtype", "float16"], ["--full"]])
def test_options_of_our_own_operators_do_not_go_with_it(option: list[str], problem: Path) -> None:
    kernel = problem.with_name("kernel.py")
    kernel.write_text(KERNEL)
    assert main(["judge", "--problem", str(problem), str(kernel), *option]) == 2


@pytest.mark.parametrize(
    "new, says",
    [
        ("return self.norm(x) + 0 * shift", "ignored: no output depends on input 2"),
        ("return self.norm(x) * 0 + 1", "constant: "),
        ("return (self.norm(x) + shift) * 1e-4", "tiny: "),
        ("return torch.dropout(self.norm(x) + shift, 0.5, True)", "random: "),
        ("return torch.where(self.norm(x) > 0, 1.0, shift).round(decimals=7)", "ignored: no output depends on the"),
        ("return torch.fft.rfft(x + self.norm(x) + shift).abs()", "unseen: "),
        ("return (self.norm(x) + shift)[:0]", "empty: "),
        ("return (self.norm(x) + shift).mean(0, keepdim=True).expand(6, 40)", "alike: all samples"),
    ],
)  # fmt: skip
def test_a_problem_that_tells_little_is_reported(new: str, says: str, problem: Path) -> None:
    problem.write_text(PROBLEM.replace("return self.norm(x) + shift", new))
    remarks = list(filters.remarks(file.read(problem), 1))
    assert any(remark.startswith(says) for remark in remarks), remarks


def test_a_sound_problem_is_not_remarked_on(problem: Path) -> None:
    assert list(filters.remarks(file.read(problem), 1)) == []


def test_a_problem_whose_every_output_is_random_is_not_judged(problem: Path) -> None:
    dropped = "return torch.dropout(self.norm(x) + shift, 0.5, True)"
    problem.write_text(PROBLEM.replace("return self.norm(x) + shift", dropped))
    kernel = KERNEL.replace("return out", "return torch.dropout(out, 0.5, True)")
    code, found = verdict(problem, kernel)
    assert code == 3 and found["verdict"] == "unjudged" and found["reasons"][0].startswith("apart: ")


def test_the_floor_counts_bytes_once_and_what_torch_counts(problem: Path) -> None:
    found = floor(file.read(KNOWN / "product.py"), 1)
    assert found.bytes == 4 * (64 * 512 + 512 * 128 + 64 * 128) and found.flops == 2 * 64 * 512 * 128
    problem.write_text(PROBLEM.replace("+ shift", "+ shift[:1]"))  # the rest of it need not be read
    partial = floor(file.read(problem), 1)
    assert not partial.whole and partial.bytes == 4 * 6 * 40


def test_state_is_matched_by_name_then_by_shape(problem: Path) -> None:
    state = file.read(problem).model(0).state_dict()
    assert matched(state, [["norm.weight", [40]], ["norm.bias", [40]]]) == {n: n for n in state}
    assert matched(state, [["w.weight", [40]], ["b.bias", [40]]])["norm.bias"] == "b.bias"
    assert matched(state, [["a", [40]], ["b", [40]]]) == {}  # either could be either
