"""A candidate's file as something that can be built with a problem, given weights, and called."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor


class Subject(Protocol):
    """build: for one problem, with a multiplier. tensors: the live weight and bias, by name; call: one answer."""

    def build(self, problem: dict[str, Any], multiplier: float, device: torch.device, dtype: torch.dtype) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, values: dict[str, Tensor]) -> None: ...
    def call(self, x: Tensor) -> Any: ...


def load(form: str, folder: Path, details: dict[str, Any]) -> Subject:
    """The subject of a form ("kernelbench", "functions", "cuda", "solution") whose sources lie in `folder`."""
    if form == "cuda":
        return Cuda((folder / details["file"]).read_text(encoding="utf-8"), details)
    module = imported(folder / details["file"])
    if form == "kernelbench":
        return Model(module.ModelNew)
    if form == "functions":
        return Functions(module)
    return Solution(getattr(module, details["function"]), details)


def imported(path: Path) -> ModuleType:
    """The file as a module that is found under its name: Triton and dataclasses ask sys.modules."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Model:
    """KernelBench's form: ModelNew(in_channels, out_channels, kernel_size, ..., multiplier), called with x."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.model: Any = None
        self.problem: dict[str, Any] = {}

    def build(self, problem: dict[str, Any], multiplier: float, device: torch.device, dtype: torch.dtype) -> None:
        """A new model; numbers stand for pairs of equal numbers, as in KernelBench."""
        self.problem = problem
        pairs = [_plain(problem[name]) for name in ("kernel", "stride", "padding", "output_padding")]
        self.model = self.kind(problem["c_in"], problem["c_out"], *pairs, multiplier).to(device, dtype).eval()

    def _names(self) -> dict[str, str]:
        """Where weight and bias are in the model: by their usual names, else by their shapes."""
        p = self.problem
        shapes = {"weight": (p["c_in"], p["c_out"], *p["kernel"]), "bias": (p["c_out"],)}
        state = self.model.state_dict(keep_vars=True)
        found = {}
        for name, shape in shapes.items():
            usual = f"conv_transpose.{name}"
            alike = [key for key, value in state.items() if isinstance(value, Tensor) and tuple(value.shape) == shape]
            named = [key for key in alike if key.rpartition(".")[2] == name]
            if usual in alike:
                found[name] = usual
            elif len(named) == 1 or len(alike) == 1:
                found[name] = (named or alike)[0]
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The model's own weight and bias, where it has them."""
        state = self.model.state_dict(keep_vars=True)
        return {name: state[key] for name, key in self._names().items()}

    def load(self, values: dict[str, Tensor]) -> None:
        """Set weight and bias as a checkpoint does."""
        names = self._names()
        self.model.load_state_dict(self.model.state_dict() | {names[name]: value for name, value in values.items()})

    def call(self, x: Tensor) -> Any:
        """The model's answer."""
        return self.model(x)


def _plain(pair: Any) -> Any:
    return pair[0] if pair[0] == pair[1] else tuple(pair)


class _Given:
    """A subject whose weight and bias are arguments: they live here."""

    def build(self, problem: dict[str, Any], multiplier: float, device: torch.device, dtype: torch.dtype) -> None:
        """Make room for weight and bias of the problem, if it has them."""
        self.problem, self.multiplier = problem, multiplier
        self.held: dict[str, Tensor] = {}
        if problem["operator"] == "chain":
            shape = problem["c_in"], problem["c_out"] // problem["groups"], *problem["kernel"]
            self.held["weight"] = torch.zeros(shape, device=device, dtype=dtype)
            self.held["bias"] = torch.zeros(problem["c_out"], device=device, dtype=dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The weight and bias that the next call gets."""
        return self.held

    def load(self, values: dict[str, Tensor]) -> None:
        """New tensors in the place of the old ones."""
        self.held = {name: value.clone() for name, value in values.items()}


class Functions(_Given):
    """This project's two public functions, or one of them."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def call(self, x: Tensor) -> Any:
        """The function's answer."""
        if not self.held:
            return self.module.multiply_gap(x, self.multiplier)
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        sizes = {name: _pair(self.problem[name]) for name in names}
        held = self.held["weight"], self.held["bias"]
        return self.module.conv_transpose2d_multiply_gap(x, *held, multiplier=self.multiplier, **sizes)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Solution(_Given):
    """An entry point of flashinfer-bench: run(x, weight, bias, multiplier) or run(y, multiplier), maybe with out."""

    def __init__(self, run: Callable[..., Any], details: dict[str, Any]) -> None:
        self.run, self.passes_output = run, details["passes_output"]
        if self.passes_output is None:  # not said: told by whether there is room for one argument more
            inputs = 2 if details["definition"] == "multiply_gap" else 4
            self.passes_output = len(inspect.signature(run).parameters) > inputs

    def call(self, x: Tensor) -> Any:
        """The entry point's answer."""
        arguments = [x, *self.held.values(), self.multiplier]
        if self.passes_output:
            channels = self.problem["c_out"] if self.held else x.shape[1]
            out = torch.empty((x.shape[0], channels, 1, 1), device=x.device, dtype=x.dtype)
            self.run(*arguments, out)
            return out
        found = self.run(*arguments)
        if isinstance(found, dict):
            return found["out"]
        return found[0] if isinstance(found, tuple | list) and len(found) == 1 else found


class Cuda(_Given):
    """One kernel of a .cu file whose header says how it is launched (harness/candidates/cuda_header.py)."""

    def __init__(self, text: str, header: dict[str, Any]) -> None:
        import cupy

        self.header = header
        self.kernel = cupy.RawKernel(text, header["entry"], options=tuple(header["options"]))
        self.stream = cupy.cuda.ExternalStream

    def call(self, x: Tensor) -> Any:
        """Launch the kernel on the current stream into fresh memory."""
        import cupy

        p = self.problem
        names: dict[str, Any] = {"N": x.shape[0], "C": x.shape[1], "H": x.shape[2], "W": x.shape[3]}
        pointers = {"x": x, "y": x, **self.held}
        channels = x.shape[1]
        if self.held:
            channels = p["c_out"]
            names |= {"CI": p["c_in"], "CO": channels, "HO": p["out"][0], "WO": p["out"][1]}
            for letter, name in (("K", "kernel"), ("S", "stride"), ("P", "padding"), ("D", "dilation")):
                names |= {f"{letter}H": p[name][0], f"{letter}W": p[name][1]}
        pointers["out"] = out = torch.empty((x.shape[0], channels, 1, 1), device=x.device, dtype=x.dtype)
        double = x.dtype == torch.float64
        values: list[Any] = []
        for argument in self.header["arguments"]:
            if argument in pointers:
                tensor = pointers[argument]
                values.append(tensor.data_ptr() if x.is_cuda else tensor)
            elif argument == "multiplier":
                values.append((cupy.float64 if double else cupy.float32)(self.multiplier))
            else:
                text, _, kind = argument.partition(":")
                values.append((cupy.int64 if kind == "long" else cupy.int32)(evaluate(text, names)))
        grid = tuple(evaluate(size, names) for size in self.header["grid"])
        stream = torch.cuda.current_stream().cuda_stream if x.is_cuda else 0
        with self.stream(stream):
            self.kernel(grid, (evaluate(self.header["block"], names),), tuple(values))
        return out


def evaluate(text: str, names: dict[str, Any]) -> int:
    """A whole number written with names, + - * // %, cdiv, min and max. ValueError for anything else."""
    functions = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max}
    tree = ast.parse(text, mode="eval")
    known = (
        ast.Expression,
        ast.BinOp,
        ast.Constant,
        ast.Name,
        ast.Call,
        ast.Load,
        ast.Add,
        ast.Sub,
        ast.Mult,
    )
    known += (ast.FloorDiv, ast.Mod)
    for node in ast.walk(tree):
        if not isinstance(node, known) or (isinstance(node, ast.Name) and node.id not in {*names, *functions}):
            raise ValueError(f"{text}: expected whole numbers, {', '.join(names)}, + - * // %, cdiv, min, max")
    return math.floor(eval(compile(tree, "<header>", "eval"), {"__builtins__": {}}, {**names, **functions}))


def here() -> Path:
    """The folder that the candidate was put into."""
    return Path(os.getcwd())
