"""ModelNew of any problem: built with any arguments, its state set by name, called with any arguments."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves as _leaves

from harness.candidates import packing
from harness.candidates.inside import calls, subjects

Answer = tuple[dict[str, Any], list[bytes]]


def exact() -> None:
    """Convolutions and products of the framework in float32 where that is asked for: its default may be TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class General:
    """A candidate's model, and what the last call left."""

    def __init__(self, folder: Path, file: str, memory: calls.Memory) -> None:
        self.kind = subjects.imported(folder / file).ModelNew
        self.memory, self.device = memory, memory.device
        self.model: Any = None
        self.arguments: list[Any] = []
        self.before: list[Tensor] = []

    def build(self, request: dict[str, Any], blobs: list[bytearray]) -> Answer:
        """A new model, its constructor's random numbers from the given seed; what its state holds."""
        arguments = packing.unpack(request["init"], self.memory.put, blobs)
        seed = request["seed"]
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.before = []
        self.model = self.kind(*arguments).to(self.device)
        state = self.model.state_dict()
        return {"state": [[name, list(value.shape)] for name, value in state.items()]}, []

    def weights(self, request: dict[str, Any], blobs: list[bytearray]) -> Answer:
        """Set tensors of the state: in place, or as a checkpoint does."""
        specs = request["tensors"]
        values = {name: self.memory.put(specs[name], blob) for name, blob in zip(specs, blobs, strict=True)}
        if request["how"] == "load":
            self.model.load_state_dict(self.model.state_dict() | values)
        else:
            held = self.model.state_dict(keep_vars=True)
            with torch.no_grad():
                for name, value in values.items():
                    held[name].copy_(value)
        return {}, []

    def take(self, request: dict[str, Any], blobs: list[bytearray]) -> list[Any]:
        """The arguments of a call; those of the call before, untouched, if they are to be the same."""

        def put(spec: dict[str, Any], blob: bytearray) -> Tensor:
            return self.memory.put(spec, blob, late=request.get("late", False))

        if not request.get("same"):
            self.arguments = packing.unpack(request["arguments"], put, blobs)
        return self.arguments

    def call(self, arguments: list[Any]) -> Any:
        """The model's answer."""
        return self.model(*arguments)

    def answered(self, out: Any, seen: dict[str, Any], request: dict[str, Any]) -> Answer:
        """Bytes of each output at once and later, of the arguments, of the named state, and of the answer before."""
        found = _leaves(out)
        expected = request["outs"]
        if len(found) != len(expected):
            return {"complaint": f"type: answered with {len(found)} outputs, expected {len(expected)}"}, []
        for tensor, (shape, _) in zip(found, expected, strict=True):
            if reason := calls.complaint(tensor, self.device, shape):
                return {"complaint": reason}, []
        blobs: list[bytes] = []
        for tensor in found:
            blobs += calls.result(tensor, wait=request["late"])
        blobs += [self.memory.bytes_of(slot) for slot in request["slots"]]
        state = self.model.state_dict()
        blobs += [calls.raw(state[name]) for name in request["kept"]]
        blobs += [calls.raw(tensor) for tensor in self.before]
        before, self.before = len(self.before), found
        dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in found]
        return seen | {"dtypes": dtypes, "before": before}, blobs
