"""Facts from machine code, occupancy, and the fusion audit with a planted violation of each rule."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.commands import inspect_kernels
from harness.errors import UsageError
from harness.machine import audit, compilers
from harness.machine.compiled import Compiled, collect_elsewhere, read, tool
from harness.machine.compilers import compile_cuda_source
from harness.machine.occupancy import ARCHITECTURES, blocks_per_sm, occupancy
from harness.machine.sass import bytes_in_flight, parse_sass, width_of

ADA = ARCHITECTURES[89]

FACTS = Compiled(
    backend="triton",
    case="tail/headline",
    kernel="multiply_gap",
    grid=8192,
    threads=128,
    registers=64,
    stack=0,
    shared=1024,
    loads={"128": 8, "32": 1},
    stores={"32": 2},
    local_loads=0,
    local_stores=0,
    in_flight=128,
    stored={"out": 1, "partials": 1},
    reloaded=["partials"],
    workspace=1000,
    y_bytes=64 << 20,
)


def needs_compilers() -> None:
    pytest.importorskip("triton", reason="cuobjdump and nvdisasm come with Triton")
    pytest.importorskip("cupy", reason="the CUDA kernels are compiled by CuPy's NVRTC")


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (128, 32, 0, 12),  # 48 warps
        (32, 32, 0, 24),  # 24 blocks
        (256, 255, 0, 1),  # 8 warps of 8192 registers: 2 per quarter
        (128, 255, 0, 2),
        (256, 40, 0, 6),  # 1280 registers per warp: 12 per quarter
        (128, 32, 48 * 1024, 2),  # 49 KiB each of 100
        (128, 32, 99 * 1024, 1),  # all that a block may have
        (128, 32, 100 * 1024, 0),
    ],
)
def test_blocks_per_multiprocessor(threads: int, registers: int, shared: int, blocks: int) -> None:
    assert blocks_per_sm(ADA, threads, registers, shared) == blocks


def test_occupancy_of_the_baseline_is_that_of_the_profile() -> None:
    """255 registers, 4 warps: 8 warps of 48 could be there; the profile's 8.33 % is one block, for the grid is 32."""
    assert occupancy(ADA, 128, 255, 256) == pytest.approx(8 / 48)
    assert 4 / ADA.warps == pytest.approx(0.0833, abs=1e-4)


def test_sass_lines() -> None:
    load = parse_sass("        /*0ef0*/              @!P1 LDG.E.NA.128.CONSTANT R20, [R32.64] ;")
    assert load is not None and load.mnemonic == "LDG.E.NA.128.CONSTANT"
    assert load.written == {20, 21, 22, 23} and load.read == {32}
    store = parse_sass("        /*0f00*/                   STG.E.64 [R2.64], R4 ;")
    assert store is not None and not store.written and {2, 4, 5} <= store.read
    assert parse_sass("\t.align\t128") is None
    names = ("LDG.E", "LDG.E.64", "LDG.E.U16.CONSTANT", "STL.128")
    assert [width_of(name) for name in names] == [32, 64, 16, 128]


def sass(*lines: str) -> list[str]:
    return [line if line.startswith(".") else f"/*{at * 16:04x}*/ {line} ;" for at, line in enumerate(lines)]


def test_bytes_in_flight_end_where_a_load_is_needed() -> None:
    code = sass(
        "LDG.E.128 R4, [R2.64]",
        "LDG.E.128 R8, [R2.64]",
        "FADD R20, R21, R22",
        "FADD R20, R20, R9",  # needs the second load
        "LDG.E.128 R4, [R2.64]",
    )
    assert bytes_in_flight([i for line in code if (i := parse_sass(line))]) == 32


def test_audit_passes_what_is_right() -> None:
    assert audit.violations(FACTS) == []
    # Partial outputs of a few samples are more than their y, and never leave the L2.
    assert audit.violations(replace(FACTS, workspace=4 << 20, y_bytes=1 << 20)) == []


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"stored": {"out": 2}}, "one store: out"),
        ({"stored": {}}, "one store: the kernel stores nothing"),
        ({"workspace": 8 << 20}, "no y:"),
        ({"workspace": 8 << 20, "y_bytes": 1 << 20}, "no y:"),
        ({"reloaded": ["out"]}, "no reload: out"),
        ({"local_stores": 1}, "no spill:"),
    ],
)
def test_audit_names_the_broken_rule(change: dict[str, Any], rule: str) -> None:
    (broken,) = audit.violations(replace(FACTS, **change))
    assert broken.startswith(rule)


def test_stack_that_nothing_touches_is_no_spill() -> None:
    assert not audit.violations(replace(FACTS, stack=8))


def test_audit_exceptions_are_for_one_kernel_only() -> None:
    fill = replace(FACTS, kernel="band_fill", stored={"dx": 2})
    assert audit.violations(fill) == []
    assert audit.violations(replace(fill, kernel="multiply_gap")) != []
    assert audit.violations(replace(fill, stored={"dx": 3})) != []


_CUDA = {
    "good": ("out[i] = 2 * y[i];", None),
    "stores_twice": ("out[i] = y[i];\n out[i + n] = 2 * y[i];", "one store: out"),
    "stores_then_loads": (
        "out[i] = y[i];\n __syncthreads();\n atomicAdd(y + i, out[n - i]);",
        "no reload: out",
    ),
    "spills": (
        "float a[64];\n for (int k = 0; k < n; k++) a[k & 63] = y[i + k];\n out[i] = a[n & 63];",
        "no spill",
    ),
}


@pytest.mark.parametrize("name", _CUDA)
def test_planted_cuda_kernel(name: str) -> None:
    needs_compilers()
    body, rule = _CUDA[name]
    source = f'extern "C" __global__ void {name}(float* y, float* out, int n) {{\n int i = threadIdx.x;\n {body}\n}}\n'
    binary = compile_cuda_source(source, name, ("--std=c++17",), 128, 89)
    broken = audit.violations(read(binary, "planted", "case", name, 1))
    assert [line[: len(rule or "")] for line in broken] == ([rule] if rule else [])


def test_planted_triton_kernels() -> None:
    needs_compilers()
    environment = compilers.environment()
    script = Path(__file__).with_name("planted_triton.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["good"] == {"broken": [], "width": 128, "stored": {"out": 1}}
    for name, rule in (
        ("stores_twice", "one store: out"),
        ("stores_then_loads", "no reload: out"),
        ("spills", "no spill"),
    ):
        assert [line[: len(rule)] for line in found[name]["broken"]] == [rule], name


def test_a_tool_is_where_triton_is_told_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Triton was installed without NVIDIA's tools, and the CUDA toolkit has them."""
    triton = pytest.importorskip("triton")
    elsewhere = tmp_path / "disassembler"
    elsewhere.symlink_to(tool("nvdisasm"))
    tool.cache_clear()
    monkeypatch.setenv("TRITON_NVDISASM_PATH", str(elsewhere))
    assert tool("nvdisasm") == str(elsewhere)
    tool.cache_clear()
    triton.knobs.NvidiaTool.from_path.cache_clear()
    monkeypatch.setattr(triton.knobs.subprocess, "check_output", lambda *_, **__: b"no release")
    with pytest.raises(UsageError, match=r"^nvdisasm comes with Triton: Cannot find nvdisasm"):
        tool("nvdisasm")
    triton.knobs.NvidiaTool.from_path.cache_clear()


def test_cuda_that_does_not_compile_says_why() -> None:
    needs_compilers()
    with pytest.raises(RuntimeError, match="undefined"):
        compile_cuda_source('extern "C" __global__ void f() { g(); }', "f", (), 32, 89)
    with pytest.raises(ValueError, match="kernel: expected a __global__ function absent"):
        compile_cuda_source("", "absent", (), 32, 89)


def test_both_sets_pass_the_audit_on_the_4090_and_the_baseline_spills() -> None:
    """The whole of `bench.py inspect`: every kernel compiled for sm_89, without a GPU."""
    needs_compilers()
    found = collect_elsewhere(89)
    sets = [item for item in found if item.backend != inspect_kernels.BASELINE]
    assert {item.backend for item in sets} == {"triton", "cupy"}
    kernels = {item.kernel for item in sets}
    assert {
        "multiply_gap",
        "band_sums",
        "contract",
        "band_sums_contract",
        "band_fill",
        "weight_grad",
    } <= kernels
    broken = [f"{item.backend} {item.case} {item.kernel}: {line}" for item in sets for line in audit.violations(item)]
    assert broken == []
    streams = [item for item in sets if item.main and item.kernel != "contract"]
    # Planes of 49 elements start where no wide access may. Triton reads them element by element, neighbouring threads
    # neighbouring elements; CUDA reads whole accesses and deals out what is in them.
    assert [f"{item.backend} {item.case}" for item in streams if item.width < 128] == ["triton tail/7x7"]
    # A struct kept in registers was stored number by number. A thread of Triton's may have half an access of rims.
    fills = {item.backend: set(item.stores) for item in sets if item.kernel == "band_fill"}
    assert fills["cupy"] == {"128"} and fills["triton"] <= {"128", "64"}
    assert any(item.spills for item in found if item.backend == inspect_kernels.BASELINE)
    text = inspect_kernels.render(found, 89)
    assert max(map(len, text.splitlines())) <= 130 and "kernels of the two sets, 0 break a rule" in text


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = replace(FACTS, kernel="band_sums", local_stores=3)
    monkeypatch.setattr(inspect_kernels, "collect_elsewhere", lambda *_: [FACTS, bad])
    path = tmp_path / "out.json"
    assert main(["inspect", "--json", str(path), "--text", str(tmp_path / "out.txt")]) == 1
    shown = capsys.readouterr().out
    assert (tmp_path / "out.txt").read_text() == shown and "no spill: 3 local stores" in shown
    first, second = json.loads(path.read_text())["kernels"]
    assert first["audit"] == [] and first["blocks_per_sm"] == 8 and second["audit"]
    assert first["in_flight_per_sm"] == 128 * 128 * 8
    monkeypatch.setattr(inspect_kernels, "collect_elsewhere", lambda *_: [FACTS, replace(bad, backend="baseline")])
    assert main(["inspect"]) == 0, "the baseline is shown, not judged"
    assert main(["inspect", "--json", str(tmp_path / "absent" / "out.json")]) == 2


def test_cases_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    needs_compilers()
    assert main(["inspect", "--cases", "chain/vae-7"]) == 0
    shown = capsys.readouterr().out
    assert "chain/vae-7" in shown and "planes_contract *" in shown and "headline" not in shown
    assert main(["inspect", "--cases", "chain/vae7"]) == 2
    assert "no case or set is named 'chain/vae7'; near it: chain/vae-7" in capsys.readouterr().err
