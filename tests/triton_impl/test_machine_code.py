"""Triton's machine code on disk: found again by whoever would get the same, compiled anew by everybody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from triton.backends.compiler import GPUTarget

from harness.machine import compilers
from triton_impl import machine_code as module
from triton_impl.machine_code import FILE, MachineCode, machine_code

ROOT = Path(__file__).parents[2]


class Source:
    """What is asked of an ASTSource."""

    def __init__(self, text: str) -> None:
        self.text = text

    def hash(self) -> str:
        return self.text


KERNEL: Any = Source("kernel")
TARGET, OPTIONS = GPUTarget("cuda", 89, 32), {"num_warps": 2, "maxnreg": None}


class Compiler:
    """In place of Triton's: every kernel it makes is another."""

    def __init__(self) -> None:
        self.made = 0
        self.scratch = 0

    def __call__(self, source: Source, target: GPUTarget, options: dict[str, Any]) -> Any:
        self.made += 1
        metadata = {
            "name": "kernel", "num_warps": options["num_warps"], "shared": 1024,
            "global_scratch_size": self.scratch, "profile_scratch_size": 0,
        }  # fmt: skip
        return b"\x7fELF" + bytes([self.made]), metadata


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(module, "compiled", found)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_ALWAYS_COMPILE", raising=False)
    return found


def code(source: Any = KERNEL, target: GPUTarget = TARGET, **options: Any) -> MachineCode:
    return machine_code(source, target, OPTIONS | options)


def test_it_is_compiled_once(compiler: Compiler) -> None:
    first = code()
    assert first == MachineCode(b"\x7fELF\x01", "kernel", 64, 1024)
    assert code() == first and compiler.made == 1


def _another_library(patch: pytest.MonkeyPatch) -> None:
    there = os.stat(__file__)
    patch.setattr(module.os, "stat", lambda path: SimpleNamespace(st_size=there.st_size, st_mtime_ns=1))


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "source": lambda patch: {"source": Source("other")},
    "target": lambda patch: {"target": GPUTarget("cuda", 90, 32)},
    "warps": lambda patch: {"num_warps": 4},
    "registers": lambda patch: {"maxnreg": 64},
    "version": lambda patch: patch.setattr(module.triton, "__version__", "0"),
    "library": _another_library,
    "a switch that Triton counts": lambda patch: patch.setenv("DISABLE_LLVM_OPT", "1"),
    "one that it does not": lambda patch: patch.setenv("TRITON_PTXAS_PATH", "/usr/bin/ptxas"),
    "what asks for it": lambda patch: patch.setenv("TRITON_ALWAYS_COMPILE", "1"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_not_be_the_same_is_compiled(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = code()
    with monkeypatch.context() as patch:
        after = code(**CHANGES[change](patch) or {})
    assert compiler.made == 2 and after != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"name": "kernel"}', '{"cubin": "?", "name": "kernel"}'])
def test_a_damaged_file_is_replaced(compiler: Compiler, tmp_path: Path, damage: str) -> None:
    code()
    (file,) = tmp_path.rglob(FILE)
    file.write_text(damage)
    assert code().cubin == b"\x7fELF\x02"
    assert code().cubin == b"\x7fELF\x02" and compiler.made == 2


def test_scratch_memory_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    compiler.scratch = 16
    with pytest.raises(RuntimeError, match="kernel: expected a kernel without scratch memory"):
        code()
    assert not list(tmp_path.rglob(FILE))


# The kernel must not be an interpreted function here, which is settled when it is decorated.
PROGRAM = """
import hashlib, json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from reference.problem import Tail
from triton_impl import machine_code as module
from triton_impl.prepare import prepare_multiply_gap

special = prepare_multiply_gap(Tail(2, 3, 64, 64), (12288, 4096, 64, 1), torch.float32, 0, False).launch.kind
target = GPUTarget("cuda", 89, 32)
asked = []

def by_triton(*args, **kwargs):
    asked.append(1)
    return compile(*args, **kwargs)

compile, triton.compile = triton.compile, by_triton
case = sys.argv[1]
if case == "again":
    module.compiled = None
if case == "watched":
    triton.knobs.compilation.listener = lambda **_: None
if case == "another Triton":
    module.make_backend = lambda target, more: None
code = module.machine_code(special.source(), target, special.options)
print(json.dumps([len(asked), code.name, code.threads, code.shared, hashlib.sha256(code.cubin).hexdigest()]))
"""


def test_stages_make_what_triton_makes(tmp_path: Path) -> None:
    """Without triton.compile, and by it where somebody watches that or where the stages cannot be called; another
    process finds it and compiles nothing."""

    def run(case: str, folder: str) -> Any:
        environment = compilers.environment()
        environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / folder)}
        command = [sys.executable, "-c", PROGRAM, case]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    asked, *first = run("first", "own")
    assert not asked and first[0] == "multiply_gap"
    assert run("again", "own") == [0, *first]
    assert run("watched", "watched") == [1, *first]
    assert run("another Triton", "another") == [1, *first]


def test_machine_code_that_the_driver_refuses_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cubin cut short is read without complaint: only the driver sees that it is no machine code."""
    from triton_impl import driver, launch

    asked: list[bool] = []

    def loaded(special: Any, device: int, target: Any, *, anew: bool) -> str:
        asked.append(anew)
        if not anew:
            raise driver.Unloadable("CUDA driver: CUDA_ERROR_INVALID_IMAGE")
        return "kernel"

    monkeypatch.setattr(launch, "_loaded", loaded)
    monkeypatch.setattr(launch.torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert launch._compiled(KERNEL, 7) == "kernel"  # pyright: ignore[reportArgumentType]
    assert asked == [False, True]
