"""The loop of a candidate's process: a command in, an answer out, until the judge closes the channel."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from harness.candidates import wire
from harness.candidates.inside import calls, clock, general, sandbox, subjects, watch
from harness.candidates.inside.launches import Launches

LARGEST = 1 << 36  # the judge is trusted: only nonsense is refused


class Unsupported(RuntimeError):
    """The file cannot run on this machine; the message says why."""


class Process:
    """State of one candidate's process."""

    def __init__(self, root: str, *, gpu: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.lacks_gpu = gpu and self.device.type == "cpu"
        self.launches = Launches()
        self.launches.listen()
        self.unsupported: tuple[type[BaseException], ...] = (Unsupported,)
        self._cupy()
        self.watch = watch.Watch(root)
        self.memory = calls.Memory(self.device)
        self.subject: Any = None
        self.timed: clock.Timed | None = None
        self.last: torch.Tensor | None = None
        self.x: torch.Tensor | None = None
        self.set_aside = 0
        if self.device.type == "cuda":
            # A new context of some cards has a part of the L2 set aside already.
            torch.zeros(1, device=self.device)
            clock.reset_l2()
            self.set_aside = clock.set_aside()

    def _cupy(self) -> None:
        if self.device.type == "cpu":
            from harness.candidates.inside import cupy_on_cpu

            self.unsupported += (cupy_on_cpu.Unsupported,)
            self.launches.cupy(cupy_on_cpu.install())
            return
        try:
            import cupy
        except ImportError:
            return
        self.launches.cupy(cupy)

    def load(self, request: dict[str, Any], _: list[bytearray]) -> tuple[dict[str, Any], list[bytes]]:
        """Read the candidate's file."""
        if request["wants_gpu"] and self.device.type == "cpu":
            raise Unsupported(request["wants_gpu"])
        if self.lacks_gpu:
            raise Unsupported("the judge has a GPU, but CUDA does not start in the candidate's process")
        problem = request["form"] == "problem"
        if problem:
            general.exact()
        self.watch.hear_threads()
        self.watch.start(watch.owners() | OWN)
        if problem:
            self.subject = general.General(Path.cwd(), request["details"]["file"], self.memory)
            return {}, []
        self.subject = subjects.load(request["form"], Path.cwd(), request["details"])
        return {}, []

    def build(self, request: dict[str, Any], blobs: list[bytearray]) -> tuple[dict[str, Any], list[bytes]]:
        """A new model, its constructor's random numbers from the given seed."""
        if isinstance(self.subject, general.General):
            return self.subject.build(request, blobs)
        self.last = None
        torch.manual_seed(request["seed"])
        dtype = getattr(torch, request["dtype"])
        self.subject.build(request["problem"], request["multiplier"], self.device, dtype)
        return {"weights": list(self.subject.tensors())}, []

    def weights(self, request: dict[str, Any], blobs: list[bytearray]) -> tuple[dict[str, Any], list[bytes]]:
        """Set weight and bias, or any state: in place, or as a checkpoint does."""
        if isinstance(self.subject, general.General):
            return self.subject.weights(request, blobs)
        specs = request["tensors"]
        values = {name: self.memory.put(specs[name], blob) for name, blob in zip(specs, blobs, strict=True)}
        if request["how"] == "load":
            self.subject.load(values)
        else:
            with torch.no_grad():
                held = self.subject.tensors()
                for name, value in values.items():
                    held[name].copy_(value)
        return {}, []

    def call(self, request: dict[str, Any], blobs: list[bytearray]) -> tuple[dict[str, Any], list[bytes]]:
        """One call; bytes of the answer at once and later, of x, of the weights, and of the answer before."""
        if isinstance(self.subject, general.General):
            return self._general(self.subject, request, blobs)
        spec = request["x"]
        dtype = getattr(torch, spec["dtype"])
        calls.poison(request["out"], dtype, self.device)
        x = self.x if request["same"] and self.x is not None else self.memory.put(spec, blobs[0], late=request["late"])
        self.x = x
        out, seen = self._called(x, request)
        if "error" in seen:
            return seen, []
        if reason := calls.complaint(out, self.device, request["out"]):
            return {"complaint": reason}, []
        first, later = calls.result(out, wait=request["late"])
        held = self.subject.tensors()
        found = [
            first,
            later,
            self.memory.bytes_of(spec["slot"]),
            *(calls.raw(held[name]) for name in sorted(held)),
        ]
        before = self.last
        self.last = out
        if before is not None:
            found.append(calls.raw(before))
        return seen | {"shape": list(out.shape), "dtype": str(out.dtype).removeprefix("torch."),
                       "weights": sorted(held), "before": before is not None}, found  # fmt: skip

    def _general(
        self, subject: general.General, request: dict[str, Any], blobs: list[bytearray]
    ) -> tuple[dict[str, Any], list[bytes]]:
        for shape, dtype in request["outs"]:
            calls.poison(shape, getattr(torch, dtype), self.device)
        out, seen = self._called(subject.take(request, blobs), request)
        return (seen, []) if "error" in seen else subject.answered(out, seen, request)

    def _called(self, arguments: Any, request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """One call with kernels left out or made to fail as the request says: the answer, and what was seen."""
        self.launches.reset(request["skip"], request["fail"])
        try:
            return calls.call(self.subject, arguments, self.watch, self.launches, count=request["count"])
        except self.unsupported:
            raise
        except BaseException as error:  # SystemExit is an answer, too
            return None, {"error": _words(error), "launches": dict(self.launches.counts)}
        finally:
            self.launches.reset()

    def time(self, request: dict[str, Any], blobs: list[bytearray]) -> tuple[dict[str, Any], list[bytes]]:
        """Everything that has to do with clocks: inside/clock.py."""
        if request["what"] == "prepare":
            general_ = isinstance(self.subject, general.General)
            x = self.subject.take(request, blobs) if general_ else self.memory.put(request["x"], blobs[0])
            self.timed = clock.Timed(lambda: self.subject.call(x), x, self.device)
            return self.timed.describe(), []
        assert self.timed is not None
        return self.timed.answer(request, blobs)


COMMANDS = ("load", "build", "weights", "call", "time")
OWN = {module.__name__: module for module in (calls, clock, general, subjects, wire, sys.modules[__name__])}


def _words(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:500] + _place(error)


def _place(error: BaseException) -> str:
    """The last line of the candidate's own files that the error passed; they lie in this process's folder."""
    place, step = "", error.__traceback__
    while step:
        file = Path(step.tb_frame.f_code.co_filename)
        if file.is_relative_to(Path.cwd()):
            place = f" ({file.name}, line {step.tb_lineno})"
        step = step.tb_next
    return place


def _hide(root: str) -> None:
    """Leave nothing of the project where the candidate's imports could find it."""
    sys.path.remove(root)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(root) and f"{os.sep}site-packages{os.sep}" not in file:
            del sys.modules[name]


def main(descriptor: int, largest_file: int, writable: tuple[str, ...] | None, gpu: bool) -> None:
    """Serve the judge on a socket that was inherited. gpu: whether the judge has one, and this process is to use it."""
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    root = sys.path[0]
    vars(sys.modules["__main__"]).pop("main", None)
    process = Process(root, gpu=gpu)
    # Once CUDA has started: it opens files to write to that a candidate has no business with.
    sandbox.restrict(Path.cwd(), largest_file, writable)
    commands = {name: getattr(process, name) for name in COMMANDS}
    hidden = False
    while True:
        try:
            request, blobs = wire.receive(channel, LARGEST)
        except EOFError:
            os._exit(0)
        answer: dict[str, Any]
        try:
            if not hidden:
                _hide(root)
                hidden = True
            answer, found = commands[request["command"]](request, blobs)
        except process.unsupported as error:
            answer, found = {"failed": str(error), "verdict": "unsupported"}, []
        except BaseException as error:
            answer, found = {"failed": f"{request['command']}: {_words(error)}", "verdict": "crashed"}, []
        answer |= {"token": request["token"], "findings": process.watch.look()}
        if process.device.type == "cuda":
            answer["findings"] += clock.context(process.set_aside)
        wire.send(channel, answer, found)
