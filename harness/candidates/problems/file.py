"""A file of KernelBench's form: class Model, get_inputs() and get_init_inputs(). It is the judge's own, and trusted."""

from __future__ import annotations

import copy
import hashlib
import importlib.machinery
import importlib.util
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from harness.errors import UsageError
from harness.files import require_regular

NAMES = ("Model", "get_inputs", "get_init_inputs")
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class ProblemFile:
    """What the file gives. digest: of its text."""

    path: Path
    module: ModuleType
    digest: str

    @cached_property
    def init(self) -> list[Any]:
        """Arguments of Model's constructor."""
        found = self._call("get_init_inputs")
        if not isinstance(found, list | tuple):
            raise UsageError(f"--problem: {self.path}: get_init_inputs: expected a list, got {type(found).__name__}")
        return list(found)

    def inputs(self, seed: int) -> list[Any]:
        """Arguments of one call, on the CPU, drawn from a seed."""
        with _seeded(seed):
            found = self._call("get_inputs")
        if not isinstance(found, list | tuple) or not any(isinstance(v, Tensor) for v in tree_leaves(list(found))):
            raise UsageError(f"--problem: {self.path}: get_inputs: expected a list with a tensor in it")
        return tree_map(lambda v: v.detach().cpu() if isinstance(v, Tensor) else v, list(found))

    def model(self, seed: int) -> nn.Module:
        """A new Model on the CPU, its parameters drawn from a seed, in the mode that its constructor leaves."""
        with _seeded(seed):
            model = self._call("Model", *copy.deepcopy(self.init))
        if not isinstance(model, nn.Module):
            raise UsageError(f"--problem: {self.path}: Model: expected a torch.nn.Module, got {type(model).__name__}")
        return model.cpu()

    @cached_property
    def dtype(self) -> str:
        """The working precision: of the first floating-point input, else of the first parameter."""
        tensors = [v for v in tree_leaves(self.inputs(0)) if isinstance(v, Tensor)]
        found = [v.dtype for v in (*tensors, *self.model(0).parameters()) if v.is_floating_point()]
        dtype = found[0] if found else torch.float32
        if dtype not in DTYPES:
            known = ", ".join(DTYPES.values())
            raise UsageError(f"--problem: {self.path}: computes in {dtype}, expected one of {known}: truth is float64")
        return DTYPES[dtype]

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.module, name)(*arguments)
        except Exception as error:
            raise UsageError(f"--problem: {self.path}: {name} raises {_words(error)}") from None


def read(path: Path) -> ProblemFile:
    """The problem in a file. UsageError for one that cannot be read, imported, or lacks a name."""
    try:
        require_regular(path)
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--problem: {path}: cannot be read ({error})") from None
    name = f"problem_{hashlib.sha256(text).hexdigest()[:16]}"
    # Of any suffix; and found by its name, as dataclasses and pickle ask.
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"--problem: {path}: reading it raises {_words(error)}") from None
    finally:
        sys.dont_write_bytecode = writes
    if missing := [wanted for wanted in NAMES if not callable(getattr(module, wanted, None))]:
        raise UsageError(f"--problem: {path}: expected class Model, get_inputs and get_init_inputs, no {missing[0]}")
    return ProblemFile(path, module, hashlib.sha256(text).hexdigest())


class Wide:
    """A Model in float64 with the state of another, to be run with whatever is done to its state and inputs first."""

    def __init__(self, problem: ProblemFile, model: nn.Module, inputs: Sequence[Any]) -> None:
        self.problem, self.state, self.inputs = problem, model.state_dict(), inputs
        # A state that is not saved, and tensors that are no buffers, come with the model.
        self._models = {"cpu": _wide(copy.deepcopy(model))}
        # Here, for a copy made while a mode rounds every operation would be rounded.
        if torch.cuda.is_available():
            self._models["cuda"] = copy.deepcopy(self._models["cpu"]).to("cuda")

    def __call__(self, prepare: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Outputs, in order; `prepare` is given each input and each tensor of the state in float64, and places it."""

        def placed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return prepare(value.double() if value.is_floating_point() else value)

        state = {name: placed(value) for name, value in self.state.items()}
        inputs = tree_map(placed, list(self.inputs))
        devices = {v.device.type for v in tree_leaves([state, inputs]) if isinstance(v, Tensor)} or {"cpu"}
        model = self._models[devices.pop()]
        for name, value in model.state_dict().items():
            value.copy_(state[name])
        return outputs(self.problem, model, inputs)


def outputs(problem: ProblemFile, model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """The tensors that a call answers with, those in tuples, lists and dicts in order. UsageError if it raises."""
    try:
        with torch.no_grad():
            found = model(*inputs)
    except Exception as error:
        raise UsageError(f"--problem: {problem.path}: Model's forward raises {_words(error)}") from None
    tensors = [value for value in tree_leaves(found) if isinstance(value, Tensor)]
    if not tensors:
        raise UsageError(f"--problem: {problem.path}: Model's forward answers with no tensor")
    return tensors


def _wide(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    return model.double()


class _seeded:
    """Everything that a file may draw from starts at one seed, and is as it was afterwards."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __enter__(self) -> None:
        self._held = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        random.setstate(self._held[0])
        np.random.set_state(self._held[1])
        torch.random.set_rng_state(self._held[2])


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
