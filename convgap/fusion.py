"""Rewrite a model: ConvTranspose2d -> scale -> global average pool becomes one operator call."""

from __future__ import annotations

import copy
import inspect
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convgap.arguments import STRATEGIES
from convgap.pattern import Tracer, calls
from convgap.selection import check_name
from convgap.waiting import exchange, hold
from runtime.private import tree_leaves


@dataclass(frozen=True)
class Replaced:
    """A pattern that is one operator now."""

    name: str
    """Path of the ConvTranspose2d in the model."""
    steps: tuple[str, ...]
    """What was there: "conv_transpose2d", "scale", "mean", "adaptive_avg_pool2d"."""


@dataclass(frozen=True)
class Left:
    """A ConvTranspose2d that stays, or a module that could not be read."""

    name: str
    why: str


@dataclass(frozen=True)
class Fusion:
    """A rewritten model, and what was done to it. str() of it is one line for each."""

    model: nn.Module
    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [f"replaced {found.name}: {' -> '.join(found.steps)}" for found in self.replaced]
        lines += [f"left {found.name}: {found.why}" for found in self.left]
        return "\n".join(lines) or "no ConvTranspose2d in the model"


def fuse(model: nn.Module, *, strategy: str = "collapsed", backend: str = "auto") -> Fusion:
    """Replace every ConvTranspose2d -> scale -> mean (or AdaptiveAvgPool2d(1)) in `model`.

    The scale (products with and quotients by numbers, or one product with a parameter or buffer that broadcasts over
    rows and columns) comes before the pool, or is missing. The new model is a copy of `model`: its modules are new, run
    the forwards that they ran, and share the old ones' parameters and buffers; only the ConvTranspose2d in the pattern
    are exchanged, for layers of the same parameters that wait for the pool. Where such a forward turns out to do
    something else, that is computed, step by step. `model` itself is not changed, and is returned if nothing in it can
    be replaced.

    strategy, backend   those of convgap.conv_transpose2d_multiply_gap
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_name(backend)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {STRATEGIES}, got {strategy!r}")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.ConvTranspose2d)]
    try:
        fused, scratch = _copy(model), _copy(model, to_trace=True)
    except _Uncopied as reason:
        return Fusion(model, (), tuple(Left(name or "model", str(reason)) for name in names))
    reader = _Reader()
    with _as_if_nothing_ran():
        reader.read(scratch, "")
    told = [scratch.get_submodule(name) for name in reader.layers]
    for name in names:
        if not any(scratch.get_submodule(name) is layer for layer in told):
            reader.left.append(Left(name or "model", "nothing follows it in a forward that could be read"))
    if reader.replaced:
        how = {"strategy": strategy, "backend": backend}
        for name, wanted in reader.layers.items():
            if wanted:
                exchange(fused.get_submodule(name), how)
        for name, functions in reader.holders.items():
            hold(fused.get_submodule(name), how if functions else None)
    return Fusion(fused if reader.replaced else model, tuple(reader.replaced), tuple(reader.left))


@dataclass
class _Reader:
    """Reads a model from the outside in: what cannot be traced is read child by child."""

    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    layers: dict[str, bool] = field(default_factory=dict)
    """Paths of the layers that something was said of, and whether they are to be exchanged."""
    holders: dict[str, bool] = field(default_factory=dict)
    """Paths of the modules whose forward has a pattern in it, and whether it calls the convolution as a function."""

    def read(self, module: nn.Module, path: str) -> None:
        layers = [name for name, inner in module.named_modules() if isinstance(inner, nn.ConvTranspose2d)]
        if isinstance(module, nn.ConvTranspose2d):
            return
        if "_orig_mod" in dict(module.named_children()):
            for name in layers:
                self.leave(_join(path, name), "it is in a module that is compiled already: fuse it before that")
            return
        tracer = Tracer()
        try:
            graph = tracer.trace(module, _defaults(module))
        except Exception as error:  # whatever the forward did with what stands for a tensor
            reason = str(error).strip().splitlines() or [type(error).__name__]
            if layers:
                self.left.append(Left(path or "model", f"its forward cannot be traced: {reason[0]}"))
            for name, child in module.named_children():
                self.read(child, _join(path, name))
            return
        every = calls(module, graph)
        # What waits waits in each of its calls: a layer, or the function in all of a forward.
        unsafe = {found.layer and found.name for found in every if found.written}
        for found in every:
            name = _join(path, found.name)
            if not found.steps:
                self.leave(name, found.why, found.layer)
                continue
            if (found.layer and found.name) in unsafe:
                why = "what another call of it reads may be written to before its output is used"
                self.leave(name, why, found.layer)
                continue
            self.replaced.append(Replaced(name, found.steps))
            self.holders[path] = self.holders.get(path, False) or not found.layer
            if found.layer:
                self.layers[name] = True
        for target in dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"):
            self.read(module.get_submodule(target), _join(path, target))

    def leave(self, name: str, why: str, layer: bool = True) -> None:
        self.left.append(Left(name, why))
        if layer:
            self.layers.setdefault(name, False)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Arguments of a forward as they are where a caller does not give them: what is asked of them has an answer."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, (NoneType, bool, int, float, str))}


class _Uncopied(Exception):
    """The model cannot be copied; the message says why."""


def _copy(model: nn.Module, *, to_trace: bool = False) -> nn.Module:
    """A model of new modules that share the old ones' parameters and buffers; and other tensors, but not to trace it:
    a trace leaves parameters and buffers alone, and runs what is done to others."""
    known: dict[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    if any(map(is_lazy, known.values())):
        raise _Uncopied("the model has parameters that its first call makes: call it once before")
    for leaf in (leaf for module in model.modules() for leaf in tree_leaves(vars(module))):
        if isinstance(leaf, Tensor) and id(leaf) not in known:
            known[id(leaf)] = leaf.detach().clone() if to_trace else leaf
    try:
        twin = copy.deepcopy(model, known)
    except Exception as error:  # an attribute that cannot be copied: a lock, a file, ...
        raise _Uncopied(f"the model cannot be copied: {error}") from None
    for kind in ("named_parameters", "named_buffers"):
        shared = zip(
            getattr(model, kind)(remove_duplicate=False),
            getattr(twin, kind)(remove_duplicate=False),
            strict=True,
        )
        for (name, ours), (_, theirs) in shared:
            if ours is not theirs:
                raise _Uncopied(f"a copy of the model would not share {name}")
    return twin


@contextmanager
def _as_if_nothing_ran() -> Iterator[None]:
    """A trace runs Python: what it draws at random is given back."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    drawn, numpy = random.getstate(), sys.modules.get("numpy")
    drawn_by_numpy = numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices):
        yield
    random.setstate(drawn)
    if numpy:
        numpy.random.set_state(drawn_by_numpy)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
