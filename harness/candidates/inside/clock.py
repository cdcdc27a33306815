"""Device time of a candidate, in its own process, by the stopwatch that times the project's own rows.

The judge asks for one sample at a time, so that all rows take turns. Its own wall clock over many calls and
the profiler are witnesses beside the events.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves as _leaves

from harness.candidates.inside import calls
from harness.timing import session

PERSISTING_L2 = 6  # CU_LIMIT_PERSISTING_L2_CACHE_SIZE
PROFILED = 20


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def set_aside() -> int:
    """Bytes of L2 that are set aside for data to stay in; 0 where the driver does not say."""
    limit = ctypes.c_size_t()
    return limit.value if _driver().cuCtxGetLimit(ctypes.byref(limit), PERSISTING_L2) == 0 else 0


def context(allowed: int) -> list[str]:
    """Findings about the CUDA context: more L2 set aside than was `allowed`, which no flush reaches."""
    found = set_aside()
    return [f"persisting: {found} bytes of L2 set aside for data to stay in"] if found > allowed else []


def reset_l2() -> None:
    """Take back what was set aside in the L2."""
    _driver().cuCtxSetLimit(PERSISTING_L2, ctypes.c_size_t(0))
    _driver().cuCtxResetPersistingL2Cache()


class Timed:
    """One call of the candidate, captured in a graph where it can be. x: its input, or a list of its arguments."""

    def __init__(self, call: Callable[[], Any], x: Any, device: torch.device) -> None:
        self.x, self.device, self.why = x, device, ""

        def quiet() -> Any:
            with torch.no_grad():
                return call()

        self.launch: Callable[[], object] = quiet
        self.out: Any = None
        try:
            self.launch, self.out = session.capture(quiet)
        except Exception as error:
            self.why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            torch.cuda.synchronize()
        self.prepare = session.flusher("read", device)
        self.watches = {
            "cold": session.stopwatch(self.launch, self.prepare),
            "warm": session.stopwatch(self.launch, None),
        }

    def describe(self) -> dict[str, Any]:
        """How the candidate is timed."""
        return {"how": "events" if self.why else "graph", "why": self.why}

    def answer(self, request: dict[str, Any], blobs: list[bytearray]) -> tuple[dict[str, Any], list[bytes]]:
        """One request of the judge."""
        what = request["what"]
        reset_l2()  # before a flush; between flush and call it might make the host wait
        if what == "sample":
            watch = self.watches[request["mode"]]
            return {"us": watch(), "host_bound": watch.host_bound}, []
        if what == "many":
            for _ in range(request["count"]):
                if request["flush"]:
                    self.prepare()
                if request["call"]:
                    self.launch()
            torch.cuda.synchronize()
            return {}, []
        if what == "kernels":
            return {"kernels": self._kernels()}, []
        return {}, self._secret(blobs)

    def _secret(self, blobs: list[bytearray]) -> list[bytes]:
        """Other data in every input, in place; nothing left of the last answer; one more replay: its bytes."""
        tensors = [leaf for leaf in _leaves(self.x) if isinstance(leaf, torch.Tensor)]
        for tensor, data in zip(tensors, blobs, strict=True):
            fresh = torch.frombuffer(data, dtype=torch.uint8).view(tensor.dtype).to(self.device)
            tensor.copy_(fresh.view(tensor.shape))
        if self.out is None:
            return [calls.raw(out) for out in _leaves(self.launch())]
        for out in _leaves(self.out):
            out.fill_(torch.nan if out.is_floating_point() else 1)
        self.launch()
        return [calls.raw(out) for out in _leaves(self.out)]

    def _kernels(self) -> list[dict[str, Any]]:
        """Kernels that ran, by the profiler, without those that flush: launches and us a call, registers, grid."""
        found, flush = self._profile(call=True), self._profile(call=False)
        for name, entry in flush.items():
            if name in found:
                found[name]["count"] -= entry["count"]
                found[name]["us"] -= entry["us"]
        return [entry for entry in found.values() if entry["count"] > 0.5 / PROFILED]

    def _profile(self, *, call: bool) -> dict[str, dict[str, Any]]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(PROFILED):
                self.prepare()
                if call:
                    self.launch()
            torch.cuda.synchronize()
        trace = Path("home", "trace.json")
        profile.export_chrome_trace(str(trace))
        found: dict[str, dict[str, Any]] = {}
        for event in json.loads(trace.read_text())["traceEvents"]:
            if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
                continue
            entry = found.setdefault(event["name"], {"name": event["name"], "count": 0.0, "us": 0.0})
            entry["count"] += 1 / PROFILED
            entry["us"] += event["dur"] / PROFILED
            more = event.get("args", {})
            entry |= {key: more[key] for key in ("registers per thread", "grid", "block") if key in more}
        return found
