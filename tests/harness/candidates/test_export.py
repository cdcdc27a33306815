"""The exported file: its form, that it launches what the package launches, its answers; and planted violations."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from harness.candidates import export, rules
from harness.cases.catalogue import select
from harness.cli import main
from harness.machine import compilers
from harness.machine.compiled import stride_of
from reference.problem import Chain, Tail
from tests.harness.candidates.judged import judged

pytestmark = pytest.mark.usefixtures("fewer_samples")

pytest.importorskip("triton", reason="the exported file is made of the Triton kernels")


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {strategy: export.source(strategy) for strategy in export.STRATEGIES}


def load(text: str, folder: Path) -> ModuleType:
    """The file as a module: Triton reads the source of a kernel from its file."""
    path = folder / "model_new.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"exported_{abs(hash(text))}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("strategy", export.STRATEGIES)
def test_form(strategy: str, texts: dict[str, str]) -> None:
    assert rules.form(texts[strategy]) == []


@pytest.mark.parametrize("strategy", export.STRATEGIES)
def test_accepted_by_the_judge_with_strict_rules(strategy: str, texts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(texts[strategy], encoding="utf-8")
    verdict = judged(path, strict=True)
    assert (verdict.verdict, verdict.reasons) == ("accepted", [])


CHAINS = [case for case in select(("headline", "grid", "edge")) if isinstance(case.problem, Chain)]
TAILS = [case for case in select(("headline", "grid", "edge")) if isinstance(case.problem, Tail)]


@pytest.mark.parametrize("alignment", [0, 4])
def test_launches_what_the_package_launches(alignment: int, texts: dict[str, str], tmp_path: Path) -> None:
    """Same kernels, constants, grids, sizes and workspace for every case there is, so the same speed."""
    from triton_impl import prepare

    for strategy, cases in (("collapsed", CHAINS), ("tail", TAILS)):
        module: Any = load(texts[strategy], tmp_path)
        module.launcher = lambda special, grid, sizes: (special, grid, sizes)
        planned, checked = module.plan_prepare(), 0
        for case in cases:
            problem, dtype = case.problem, getattr(torch, case.dtype)
            if problem.out_shape[0] == 0 or (isinstance(problem, Chain) and problem.groups > 1):
                continue
            layout = stride_of(case), dtype, alignment % dtype.itemsize
            calls: dict[str, tuple[Any, ...]] = {"prepare_multiply_gap": (*layout, False)}
            if isinstance(problem, Chain):
                calls = {
                    "prepare_band_sums_contract": (*layout, False),
                    "prepare_band_sums": layout,
                    "prepare_contract": (dtype, False),
                }
            for name, arguments in calls.items():
                theirs = getattr(prepare, name)(problem, *arguments)
                mine = getattr(planned, name)(problem, *arguments)
                where = f"{case.name} {name}"
                assert (mine is None) == (theirs is None), where
                if mine is None:
                    continue
                special, *rest = mine.launch
                original = theirs.launch.special
                assert special.kernel.__name__ == original.kernel.__name__ + export.SUFFIX, where
                for field in ("types", "constants", "divisible", "warps", "registers", "options"):
                    assert getattr(special, field) == getattr(original, field), f"{where} {field}"
                assert rest == [theirs.launch.grid, theirs.launch.sizes], where
                assert (mine.partials, mine.counters) == (theirs.partials, theirs.counters), where
            checked += 1
        assert checked > 15


_SAME_CODE = """
import sys, torch
sys.path[:0] = [{root!r}, {folder!r}]
import model_new
from harness.machine.compiled import disassembly
from triton.backends.compiler import GPUTarget
from triton_impl import prepare
from reference.problem import Chain
model_new.launcher = lambda special, grid, sizes: special
problem = Chain(16, 64, 128, 128, 128, (3, 3), (2, 2), (1, 1), (1, 1))
arguments = problem, (64 * 128 * 128, 128 * 128, 128, 1), torch.float32, 0, False
special = model_new.plan_prepare().prepare_band_sums_contract(*arguments).launch
mine = disassembly(special.compile(GPUTarget("cuda", 89, 32)).asm["cubin"]).count(";")
package = prepare.prepare_band_sums_contract(*arguments).launch.special
theirs = disassembly(package.compile(GPUTarget("cuda", 89, 32)).asm["cubin"]).count(";")
print(mine, theirs)
"""


def test_compiles_to_as_much_machine_code_as_the_package(texts: dict[str, str], tmp_path: Path) -> None:
    """In a process in which Triton compiles, for sm_89, without a GPU."""
    (tmp_path / "model_new.py").write_text(texts["collapsed"], encoding="utf-8")
    code = _SAME_CODE.format(root=str(Path(__file__).parents[3]), folder=str(tmp_path))
    environment = compilers.environment()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mine, theirs = map(int, done.stdout.split())
    assert mine == theirs > 100


def test_same_parameters_as_the_model_it_replaces(texts: dict[str, str], tmp_path: Path) -> None:
    module: Any = load(texts["collapsed"], tmp_path)
    torch.manual_seed(3)
    new = module.ModelNew(3, 4, 3, 2, 1, 1, 0.5)
    torch.manual_seed(3)
    old = torch.nn.ConvTranspose2d(3, 4, 3, 2, 1, 1)
    state = new.state_dict()
    assert list(state) == ["conv_transpose.weight", "conv_transpose.bias"]
    assert torch.equal(state["conv_transpose.weight"], old.weight)


def test_refuses_input_of_the_wrong_shape(texts: dict[str, str], tmp_path: Path) -> None:
    module: Any = load(texts["collapsed"], tmp_path)
    model = module.ModelNew(3, 4, 3, 2, 1, 1, 0.5)
    with pytest.raises(ValueError, match="x: expected"):
        model(torch.rand(2, 5, 4, 4))
    with pytest.raises(ValueError, match="x: expected"):
        model(torch.rand(2, 3, 4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 1 x 1"):
        module.ModelNew(3, 4, 1, 1, 2, 0, 0.5)(torch.rand(2, 3, 4, 4))


# Each rule, and a change to the file that breaks it and no other one.
PLANTED = {
    "imports: import math": ("import triton\n", "import math\nimport triton\n"),
    "imports: from torch": ("import torch.nn as nn\n", "from torch import nn\n"),
    "imports: import triton.language as tl is missing": ("import triton.language as tl\n", ""),
    "imports: import os": (
        "    conv = self.conv_transpose\n",
        "    import os\n        conv = self.conv_transpose\n",
    ),
    "order: expected imports": ("\ndef gcd(", "\nclass ModelNew(nn.Module):\n    pass\n\n\ndef gcd("),
    "order: line": ("\ndef gcd(", "\nBLOCK = 64\n\n\ndef gcd("),
    "order: band_sums_kernel is decorated": (
        "@triton.jit\ndef band_sums_kernel",
        "@triton.autotune([], [])\n@triton.jit\ndef band_sums_kernel",
    ),
    "functions: line": (
        "\n    mean = scaled(total, scale)\n",
        "\n    mean = scaled(total, scale)\n    mean = tl.sigmoid(mean)\n",
    ),
    "stores: band_sums_contract_kernel stores out": (
        "    tl.store(out + n * (G * CO) + c, narrow(mean, ",
        "    tl.store(out + c, mean, mask=live)\n    tl.store(out + n * (G * CO) + c, narrow(mean, ",
    ),
    "stores: band_sums_contract_kernel stores counters": (  # through a helper, to the buffer it was given
        "        tl.store(counter, 0)\n",
        "        tl.store(counter, 0)\n        tl.store(counter + 0, 0)\n",
    ),
    "stores: band_sums_kernel stores sums": (  # in one of the kernel's two variants
        "    if SPLIT:\n        if arrive(counters + tile, parts):\n            # As many",
        "    if SPLIT:\n        tl.store(sums, 0.0)\n"
        "    if SPLIT:\n        if arrive(counters + tile, parts):\n            # As many",
    ),
    "stores: multiply_gap_twice stores nothing": (
        "@triton.jit\ndef narrow(",
        "@triton.jit\ndef multiply_gap_twice(out):\n    tl.atomic_add(out, 1)\n\n\n@triton.jit\ndef narrow(",
    ),
    "launch: no wrapper": ("kernel[grid](", "kernel.run("),
    "launch: nothing uses the kernel": (
        "@triton.jit\ndef narrow(",
        "@triton.jit\ndef extra(out):\n    tl.store(out, 0)\n\n\n@triton.jit\ndef narrow(",
    ),
    "constructor: expected __init__": (", multiplier\n    ):", ", multiplier, eps=0\n    ):"),
    "constructor: expected forward": ("def forward(self, x)", "def forward(self, x, y)"),
    "constructor: expected self.conv_transpose": ("self.conv_transpose = nn", "self.conv = nn"),
    "constructor: expected class": ("class ModelNew(nn.Module)", "class ModelNew(torch.nn.Module)"),
    "testing: line": ("    return launch\n", "    print(grid)\n    return launch\n"),
    "testing: line ": ("\n\ndef gcd(", "\n\ndef get_inputs():\n    return []\n\n\ndef gcd("),
    "syntax": ("class ModelNew", "class class"),
}


@pytest.mark.parametrize("rule", PLANTED)
def test_planted_violation_is_rejected(rule: str, texts: dict[str, str]) -> None:
    old, new = PLANTED[rule]
    text = texts["collapsed"]
    assert old in text, "the exported file no longer holds the text that this violation replaces"
    broken = rules.form(text.replace(old, new, 1))
    assert any(line.startswith(rule) for line in broken), broken


@pytest.mark.parametrize(
    ("strategy", "old", "new"),
    [
        ("collapsed", "H - AFTER_H[LAST]", "H"),  # forgets the crop at the end
        ("collapsed", "scaled(b, bias_scale)", "scaled(b, scale)"),
        ("tail", "scaled(total, scale)", "scaled(total, 1.0)"),
    ],
)
def test_wrong_answers_are_rejected(strategy: str, old: str, new: str, texts: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    text = texts[strategy]
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert judged(path).verdict == "wrong"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.py"
    assert main(["export", "--output", str(path)]) == 0
    assert main(["export", "--check", str(path), "--form-only"]) == 0
    assert main(["judge", str(path), "--rules", "strict", "--form-only"]) == 0
    path.write_text(path.read_text().replace("import triton\n", ""))
    assert main(["export", "--check", str(path)]) == 1
    assert main(["export", "--check", str(tmp_path / "absent.py")]) == 2
    assert "absent.py" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_graph_replays_on_two_streams(texts: dict[str, str], tmp_path: Path) -> None:
    """A captured call must not share its counters with eager calls or with another capture."""
    module: Any = load(texts["collapsed"], tmp_path)
    torch.manual_seed(0)
    model = module.ModelNew(64, 128, 3, 2, 1, 1, 0.5).cuda()
    x = torch.rand(16, 64, 128, 128, device="cuda")
    expected = model(x)
    graphs, outputs = [], []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs.append(model(x))
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(50):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        assert torch.equal(model(x), expected)
    torch.cuda.synchronize()
    for output in outputs:
        assert torch.equal(output, expected)


def test_needs_nothing_of_the_project(texts: dict[str, str], tmp_path: Path) -> None:
    """Isolated mode ignores the environment's paths and the current folder."""
    path = tmp_path / "model_new.py"
    path.write_text(texts["collapsed"], encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import model_new; print(model_new.ModelNew.__name__)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "ModelNew", done.stderr
