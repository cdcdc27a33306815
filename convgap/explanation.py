"""What a call does: which backend serves it and why, and which kernels it launches and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convgap import selection
from convgap.torch_op.library import weighted_problem
from runtime import execute
from torch_impl import forward


@dataclass(frozen=True)
class Step:
    """One operator of a call, as it ran."""

    operator: str
    """Name without the namespace: "chain", "multiply_gap", "band_sums", ..."""
    device: str
    backend: str
    """The backend that served it, or "none" for tensors without data."""
    how: str
    """"compiled", "interpreter", "torch operations" or "shapes only"."""
    chosen: str
    """Why that backend: what was asked for, and what was skipped."""
    kernels: tuple[str, ...]
    """Kernels launched, in order; empty for plain torch."""
    path: str
    """Why these kernels, or in plain torch why this form; empty where there is no choice."""

    def __str__(self) -> str:
        kernels = f": {' + '.join(self.kernels)}" if self.kernels else ""
        path = f" ({self.path})" if self.path else ""
        served = f"{self.operator} -> {self.backend}, {self.how}, on {self.device}"
        return f"{served}{kernels}{path}; {self.chosen}"


@dataclass(frozen=True)
class Explanation:
    """The operators of one call, in order. str() of it is one line for each."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps)) or "no operator of convgap was called"


def explain(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Make the call function(*args, **kwargs), and say what each operator of convgap in it did.

    `function` is convgap.multiply_gap, convgap.conv_transpose2d_multiply_gap, a module or a whole
    model. Raises whatever the call raises.
    """
    recorder = _Recorder()
    with recorder:
        function(*args, **kwargs)
    return Explanation(tuple(recorder.steps))


def warmup(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Make the call function(*args, **kwargs), and its backward if any, so that the next compiles nothing.

    Probes the backends and compiles and loads every kernel that a call with these shapes (for any
    batch size), strides, alignments, dtypes and settings needs. Call it before capturing a CUDA graph.
    Leaves every .grad as it is. Waits for the device. Raises whatever the call raises.
    """
    recorder = _Recorder(_load_for_any_batch)
    with recorder:
        outputs = tree_leaves(function(*args, **kwargs))
        ends = [out for out in outputs if isinstance(out, Tensor) and out.requires_grad]
        if ends:
            leaves = _leaves(ends)
            torch.autograd.grad(ends, leaves, [torch.zeros_like(end) for end in ends], allow_unused=True)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Explanation(tuple(recorder.steps))


def _leaves(ends: list[Tensor]) -> list[Tensor]:
    """The tensors whose .grad a backward from `ends` would add to."""
    nodes, seen, leaves = [end.grad_fn for end in ends], set(), [end for end in ends if end.grad_fn is None]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.append(variable)
        nodes += [following for following, _ in node.next_functions]
    return leaves


class _Recorder(TorchDispatchMode):
    """Notes the operators of convgap that pass, and lets everything run as it would; `also` sees each step."""

    def __init__(self, also: Callable[[Step, tuple[Any, ...]], None] = lambda step, args: None) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.also = also

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "namespace", "") == "convgap":
            self.steps.append(_step(func._schema.name.partition("::")[2], args, out))
            self.also(self.steps[-1], args)
        return out


def _load_for_any_batch(step: Step, args: tuple[Any, ...]) -> None:
    """Compile and load what the same step would launch for other batch sizes."""
    if "contract" in step.kernels:
        x, weight, bias, multiplier, _, *size, geometry, _ = args
        shape = x.shape if step.operator == "chain" else (*x.shape[:2], *size[0])
        problem = weighted_problem(shape, weight, bias, geometry)
        kernels: Any = selection.kernel_set(step.backend)
        execute.load_contract(kernels, problem, weight.dtype, multiplier is not None, x.device)


def _step(operator: str, args: tuple[Any, ...], out: Tensor) -> Step:
    asked, device = args[-1], args[0].device
    if args[0].is_meta or isinstance(args[0], FakeTensor):
        why = "its tensors have no data, so only the result's shape was worked out"
        return Step(operator, str(device), "none", "shapes only", why, (), "")
    name = selection.choose(asked, device)
    kernels, path = _kernels(name, operator, args) if out.numel() else ((), "")
    how = selection.status_of(name, device).how
    return Step(operator, str(device), name, how, _reason(asked, name, device), kernels, path)


def _reason(asked: str, name: str, device: torch.device) -> str:
    if asked != "auto":
        return f"backend={asked!r} was asked for"
    if selection.DEFAULT != "auto":
        return f"CONVGAP_BACKEND is {selection.DEFAULT!r}"
    order = selection.ORDER.get(device.type)
    if order is None:
        only = "the kernels are only interpreted" if device.type == "cpu" else "no kernel runs"
        return f"'auto' is plain torch on {device.type}: there {only}"
    skipped = [selection.status_of(other, device) for other in order[: order.index(name)]]
    return "".join(f"{status.name} was skipped, {status.reason}; " for status in skipped) + "first that works"


def _kernels(name: str, operator: str, args: tuple[Any, ...]) -> tuple[tuple[str, ...], str]:
    x = args[0]
    if name == "torch":
        if operator != "chain":
            return (), ""
        form, why = forward.form(weighted_problem(x.shape, args[1], args[2], args[5]), x.device)
        return (), f"{form}: {why}"
    kernels: Any = selection.kernel_set(name)
    address = x.data_ptr() % 16
    if operator == "multiply_gap":
        call = kernels.prepare_tail(tuple(x.shape), x.stride(), x.dtype, address, args[1] is not None)
        if call.flat:
            return ("multiply_gap_flat",), "small planes that lie side by side are read as one run"
        if call.counters:
            return ("multiply_gap",), "planes are cut in parts, and the last block of a plane adds them"
        return ("multiply_gap",), "a block holds whole planes"
    if operator == "chain":
        _, weight, bias, multiplier, _, geometry, _ = args
        problem = weighted_problem(x.shape, weight, bias, geometry)
        call = kernels.prepare_chain(problem, x.stride(), x.dtype, address, multiplier is not None)
        if call.band_sums_contract is None:
            return ("band_sums", "contract"), "the weight is too large beside the planes for one launch"
        return ("band_sums_contract",), "the weight is small beside the planes: one launch"
    return ({"plane_sums": "band_sums"}.get(operator, operator),), ""
