"""Shared libraries from C++ text: finds the host compiler, and keeps what it made in a directory."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from functools import cache as once
from pathlib import Path

from runtime import cache
from runtime.host_compiler import find_compiler

HERE = Path(__file__).parent
# -O1: compiles a quarter faster than -O2, and test kernels run too briefly to earn that back.
# No contraction to FMA, so that every host computes the same bits; the error budgets hold either way.
# Fortified longjmp refuses to leave one stack for another.
# Without -fno-tree-sra GCC 12 crashes ("internal compiler error") on some specialisations of stream_rows.
FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-U_FORTIFY_SOURCE",
    "-fno-tree-sra",
    "-w",
)


def compiler() -> tuple[str, ...]:
    """Command line of the host C++ compiler: $CXX, else the first of the usual names; empty if there is none."""
    return find_compiler("CXX", ("c++", "g++", "clang++"))


def unavailable() -> str | None:
    """None if CUDA C++ can be interpreted here, else one sentence that says why not."""
    if not sys.platform.startswith("linux"):
        return f"the CUDA C++ interpreter runs on Linux only, and this is {sys.platform}"
    if compiler():
        return None
    if named := os.environ.get("CXX", "").strip():
        return f"the CUDA C++ interpreter needs a host C++ compiler, and CXX={named!r} is not on PATH"
    return "the CUDA C++ interpreter needs a host C++ compiler, and neither c++, g++ nor clang++ is on PATH"


@once
def version(command: tuple[str, ...]) -> str:
    """What distinguishes this compiler's output from another's."""
    done = subprocess.run([*command, "--version"], check=False, capture_output=True, text=True)
    return f"{command} {done.stdout} {platform.machine()}"


def run_compiler(arguments: tuple[str, ...], text: str) -> str:
    """Standard output of the compiler, given the program `text`. Raises RuntimeError with its complaint."""
    command = [*compiler(), "-x", "c++", *arguments, "-I", str(HERE), "-"]
    done = subprocess.run(command, check=False, input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return done.stdout


def preprocess(text: str, options: tuple[str, ...]) -> str:
    """The text without comments and without what is switched off, macros of the options expanded."""
    return run_compiler(("-E", "-P", *options), text)


def shared_library(text: str, options: tuple[str, ...] = ()) -> Path:
    """The library of a C++ text, which may include this directory's headers; compiled unless it is kept, and whole."""
    headers = [(HERE / name).read_text() for name in ("device.h", "fibers.h")]
    recipe = "\0".join([*headers, version(compiler()), *FLAGS, *options, text])
    name = f"interpret-{hashlib.sha256(recipe.encode()).hexdigest()[:32]}.so"
    target = cache.directory() / name
    if not _is_whole(target):
        # Made aside and moved: other processes may be at the same, and a full disk leaves nothing half-made.
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            made = Path(aside, name)
            run_compiler((*FLAGS, *options, "-o", str(made)), text)
            made.write_bytes(_sealed(made.read_bytes()))
            made.replace(target)
    return target


def _sealed(library: bytes) -> bytes:
    """A library and its hash, which the loader does not mind: what is cut short or damaged kills who loads it."""
    return library + hashlib.sha256(library).digest()


def _is_whole(library: Path) -> bool:
    """Whether a file is there as it was written."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return content == _sealed(content[: -hashlib.sha256().digest_size])
