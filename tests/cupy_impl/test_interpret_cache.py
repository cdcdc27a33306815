"""The CUDA C++ interpreter: its compiler, and the libraries that it keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cupy_impl.interpret import Module, unavailable
from tests.cupy_impl.own_kernels import needs_compiler

ROOT = Path(__file__).parents[2]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    reason = unavailable()
    assert reason is not None and "neither c++, g++ nor clang++ is on PATH" in reason
    with pytest.raises(RuntimeError, match="needs a host C\\+\\+ compiler"):
        Module("// a source that no other test compiles")
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert "CXX='no-such-compiler -m64' is not on PATH" in str(unavailable())


PROGRAM = textwrap.dedent("""
    import ctypes
    from cupy_impl.interpret import Module
    out = ctypes.c_int()
    module = Module('extern "C" __global__ void f(int* out) { *out = VALUE; }', ("-DVALUE=42",))
    module.function("f")((1,), 1, (ctypes.addressof(out),))
    assert out.value == 42
""")


def start(cache: Path, program: str = PROGRAM, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "CONVGAP_CACHE_DIR": str(cache), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@needs_compiler
def test_processes_share_the_cache(tmp_path: Path) -> None:
    log, compiler, cache = tmp_path / "log", tmp_path / "counting-c++", tmp_path / "cache"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {os.environ.get("CXX", "c++")} "$@"\n')
    compiler.chmod(0o755)
    for process in [start(cache, CXX=str(compiler)) for _ in range(2)]:  # a race for the empty directory
        finish(process)
    assert len(list(cache.iterdir())) == 2  # the scheduler and the kernels, nothing half-made
    assert "-shared" in log.read_text()
    log.unlink()
    finish(start(cache, CXX=str(compiler)))
    assert "-shared" not in log.read_text()


@needs_compiler
def test_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file can not hold a directory, whoever asks")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    finish(start(tmp_path / "file" / "cache", TMPDIR=str(scratch)))
    assert not any(scratch.iterdir())


@needs_compiler
@pytest.mark.parametrize("keep", [0, 3000, -1])
def test_a_damaged_library_is_made_anew(tmp_path: Path, keep: int) -> None:
    cache = tmp_path / "cache"
    finish(start(cache))
    made = sorted(cache.iterdir())
    assert len(made) == 2
    for library in made:
        content = library.read_bytes()
        library.write_bytes(content[:keep] if keep >= 0 else content[:2000] + bytes(1000) + content[3000:])
    finish(start(cache))
    assert sorted(cache.iterdir()) == made


@needs_compiler
def test_a_cache_directory_needs_no_home(tmp_path: Path) -> None:
    nobody = """
        import os, pwd
        def getpwuid(uid):
            raise KeyError(uid)
        pwd.getpwuid = getpwuid
        del os.environ["HOME"]
    """
    cache = tmp_path / "cache"
    finish(start(cache, textwrap.dedent(nobody) + PROGRAM))
    assert len(list(cache.iterdir())) == 2
