"""The native call path: builds and loads native.c, and says why there is none where there is none.

It is compiled at the first call on a CUDA device, by the C compiler that is there, into the cache directory: a
checkout has no build step, a wheel stays the same for every Python, and one library serves all of them (limited
API). No call waits for the compiler: it runs beside, and until it is done the calls go through Python. `wait`
waits.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any
from warnings import catch_warnings

import torch
from torch.overrides import has_torch_function_variadic

from runtime import cache, private, workspace
from runtime.host_compiler import find_compiler

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden")
CUDA = 2
"""DLPack's number for CUDA devices."""

_lock = Lock()


class Unavailable(RuntimeError):
    """Why there is no native path here."""


def compiler() -> tuple[str, ...]:
    """Command line of the C compiler: $CC, else the first of the usual names; empty if there is none."""
    return find_compiler("CC", ("cc", "gcc", "clang"))


def refusal() -> str:
    """Why native.c cannot be used here, as far as one knows without a compiler; empty if nothing is in the way."""
    if os.environ.get("CONVGAP_NATIVE", "1").strip() == "0":
        return "CONVGAP_NATIVE is 0"
    if not sys.platform.startswith("linux"):
        return f"it is for Linux, and this is {sys.platform}"
    if sys.implementation.name != "cpython":
        return f"it is for CPython, and this is {sys.implementation.name}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "it relies on Python's global lock, which this Python has not"
    needed = {
        "torch.Tensor.__dlpack_c_exchange_api__": private.exchange,
        "Inductor's function that allocates": private.empty_strided_cuda,
        "the dispatcher's keys": private.KEYS,
    }
    for name, found in needed.items():
        if found is None:
            return f"this torch lacks {name}"
    return ""


def command() -> tuple[str, ...]:
    """The compiler's command without its output. Raises Unavailable."""
    found = compiler()
    if not found:
        named = os.environ.get("CC", "").strip()
        raise Unavailable(f"CC={named!r} is not on PATH" if named else "no C compiler: neither cc, gcc nor clang")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise Unavailable(f"no Python.h in {include}")
    return *found, *FLAGS, f"-I{include}", str(SOURCE), "-ldl"


def _target(recipe: tuple[str, ...]) -> Path:
    texts = [path.read_text() for path in (SOURCE, *sorted(SOURCE.parent.glob("native_*.h")))]
    said = "\0".join([*texts, *recipe, platform.machine(), platform.libc_ver()[1]])
    return cache.directory() / f"native-{hashlib.sha256(said.encode()).hexdigest()[:32]}.so"


class Build:
    """One compilation that runs beside."""

    def __init__(self) -> None:
        recipe = command()
        self.target = _target(recipe)
        self._process: subprocess.Popen[bytes] | None = None
        if not self.target.exists():
            # Made aside and moved by the shell, so that it is complete whenever it is there, even if this process ends.
            handle, aside = tempfile.mkstemp(suffix=".so", dir=self.target.parent)
            os.close(handle)
            script = f"{shlex.join((*recipe, '-o', aside))} && mv {shlex.quote(aside)} {shlex.quote(str(self.target))}"
            script += f" || {{ rm -f {shlex.quote(aside)}; exit 1; }}"
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

    def done(self, wait: bool = False) -> bool:
        """Whether the library is there. Raises Unavailable, with the compiler's words, if it cannot be made."""
        process = self._process
        if process is None:
            return True
        if not wait and process.poll() is None:
            return False
        _, said = process.communicate()
        if process.returncode:
            lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
            raise Unavailable(f"the C compiler failed: {next((x for x in lines if 'error' in x), '?')[:200]}")
        self._process = None
        return True


def load(library: Path) -> ModuleType:
    """The module of a compiled native.c. Raises Unavailable."""
    loader = importlib.machinery.ExtensionFileLoader("native", str(library))
    spec = importlib.util.spec_from_file_location("native", library, loader=loader)
    assert spec is not None
    try:
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except ImportError as error:
        library.unlink(missing_ok=True)  # damaged, say: the next process builds it anew
        raise Unavailable(f"{library.name} does not load: {error}") from error
    return module


def make_room(stream: int, counters: int, space: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """(zeroed counters, workspace, how many, bytes) for launches on a stream of the current device; the workspace in
    powers of two, so that there is seldom need for more. Without counters the first stands for nothing."""
    device = torch.device("cuda", private.current_device())
    size = 1 << max(space - 1, 4095).bit_length()
    room = torch.empty(size, dtype=torch.uint8, device=device)
    zeros = workspace.take(counters, device, stream) if counters else room
    return zeros, room, zeros.numel() if counters else 0, size


def _thread_keys() -> tuple[int, int]:
    """Keys that this thread adds to those of every call, and keys that it takes away."""
    return private.included().raw_repr(), private.excluded().raw_repr()


def _read_torch(module: ModuleType, usual: frozenset[int]) -> None:
    """Have the module read what torch knows of threads and tensors in torch's libraries, if it finds there what Python
    says: in states that change a thread's keys, and for tensors with other keys."""
    ones: Any = torch.ones  # names of dimensions are in no type
    plain = ones(1)
    tensors = [plain, torch.complex(plain, plain).conj().imag]
    named = hasattr(plain, "has_names")
    if named:
        with catch_warnings(action="ignore"):  # names are said to be an experiment
            tensors.append(ones(1, names=("N",)))
    module.read_torch(*_thread_keys(), named)

    def right(state: AbstractContextManager[object]) -> bool:
        with state:
            return module.thread_keys() == _thread_keys()

    states = nullcontext(), torch.inference_mode(), torch.autocast("cpu")
    if not all(map(right, states)) or any(
        module.usual(tensor) != (private.keys_of(tensor).raw_repr() in usual) for tensor in tensors
    ):
        module.read_torch()


def configure(
    module: ModuleType, plan_tail: Any, plan_chain: Any, plan_backward: Any, *, driver: str = "libcuda.so.1",
    device_type: int = CUDA, empty_strided: Any = None, room: Any = make_room,
) -> None:  # fmt: skip
    """Tell the module what it uses of Python. The planners take the arguments of a call and give what native.c says of
    plans, or None. Raises Unavailable."""
    keys = private.KEYS
    assert keys is not None
    sets = keys.added, keys.inplace, keys.cast, keys.autograd
    try:
        module.configure(
            driver, device_type, private.exchange, tuple(sorted(keys.usual)), torch.Tensor, torch.nn.Parameter,
            has_torch_function_variadic, torch.is_grad_enabled, private.keys_of, private.included, private.excluded,
            private.profiling, torch.autograd.forward_ad, empty_strided or private.empty_strided_cuda, plan_tail,
            plan_chain, plan_backward, room, sets,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise Unavailable(str(error)) from error
    _read_torch(module, keys.usual)
    os.register_at_fork(after_in_child=module.disable)
