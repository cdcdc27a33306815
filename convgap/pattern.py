"""What a forward does with the transposed convolutions that it calls, read off a torch.fx trace.

A trace sees one way through a forward, and nothing of what Python alone decides. So it is only asked where the pattern
is, on a copy of the model that is thrown away; nothing that runs is made from it.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from convgap.layer import obstacle
from runtime.private import hooked

_MULTIPLY = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")
_DIVIDE = (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide")
_MEAN = (torch.mean, "mean")
_PLANE = ({2, 3}, {-1, -2}, {2, -1}, {-2, 3})
"""Ways to name the last two of four dimensions."""
_WRITES = (
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """One call of a transposed convolution in a trace."""

    name: str
    """Path of the layer in the traced module; of a call of the function, its name in the trace."""
    layer: bool
    steps: tuple[str, ...]
    """What can be one operator: "conv_transpose2d", "scale", "mean", "adaptive_avg_pool2d"; empty if nothing can."""
    why: str
    """Why nothing can."""
    written: bool = False
    """Whether nothing can because something is written to before it is used."""


class Tracer(fx.Tracer):
    """Looks inside every module but torch's own and those whose calls somebody listens to."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or hooked(m)


class _Unlike(Exception):
    """The pattern is not there; the message says what is there instead."""


class _Written(_Unlike):
    """Its input may change before the pool."""


def calls(root: nn.Module, graph: fx.Graph) -> list[Found]:
    """Every call of a transposed convolution in the trace of `root`, in order."""
    found = []
    for node in graph.nodes:
        layer = node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), nn.ConvTranspose2d)
        function = node.op == "call_function" and node.target is F.conv_transpose2d
        if not layer and not function:
            continue
        name = str(node.target) if layer else node.name
        try:
            found.append(Found(name, layer, tuple(_follow(root, node, layer)), ""))
        except _Unlike as reason:
            found.append(Found(name, layer, (), str(reason), isinstance(reason, _Written)))
    return found


def _follow(root: nn.Module, node: fx.Node, layer: bool) -> list[str]:
    """The steps from the convolution to the pool."""
    channels = None
    if layer:
        module: Any = root.get_submodule(str(node.target))
        if why := obstacle(module):
            raise _Unlike(why)
        if type(module) is not nn.ConvTranspose2d:
            raise _Unlike(f"it is a {type(module).__name__}, which may compute something else")
        if len(node.args) + len(node.kwargs) > 1:
            raise _Unlike("it is called with output_size")
        channels, dtype = module.out_channels, module.weight.dtype
    else:
        dtype = None
    steps, last, scaled = ["conv_transpose2d"], node, False
    while True:
        following = list(last.users)
        if len(following) != 1:
            raise _Unlike(f"its result is used {len(following)} times before any pool")
        user = following[0]
        if writer := _writer_between(root, last, user):
            raise _Written(f"{_describe(root, writer)} may write to its input before its output is used")
        pool = _pool(root, user)
        if pool:
            return [*steps, pool]
        scale = _scale(root, user, last, channels, dtype)
        if not scale:
            raise _Unlike(f"{_describe(root, user)} follows, not a scale or a pool to 1 x 1")
        if scale == "tensor" and scaled:
            raise _Unlike("it is scaled by more than one tensor")
        scaled |= scale == "tensor"
        steps.append("scale")
        last = user


def _writer_between(root: nn.Module, first: fx.Node, last: fx.Node) -> fx.Node | None:
    """A node between two others that may change a tensor in place."""
    node = first.next
    while node is not last:
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            known = type(module).__module__.startswith("torch.nn.modules") and not hooked(module)
            if not known or getattr(module, "inplace", False):
                return node
        elif node.op in ("call_method", "call_function"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
            flagged = any(value is True for value in (*node.args, *node.kwargs.values())) or "out" in node.kwargs
            if node.target in _WRITES or flagged or (name.endswith("_") and not name.endswith("__")):
                return node
        node = node.next
    return None


def _scale(root: nn.Module, node: fx.Node, of: fx.Node, channels: int | None, dtype: torch.dtype | None) -> str:
    """ "number" or "tensor", whichever `node` scales `of` by; "" if it does something else."""
    if node.op not in ("call_function", "call_method") or node.kwargs or len(node.args) != 2:
        return ""
    left, right = node.args
    if node.target in _DIVIDE:
        return "number" if left is of and _is_number(right) and right else ""
    if node.target not in _MULTIPLY or left is right:
        return ""
    by = right if left is of else left
    if _is_number(by):
        return "number"
    if not isinstance(by, fx.Node):
        return ""
    if by.op != "get_attr":
        raise _Unlike(f"it is multiplied by {by.name}, whose shape is known only when the model runs")
    scale = _attribute(root, str(by.target))
    if not isinstance(scale, Tensor):
        return ""
    says = f"it is multiplied by {by.target} {tuple(scale.shape)}"
    if len(scale.shape) > 4 or any(size != 1 for size in scale.shape[-2:]):
        raise _Unlike(f"{says}, which has several rows or columns")
    if len(scale.shape) == 4 and scale.shape[0] != 1:
        raise _Unlike(f"{says}, which has a batch of its own")
    if len(scale.shape) >= 3 and channels is not None and scale.shape[-3] not in (1, channels):
        raise _Unlike(f"{says}, which makes more channels of its {channels}")
    if scale.is_complex() or scale.layout != torch.strided:
        raise _Unlike(f"{says} of {scale.dtype} and layout {scale.layout}")
    if dtype is not None and torch.result_type(torch.empty((1,) * 4, dtype=dtype), scale) != dtype:
        raise _Unlike(f"it is multiplied by {by.target}, which makes {scale.dtype} of its {dtype}")
    return "tensor"


def _pool(root: nn.Module, node: fx.Node) -> str:
    """The name of a global average pool; "" if `node` is something else."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        one = type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1), [1, 1])
        return "adaptive_avg_pool2d" if one and not hooked(module) else ""
    if node.op == "call_function" and node.target is F.adaptive_avg_pool2d:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        return "adaptive_avg_pool2d" if size in (1, (1, 1), [1, 1]) else ""
    if node.op not in ("call_function", "call_method") or node.target not in _MEAN:
        return ""
    given = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
    dims = given.get("dim")
    if set(given) - {"input", "dim", "keepdim"} or not isinstance(dims, (tuple, list)):
        return ""
    return "mean" if len(dims) == 2 and set(dims) in _PLANE else ""


def _describe(root: nn.Module, node: fx.Node) -> str:
    if node.op == "output":
        return "the end of the model"
    if node.op == "call_module":
        return repr(root.get_submodule(str(node.target)))
    arguments = ", ".join(str(argument) for argument in node.args[1:])
    return f"{getattr(node.target, '__name__', node.target)}({arguments})"


def _attribute(module: nn.Module, path: str) -> Any:
    *parents, name = path.split(".")
    return getattr(module.get_submodule(".".join(parents)), name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
