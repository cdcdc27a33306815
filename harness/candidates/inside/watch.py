"""Signs of a candidate that works on the judge and not on the problem: what it patched, searched, started, switched.

Signs only: the verdict rests on answers and is made elsewhere. An audit hook sees events of the interpreter and asks
whose code they come from; a snapshot of functions that others rely on is compared with what is there later.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import sysconfig
import threading
from collections.abc import Iterator
from types import FrameType, FunctionType, ModuleType
from typing import Any

import torch

STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
PACKAGES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")} | {torch.__path__[0].rpartition("/")[0]})
LOOKERS = ("inspect.py", "traceback.py", "gc.py")
MEMORY = {"gc.get_objects", "gc.get_referrers", "gc.get_referents"}
FRAMES = {"sys._getframe", "sys._current_frames", "sys._current_exceptions"}
FRAME_ATTRIBUTES = {"tb_frame", "gi_frame", "cr_frame", "ag_frame"}
HOOKS = {"sys.settrace", "sys.setprofile", "sys.addaudithook"}
PROCESSES = {"os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "subprocess.Popen", "os.kill"}
THREADS = {"_thread.start_new_thread", "_thread.start_joinable_thread"}
"""The second is what threading.Thread starts from Python 3.13 on."""
EXACT = ("ieee", "torch.float64", False)
"""Settings of `precision` that none is finer than."""
RAW = {"ctypes.string_at", "ctypes.wstring_at", "ctypes.cdata", "ctypes.cdata/buffer"}


class Watch:
    """Findings so far, each "kind: sentence"; `calling` is set while the candidate's function runs."""

    def __init__(self, judge: str) -> None:
        self.findings: dict[str, None] = {}
        self.calling = False
        self._judge = judge
        self._busy = False
        self._saved: list[tuple[str, Any, dict[str, Any], frozenset[str]]] = []
        self._codes: list[tuple[str, FunctionType, Any]] = []
        self._precision: dict[str, Any] = {}

    def start(self, owners: dict[str, Any]) -> None:
        """Remember what `owners` (modules and classes by name) hold, and listen from now on."""
        for name, owner in owners.items():
            held = {key: value for key, value in vars(owner).items() if callable(value)}
            self._saved.append((name, owner, held, frozenset(dir(owner))))
            if isinstance(owner, ModuleType) and getattr(owner, "__file__", "").startswith(self._judge):
                self._codes += [(f"{name}.{k}", v, v.__code__) for k, v in held.items() if isinstance(v, FunctionType)]
        self._precision = precision()
        sys.addaudithook(self._hear)

    def hear_threads(self) -> None:
        """Python before 3.12 has no event for a thread that starts: stand where threads come from."""
        plain = _thread.start_new_thread

        def start(*arguments: Any) -> int:
            self._hear("_thread.start_new_thread", arguments)
            return plain(*arguments)

        _thread.start_new_thread = threading._start_new_thread = start  # pyright: ignore[reportAttributeAccessIssue]

    def look(self) -> list[str]:
        """All findings up to now."""
        # First: another default dtype also changes what torch.Storage is. A finer setting misleads nobody.
        now = precision()
        for name, value in self._precision.items():
            if _coarser(value, now[name]):
                self._found(f"precision: {name} was {value}, and is {now[name]}")
        for name in self._patched():
            self._found(f"patched: {name} is no longer what it was")
        return list(self.findings)

    def _found(self, text: str) -> None:
        self.findings[text] = None

    def _patched(self) -> Iterator[str]:
        for name, owner, held, names in self._saved:
            now = vars(owner)
            yield from (f"{name}.{key}" for key, value in held.items() if not _same(now.get(key, value), value))
            if isinstance(owner, type):
                new = (key for key in now if key not in held and key in names and callable(now[key]))
                yield from (f"{name}.{key}" for key in new)
        yield from (name for name, function, code in self._codes if function.__code__ is not code)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            if text := self._sign(event, arguments):
                self._found(text)
        finally:
            self._busy = False

    def _sign(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event in FRAMES or event == "object.__getattr__":
            if event == "object.__getattr__" and arguments[1] not in FRAME_ATTRIBUTES:
                return ""
            return f"search: looked at the frames of its callers ({event})" if self._theirs(LOOKERS) else ""
        if event in MEMORY or event in RAW:
            return f"search: went through the memory of its process ({event})" if self._theirs() else ""
        if event in ("open", "os.listdir", "os.scandir"):
            path = arguments[0]
            if isinstance(path, str) and path.startswith(("/proc", self._judge)) and self._theirs():
                return f"search: looked into {path}"
        elif event in THREADS:
            return "thread: started a thread" if self._theirs() else ""
        elif event in HOOKS:
            return f"hook: {event}" if self._theirs() else ""
        elif event in PROCESSES:
            return f"process: {event} while it was called" if self.calling and self._theirs() else ""
        elif event == "socket.connect":
            return "network: opened a connection" if self._theirs() else ""
        elif event == "object.__setattr__" and arguments[1] == "__code__":
            return (
                f"patched: the code of {getattr(arguments[0], '__qualname__', arguments[0])}" if self._theirs() else ""
            )
        return ""

    def _theirs(self, through: tuple[str, ...] | None = None) -> bool:
        """Whether the event comes from the candidate's code, by way of the standard library or by way of `through`."""
        frame: FrameType | None = sys._getframe(3)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith("<frozen") or file == __file__:
                frame = frame.f_back
            elif file.startswith(STANDARD) and not file.startswith(PACKAGES):
                if through is not None and not file.endswith(through):
                    return False
                frame = frame.f_back
            else:
                return not file.startswith((*PACKAGES, self._judge))
        return False


def _same(now: Any, before: Any) -> bool:
    """Whether a function is what it was; torch's compiler wraps some of torch's own as it is imported."""
    if now is before:
        return True
    code = getattr(now, "__code__", None)
    if code is None or not code.co_filename.startswith(PACKAGES):
        return False
    inside = [cell.cell_contents for cell in now.__closure__ or ()]
    return any(inner is before for inner in (*inside, *vars(now).values()))


def _coarser(before: Any, now: Any) -> bool:
    """Whether torch may compute less exactly by this switch than before; "none" is a default, and never past TF32."""
    return now != before and now not in EXACT and (before, now) != ("tf32", "none")


def precision() -> dict[str, Any]:
    """The process's switches that decide how exactly torch computes."""
    backends: Any = torch.backends  # its members are made at run time
    return {
        "torch.get_default_dtype()": str(torch.get_default_dtype()),
        "torch.backends.cuda.matmul.fp32_precision": backends.cuda.matmul.fp32_precision,
        "torch.backends.cudnn.conv.fp32_precision": backends.cudnn.conv.fp32_precision,
        "torch.backends.mkldnn.conv.fp32_precision": backends.mkldnn.conv.fp32_precision,
        "torch.backends.mkldnn.matmul.fp32_precision": backends.mkldnn.matmul.fp32_precision,
        "autocast on the GPU": torch.is_autocast_enabled("cuda"),
        "autocast on the CPU": torch.is_autocast_enabled("cpu"),
    }


def owners() -> dict[str, Any]:
    """Modules and classes whose functions a judge may rely on, by name."""
    import builtins
    import json
    import math
    import os
    import random
    import socket
    import statistics
    import threading
    import time

    import numpy as np

    modules = (builtins, json, math, os, random, statistics, threading, time, np, np.random, np.testing)
    modules += (
        torch,
        torch.cuda,
        torch.random,
        torch.testing,
        torch.nn.functional,
        torch.autograd,
        torch.profiler,
    )
    classes = (
        torch.Tensor,
        torch.nn.Module,
        torch.cuda.Event,
        torch.cuda.Stream,
        torch.cuda.CUDAGraph,
        torch.Generator,
    )
    named = {module.__name__: module for module in modules}
    named |= {f"{kind.__module__}.{kind.__name__}": kind for kind in (*classes, socket.socket, threading.Thread)}
    with contextlib.suppress(ImportError):
        import triton.testing

        named["triton.testing"] = triton.testing
    return named
