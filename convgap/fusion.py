"""Rewrite a model: ConvTranspose2d -> scale -> global average pool becomes one operator call."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.graph_module import _copy_attr

from convgap.arguments import STRATEGIES
from convgap.functions import conv_transpose2d_multiply_gap
from convgap.selection import check_name

_MULTIPLY = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")
_DIVIDE = (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide")
_MEAN = (torch.mean, "mean")
_PLANE = ({2, 3}, {-1, -2}, {2, -1}, {-2, 3})
"""Ways to name the last two of four dimensions."""


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

    The scale (products with and quotients by numbers, or one product with a parameter or buffer that
    broadcasts over rows and columns) may come before or after the pool, or be missing. `model` itself is
    not changed; the new model shares its parameters and has the same state_dict keys. A module that
    torch.fx cannot trace, or that has hooks, keeps its forward, and its children are rewritten one by one.

    strategy, backend   those of convgap.conv_transpose2d_multiply_gap
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_name(backend)
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {STRATEGIES}, got {strategy!r}")
    rewriter = _Rewriter({"strategy": strategy, "backend": backend})
    rewritten = rewriter.rewrite(model, "")
    return Fusion(rewritten, tuple(rewriter.replaced), tuple(rewriter.left))


class _Tracer(fx.Tracer):
    """Looks inside every module but torch's own and those whose calls somebody listens to."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _hooked(m)


class _Rewriter:
    def __init__(self, options: dict[str, str]) -> None:
        self.options = options
        self.replaced: list[Replaced] = []
        self.left: list[Left] = []

    def rewrite(self, module: nn.Module, path: str) -> nn.Module:
        if isinstance(module, nn.ConvTranspose2d):
            self.left.append(Left(path or "model", "nothing follows it in a forward that could be read"))
            return module
        if _hooked(module):
            return self.rewrite_children(module, path)
        try:
            graph = _Tracer().trace(module)
        except Exception as error:  # whatever the forward did with a proxy
            reason = str(error).strip().splitlines() or [type(error).__name__]
            if _holds_convolution(module):
                self.left.append(Left(path or "model", f"its forward cannot be traced: {reason[0]}"))
            return self.rewrite_children(module, path)
        for node in graph.nodes:
            # Annotations that "from __future__ import annotations" left as text cannot be pickled.
            node.type = None if isinstance(node.type, str) else node.type
        traced = fx.GraphModule(module, graph, type(module).__name__)
        changed = False
        for node in list(graph.nodes):
            convolution = _convolution(traced, node)
            if convolution is not None:
                changed |= self.replace(traced, node, convolution, path)
            elif node.op == "call_module":
                changed |= self.rewrite_leaf(traced, str(node.target), path)
        if not changed:
            return module
        for name, _ in (*module.named_parameters(), *module.named_buffers()):
            # What no call reads is in the state_dict all the same.
            _copy_attr(module, traced, name)
        graph.eliminate_dead_code()
        graph.lint()
        traced.recompile()
        traced.training = module.training
        return traced

    def rewrite_leaf(self, traced: fx.GraphModule, target: str, path: str) -> bool:
        """Rewrite inside a module that the tracer did not look into."""
        before = traced.get_submodule(target)
        if not _holds_convolution(before):
            return False
        after = self.rewrite(before, _join(path, target))
        if after is not before:
            parent, _, name = target.rpartition(".")
            traced.get_submodule(parent).add_module(name, after)
        return after is not before

    def rewrite_children(self, module: nn.Module, path: str) -> nn.Module:
        """A copy of `module` with other children and the same parameters."""
        children = {name: self.rewrite(child, _join(path, name)) for name, child in module.named_children()}
        if all(children[name] is child for name, child in module.named_children()):
            return module
        # __new__ and a copied __dict__: no __init__ to guess arguments for, and no parameter is copied.
        copy = module.__new__(type(module))
        copy.__dict__ = dict(module.__dict__)
        copy._modules = {**module._modules, **children}
        return copy

    def replace(self, traced: fx.GraphModule, node: fx.Node, convolution: _Convolution, path: str) -> bool:
        name = _join(path, convolution.name)
        try:
            steps, last, number, tensor, keepdim = _follow(traced, node, convolution)
        except _Unlike as reason:
            self.left.append(Left(name, str(reason)))
            return False
        with traced.graph.inserting_after(last):
            out = traced.graph.call_function(conv_transpose2d_multiply_gap)
            result = out
            if not keepdim:
                with traced.graph.inserting_after(out):
                    result = traced.graph.call_method("flatten", (out, -3))
        with traced.graph.inserting_before(out):
            out.args = convolution.tensors(traced.graph)
        multiplier: Any = number if tensor is None else tensor
        out.kwargs = {"multiplier": multiplier, **convolution.options, **self.options}
        if tensor is not None and number != 1.0:
            with traced.graph.inserting_before(out):
                out.update_kwarg("multiplier", traced.graph.call_function(operator.mul, (tensor, number)))
        last.replace_all_uses_with(result)
        self.replaced.append(Replaced(name, ("conv_transpose2d", *steps)))
        return True


class _Unlike(Exception):
    """The pattern is not there; the message says what is there instead."""


@dataclass(frozen=True)
class _Convolution:
    """A transposed convolution in a graph."""

    name: str
    tensors: Callable[[fx.Graph], tuple[Any, ...]]
    """Nodes of x, weight and bias, made in the graph where they are not there yet."""
    options: dict[str, Any]
    obstacle: str


def _convolution(traced: fx.GraphModule, node: fx.Node) -> _Convolution | None:
    if node.op == "call_function" and node.target in (F.conv_transpose2d, torch.conv_transpose2d):
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        operands = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        return _Convolution(node.name, lambda graph: operands, given, "")
    if node.op != "call_module":
        return None
    module = traced.get_submodule(str(node.target))
    if not isinstance(module, nn.ConvTranspose2d):
        return None
    x = node.args[0] if node.args else node.kwargs["input"]
    obstacle = ""
    if type(module) is not nn.ConvTranspose2d:
        obstacle = f"it is a {type(module).__name__}, which may compute something else"
    elif _hooked(module):
        obstacle = "it has hooks, which would not be called any more"
    elif len(node.args) + len(node.kwargs) > 1:
        obstacle = "it is called with output_size"
    weight, bias = f"{node.target}.weight", f"{node.target}.bias" if module.bias is not None else None

    def tensors(graph: fx.Graph) -> tuple[Any, ...]:
        return x, graph.get_attr(weight), None if bias is None else graph.get_attr(bias)

    options = {
        name: getattr(module, name) for name in ("stride", "padding", "output_padding", "groups", "dilation")
    }
    return _Convolution(str(node.target), tensors, options, obstacle)


def _holds_convolution(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.ConvTranspose2d) for inner in module.modules())


def _hooked(module: nn.Module) -> bool:
    forward, backward = module._forward_hooks, module._backward_hooks
    return bool(forward or backward or module._forward_pre_hooks or module._backward_pre_hooks)


def _follow(
    traced: fx.GraphModule, node: fx.Node, convolution: _Convolution
) -> tuple[list[str], fx.Node, float, fx.Node | None, bool]:
    """Steps behind the convolution, the last node of them, the scale (number, tensor), and keepdim."""
    if convolution.obstacle:
        raise _Unlike(convolution.obstacle)
    steps: list[str] = []
    number, tensor, last, pooled, keepdim = 1.0, None, node, False, True
    while True:
        following = list(last.users)
        if len(following) != 1:
            if pooled:
                break
            raise _Unlike(f"its result is used {len(following)} times before any pool")
        user = following[0]
        scale = _scale(traced, user, last, keepdim)
        pool = _pool(traced, user) if keepdim else None
        if scale is not None:
            by, with_tensor = scale
            if with_tensor is not None and tensor is not None:
                if pooled:
                    break
                raise _Unlike("it is scaled by more than one tensor")
            number, tensor = number * by, with_tensor or tensor
            steps.append("scale")
        elif pool is not None:
            step, keepdim = pool
            pooled = True
            steps.append(step)
        elif pooled:
            break
        else:
            raise _Unlike(f"{_describe(traced, user)} follows, not a scale or a pool to 1 x 1")
        last = user
    return steps, last, number, tensor, keepdim


def _scale(
    traced: fx.GraphModule, node: fx.Node, of: fx.Node, keepdim: bool
) -> tuple[float, fx.Node | None] | None:
    """(number, tensor) that `node` multiplies `of` by, or None if it does something else."""
    if node.op not in ("call_function", "call_method") or node.kwargs or len(node.args) != 2:
        return None
    left: Any = node.args[0]
    right: Any = node.args[1]
    if node.target in _DIVIDE:
        return (1 / right, None) if left is of and _is_number(right) and right else None
    if node.target not in _MULTIPLY or left is right:
        return None
    by = right if left is of else left
    if _is_number(by):
        return float(by), None
    if isinstance(by, fx.Node) and by.op == "get_attr" and keepdim:
        shape = _attribute(traced, str(by.target)).shape
        if len(shape) <= 4 and all(size == 1 for size in shape[-2:]):
            return 1.0, by
        raise _Unlike(f"it is multiplied by {by.target} {tuple(shape)}, which has several rows or columns")
    if isinstance(by, fx.Node) and keepdim:
        raise _Unlike(f"it is multiplied by {by.name}, whose shape is known only when the model runs")
    return None


def _pool(traced: fx.GraphModule, node: fx.Node) -> tuple[str, bool] | None:
    """(name, whether dimensions stay) of a global average pool, or None if `node` is something else."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)) and not _hooked(module):
            return "adaptive_avg_pool2d", True
        return None
    if node.op == "call_function" and node.target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        return ("adaptive_avg_pool2d", True) if size in (1, (1, 1), [1, 1]) else None
    if node.op not in ("call_function", "call_method") or node.target not in _MEAN:
        return None
    given = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
    dims = given.get("dim")
    if set(given) - {"input", "dim", "keepdim"} or not isinstance(dims, (tuple, list)):
        return None
    if len(dims) != 2 or set(dims) not in _PLANE:
        return None
    return "mean", bool(given.get("keepdim", False))


def _describe(traced: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "output":
        return "the end of the model"
    if node.op == "call_module":
        return repr(traced.get_submodule(str(node.target)))
    arguments = ", ".join(str(argument) for argument in node.args[1:])
    return f"{getattr(node.target, '__name__', node.target)}({arguments})"


def _attribute(module: nn.Module, path: str) -> Tensor:
    *parents, name = path.split(".")
    return getattr(module.get_submodule(".".join(parents)), name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
