"""What a call does: which backend serves it and why, and which kernels it launches and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convgap import fast, selection
from convgap.torch_op.kernels import planes_problem, problem_of, weighted_problem
from convgap.torch_op.schemas import ONE_BAND
from runtime import call, plan, private, refused
from runtime.prepared import Launch, Prepared, Unlaunchable
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
    plan: str = ""
    """The plan whose launch constants the kernels have; empty where they have their own."""
    fixed: tuple[str, ...] = ()
    """Those of the kernels whose code is for just these sizes (`specialize`). The others' is for any sizes."""

    def __str__(self) -> str:
        kernels = f": {' + '.join(self.kernels)}" if self.kernels else ""
        path = f" ({self.path})" if self.path else ""
        if self.kernels:
            path += f", code for {'just these' if self.fixed == self.kernels else 'any'} sizes"
            if self.fixed and self.fixed != self.kernels:
                path += f" but of {' + '.join(self.fixed)}, which is for just these"
        plan = f"; plan {self.plan}" if self.plan else ""
        served = f"{self.operator} -> {self.backend}, {self.how}, on {self.device}"
        return f"{served}{kernels}{path}; {self.chosen}{plan}"


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
    _check_callable(function)
    recorder = _Recorder()
    with recorder:
        function(*args, **kwargs)
    return Explanation(tuple(recorder.steps))


def warmup(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Make the call function(*args, **kwargs), and its backward if any, so that the next compiles nothing.

    Probes the backends, and compiles and loads every kernel that a call of this kind needs. Call it before capturing a
    CUDA graph. Leaves every .grad as it is. Waits for the device. Raises whatever the call raises.
    """
    return Explanation(tuple(warmed(function, args, kwargs).steps))


def specialize(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """As `warmup`, and every kernel of the call is compiled once more for just its sizes, which later calls of the same
    sizes, strides and dtypes launch.

    The same bits in fewer instructions: worth it for small tensors in a CUDA graph that is captured afterwards
    (README.md has the times of both). Each new combination of sizes takes a compiler's second and memory for its
    code; calls of other sizes stay as they are. Raises whatever the call raises.
    """
    for launch, device in launches(function, *args, **kwargs):
        launch.fix(device)
    fast.forget()
    return Explanation(tuple(warmed(function, args, kwargs).steps))


def _check_callable(function: Any) -> None:
    if not callable(function):
        raise TypeError(f"function: expected a function or a module, got {type(function).__name__}")


def launches(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[tuple[Launch, torch.device]]:
    """Make the call, and its backward if any. Returns the launches it made, in order, each with its device."""
    return warmed(function, args, kwargs).launches


Note = Callable[[str, str, tuple[Any, ...], Tensor], None]
"""note(backend, operator, arguments, output), of each operator of a call as it has run."""


def warmed(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], note: Note | None = None
) -> _Recorder:
    """What a call, and its backward if any, did while nothing of it was left to be compiled."""
    _check_callable(function)
    fast.wait()
    recorder = _Recorder(note)
    with recorder:
        outputs = private.tree_leaves(function(*args, **kwargs))
        ends = [out for out in outputs if isinstance(out, Tensor) and out.requires_grad]
        if ends:
            leaves = _leaves(ends)
            torch.autograd.grad(ends, leaves, [torch.zeros_like(end) for end in ends], allow_unused=True)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return recorder


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


class _Recorder(private.DispatchMode):
    """Notes the operators of convgap that pass, and lets everything run as it would."""

    def __init__(self, note: Note | None = None) -> None:
        super().__init__()
        self.note = note
        self.steps: list[Step] = []
        self.launches: list[tuple[Launch, torch.device]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "namespace", "") == "convgap":
            operator = func._schema.name.partition("::")[2]
            step, made = _step(operator, args, out)
            self.steps.append(step)
            if self.note is not None:
                self.note(step.backend, operator, args, out)
            self.launches += [(each.launch, out.device) for each in made]
        return out


def _step(operator: str, args: tuple[Any, ...], out: Tensor) -> tuple[Step, list[Prepared]]:
    """What an operator did, and its launches."""
    asked, device = args[-1], args[0].device
    if args[0].is_meta or isinstance(args[0], private.FakeTensor):
        why = "its tensors have no data, so only the result's shape was worked out"
        return Step(operator, str(device), "none", "shapes only", why, (), ""), []
    name, left, made = _served(asked, device, operator, args, out)
    kernels = tuple(each.launch.kernel for each in made)
    fixed = tuple(each.launch.kernel for each in made if each.launch.fixed)
    why = "; ".join(dict.fromkeys(each.why for each in made))
    if name == "torch" and operator == "chain" and out.numel():
        _, weight, bias, _, _, *geometry, _ = args
        why = ": ".join(forward.form(weighted_problem(args[0].shape, weight, bias, *geometry), device))
    how = selection.status_of(name, device).how
    used = plan.active() if kernels else None
    named = "" if used is None else str(used)
    reason = _reason(asked, name, device, left)
    return Step(operator, str(device), name, how, reason, kernels, why, named, fixed), made


def _served(
    asked: str, device: torch.device, operator: str, args: tuple[Any, ...], out: Tensor
) -> tuple[str, dict[str, str], list[Prepared]]:
    """(the backend that served a call, those that left it to the next with their reasons, its launches)."""
    left: dict[str, str] = {}

    def run(kernels: Any) -> tuple[str, list[Prepared]]:
        if kernels is None:
            return "torch", []
        name = kernels.__name__.partition("_")[0]
        try:
            made = prepared(kernels, operator, args, out) if out.numel() else []
            for each in made:
                refused.check(each.launch, device)
        except Unlaunchable as error:
            left[name] = str(error)
            raise
        return name, made

    name, made = selection.serve(asked, device, operator, run)
    return name, left, made


def _reason(asked: str, name: str, device: torch.device, left: dict[str, str]) -> str:
    if asked != "auto":
        return f"backend={asked!r} was asked for"
    if selection.DEFAULT != "auto":
        return f"CONVGAP_BACKEND is {selection.DEFAULT!r}"
    order = selection.ORDER.get(device.type)
    if order is None:
        only = "the kernels are only interpreted" if device.type == "cpu" else "no kernel runs"
        return f"'auto' is plain torch on {device.type}: there {only}"
    said = ""
    for other in order[: order.index(name)]:
        if other in left:
            said += f"{other} left this call to the next, {left[other]}; "
        else:
            said += f"{other} was skipped, {selection.status_of(other, device).reason}; "
    return said + "first that works"


def prepared(kernels: call.KernelSet, operator: str, args: tuple[Any, ...], out: Tensor) -> list[Prepared]:
    """What the operator launches, in order, of a kernel set. Tensors may be without data."""
    first = args[0]
    where = first.stride(), first.dtype, first.data_ptr() % 16
    if operator == "multiply_gap":
        return [kernels.prepare_multiply_gap(call.tail_of(*first.shape), *where, args[1] is not None)]
    if operator == "chain":
        _, weight, bias, multiplier, _, *geometry, _ = args
        problem = weighted_problem(first.shape, weight, bias, *geometry)
        return call.prepare_chain(kernels, problem, *where, multiplier is not None)
    if operator in ("band_sums", "plane_sums"):
        n, c, *size = first.shape
        kernel, *bands = args[1:-1] if operator == "band_sums" else ((1, 1), *ONE_BAND)
        return [kernels.prepare_band_sums(planes_problem(n, c, size, kernel, *bands), *where)]
    if operator == "contract":
        _, weight, bias, multiplier, _, size, *geometry, _ = args
        problem = weighted_problem((*first.shape[:2], *size), weight, bias, *geometry)
        return [kernels.prepare_contract(problem, weight.dtype, multiplier is not None)]
    if operator == "expand":
        _, weight, _, size, *geometry, _ = args
        problem = weighted_problem((first.shape[0], weight.shape[0], *size), weight, None, *geometry)
        return [kernels.prepare_expand(problem, weight.dtype)]
    if operator == "weight_grad":
        _, sums, _, size, kernel, *bands, groups, dtype, _ = args
        shape = *sums.shape[:2], *size
        problem = problem_of(shape, tuple(kernel), first.shape[1], False, *map(tuple, bands), groups)
        return [kernels.prepare_weight_grad(problem, dtype)]
    _, size, kernel, *bands, dtype, _, _ = args
    problem = planes_problem(first.shape[0], first.shape[1], size, kernel, *bands)
    return [kernels.prepare_band_fill(problem, out.stride(), dtype)]
