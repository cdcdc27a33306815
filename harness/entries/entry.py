"""The entries of the bench: how each is built for a case, what it is, and what its arithmetic may cost.

An entry either gives a `Built`, or raises `Unavailable` with the reason why it has nothing to do with the case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import convgap
import convgap.selection
from convgap import explanation
from harness.cases import operators
from harness.cases.case import Case
from harness.cases.inputs import Inputs
from harness.entries.sized import fixed
from harness.numerics.depth import depth as depth_of
from reference import eager
from reference.problem import Chain, Tail

# Relative error of one TF32 operand: 10 stored bits, and tensor cores may truncate what they are given.
TF32_OPERAND = 2.0**-10


class Unavailable(Exception):
    """The entry cannot run this case here; the message says why."""


@dataclass(frozen=True)
class Built:
    """One entry, ready to be called on one case.

    call: computes the answer, an output or a tuple of gradients. what: what actually runs.
    depth, stores: for harness.numerics.budget.budget.
    operand_error: relative error each operand of the convolution may suffer before it is multiplied.
    context: entered around every call, capture and measurement (switches that the call depends on).
    """

    call: Callable[[], Any]
    what: str
    depth: int
    stores: int = 1
    operand_error: float = 0.0
    context: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)


@dataclass(frozen=True)
class Entry:
    """What the bench compares: `build` makes it for a case.

    about: what it is, in a few words.
    product: one of the project's own backends, whose failure is a defect.
    graph: whether it may be captured in a CUDA graph; if not, `why_not` is shown with its times.
    cpu: whether it belongs to a run without a GPU.
    """

    name: str
    about: str
    build: Callable[[Case, Inputs], Built]
    product: bool = False
    cpu: bool = False
    graph: bool = True
    why_not: str = ""


@contextmanager
def tf32_convolution() -> Iterator[None]:
    """Float32 convolutions in TF32, torch's default, whatever it was set to."""
    switch = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
    before = switch.fp32_precision
    switch.fp32_precision = "tf32"
    try:
        yield
    finally:
        switch.fp32_precision = before


def _uses_tf32(case: Case, inputs: Inputs) -> bool:
    return case.op == "chain" and case.dtype == "float32" and inputs.x.is_cuda


def require_tf32(case: Case, inputs: Inputs) -> None:
    """Unavailable unless torch's default precision for the case's convolution is TF32."""
    if not _uses_tf32(case, inputs):
        raise Unavailable("no float32 convolution on a GPU, so no TF32: the entry eager-ieee says it all")


def _framework(case: Case, inputs: Inputs, call: Callable[[], Tensor], what: str, depth: int, stores: int) -> Built:
    """Entry on top of torch's own convolution, which runs in torch's default precision."""
    if not _uses_tf32(case, inputs):
        return Built(call, what, depth, stores)
    return Built(call, f"{what}; convolution in TF32", depth, stores, TF32_OPERAND, tf32_convolution)


def _convolution(problem: Chain) -> tuple[int, int]:
    """Depth and roundings of torch's convolution alone."""
    return problem.c_in // problem.groups * eager.taps(problem), eager.stores(problem) - 2


def _pooled(case: Case) -> Tail:
    """The tail's problem: the case itself, or what follows its convolution."""
    return Tail(*case.problem.conv_shape) if isinstance(case.problem, Chain) else case.problem


def _product(backend: str, *, sized: bool = False) -> Callable[[Case, Inputs], Built]:
    """A backend as it is called; with `sized`, as it is after convgap.specialize."""

    def build(case: Case, inputs: Inputs) -> Built:
        how = require_usable(backend, inputs)
        x = inputs.x
        depth = depth_of(backend, case.problem, x.dtype, x.stride(), x.data_ptr())
        what = f"{how}, bands" if case.op == "chain" else how
        call = lambda: inputs.call(convgap, backend=backend)  # noqa: E731
        if not sized:
            return Built(call, what, depth)
        launches = explanation.launches(call)
        return Built(call, f"{what}, for just these sizes", depth, context=lambda: fixed(launches))

    return build


def _fused_tail(backend: str) -> Callable[[Case, Inputs], Built]:
    def build(case: Case, inputs: Inputs) -> Built:
        if not isinstance(case.problem, Chain):
            raise Unavailable(f"the case is the tail alone: the entry {backend} runs it")
        how = require_usable(backend, inputs)
        depth, stores = _convolution(case.problem)
        depth += depth_of(backend, _pooled(case), inputs.x.dtype)
        call = lambda: inputs.call(convgap, backend=backend, strategy="tail")  # noqa: E731
        return _framework(case, inputs, call, f"torch's convolution, then the fused tail ({how})", depth, stores + 1)

    return build


def require_usable(backend: str, inputs: Inputs) -> str:
    """How the backend runs on the inputs' device; Unavailable if it does not."""
    status = convgap.selection.status_of(backend, inputs.x.device)
    if not status.usable:
        raise Unavailable(status.reason)
    return status.how


def _eager_ieee(case: Case, inputs: Inputs) -> Built:
    what = "torch eager" + ("; convolution in IEEE float32" if _uses_tf32(case, inputs) else "")
    depth, stores = eager.depth(case.problem), eager.stores(case.problem)
    return Built(lambda: inputs.call(eager), what, depth, stores, context=eager.ieee_float32)


def _eager_tf32(case: Case, inputs: Inputs) -> Built:
    require_tf32(case, inputs)
    return _framework(
        case,
        inputs,
        lambda: inputs.call(eager),
        "torch eager",
        eager.depth(case.problem),
        eager.stores(case.problem),
    )


def _inductor(mode: str) -> Callable[[Case, Inputs], Built]:
    def build(case: Case, inputs: Inputs) -> Built:
        compiled = SimpleNamespace(
            multiply_gap=torch.compile(eager.multiply_gap, fullgraph=True, dynamic=False, mode=mode),
            conv_transpose2d_multiply_gap=torch.compile(
                eager.conv_transpose2d_multiply_gap, fullgraph=True, dynamic=False, mode=mode
            ),
        )
        pooled = _pooled(case)
        depth, stores = _convolution(case.problem) if isinstance(case.problem, Chain) else (0, 0)
        # Inductor walks a row in tiles of at least 64 positions, and sums a tile as a tree or in a thread.
        depth += min(pooled.h * pooled.w, pooled.h * pooled.w // 64 + 256)
        call = lambda: inputs.call(compiled)  # noqa: E731
        return _framework(case, inputs, call, f"torch.compile, mode {mode}", depth, stores + 2)

    return build


def _baseline(case: Case, inputs: Inputs) -> Built:
    try:
        from triton_impl import baseline
    except ImportError as error:
        raise Unavailable(f"needs Triton: {error}") from None
    multiplier = inputs.multiplier
    if isinstance(multiplier, Tensor):
        raise Unavailable("the baseline schedule takes a number as multiplier, no tensor")
    pooled = _pooled(case)
    depth = baseline.depth(pooled.h, pooled.w)
    if not isinstance(case.problem, Chain):
        return Built(lambda: baseline.multiply_gap(inputs.x, multiplier), "baseline schedule (Triton)", depth)
    weight, bias = inputs.weight, inputs.bias
    assert weight is not None

    def call() -> Tensor:
        y = torch.nn.functional.conv_transpose2d(inputs.x, weight, bias, *inputs.sizes.values())
        return baseline.multiply_gap(y, multiplier)

    more, stores = _convolution(case.problem)
    return _framework(
        case,
        inputs,
        call,
        "torch's convolution, then the baseline schedule (Triton)",
        depth + more,
        stores + 1,
    )


def _cub(case: Case, inputs: Inputs) -> Built:
    if case.op == "chain":
        raise Unavailable("CuPy has no transposed convolution: tail only")
    if not inputs.x.is_cuda:
        raise Unavailable("CuPy's mean needs a GPU")
    if isinstance(inputs.multiplier, Tensor):
        raise Unavailable("the entry takes a number as multiplier, no tensor")
    if case.dtype == "bfloat16":
        raise Unavailable("CuPy has no bfloat16 mean")
    try:
        import cupy
    except ImportError as error:
        raise Unavailable(f"needs CuPy: {error}") from None
    y, multiplier = cupy.asarray(inputs.x), inputs.multiplier

    def call() -> Tensor:
        out = torch.empty(case.problem.out_shape, dtype=inputs.x.dtype, device=inputs.x.device)
        view = cupy.asarray(out)
        cupy.mean(y, axis=(2, 3), keepdims=True, out=view)
        cupy.multiply(view, multiplier, out=view)
        return out

    problem = _pooled(case)
    # A block of CUB's segmented reduction has 256 threads or more; a tree joins what they found.
    depth = min(problem.h * problem.w, problem.h * problem.w // 256 + 256)
    return Built(call, "cupy.mean (CUB where its layout allows), then a multiplication", depth, 2)


_STREAM = "CuPy allocates from its own pool, which a capture forbids"

ENTRIES: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("triton", "the Triton kernels", _product("triton"), product=True, cpu=True),
        Entry("cupy", "the CUDA C++ kernels, launched through CuPy", _product("cupy"), product=True, cpu=True),
        Entry("torch", "the bands in plain PyTorch", _product("torch"), product=True, cpu=True),
        Entry(
            "triton-sized",
            "the Triton kernels compiled for just these sizes",
            _product("triton", sized=True),
            product=True,
        ),
        Entry(
            "cupy-sized",
            "the CUDA C++ kernels compiled for just these sizes",
            _product("cupy", sized=True),
            product=True,
        ),
        Entry(
            "triton-tail",
            "PyTorch's convolution, then the fused tail in Triton",
            _fused_tail("triton"),
            product=True,
        ),
        Entry(
            "cupy-tail",
            "PyTorch's convolution, then the fused tail in CUDA C++",
            _fused_tail("cupy"),
            product=True,
        ),
        Entry(
            "eager-ieee",
            "the operator step by step in PyTorch, float32 convolutions in IEEE arithmetic",
            _eager_ieee,
            cpu=True,
        ),
        Entry("eager-tf32", "the same with TF32, PyTorch's default", _eager_tf32),
        Entry("inductor", "torch.compile", _inductor("default")),
        Entry("inductor-max", "torch.compile, max-autotune", _inductor("max-autotune-no-cudagraphs")),
        Entry(
            "baseline",
            "PyTorch's convolution, then the schedule this project began from, in Triton",
            _baseline,
        ),
        Entry("cub", "cupy.mean, for tails", _cub, graph=False, why_not=_STREAM),
    )
}


def is_product(name: str) -> bool:
    """Whether an operator has its own backend under that name; False for a name that is no entry."""
    return any(
        name in table and table[name].product for table in (operator.entries() for operator in operators.known())
    )


def choose(names: list[str] | None, *, gpu: bool, table: Mapping[str, Entry] | None = None) -> list[Entry]:
    """Entries of a table by name, in its order; without names all that make sense here.

    table: that of chain and tail unless another operator's is given. Raises ValueError for an unknown name.
    """
    table = ENTRIES if table is None else table
    if names is None:
        return [entry for entry in table.values() if gpu or entry.cpu]
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ValueError(f"backends: no entry is named {unknown[0]!r}; expected some of {', '.join(table)}")
    return [entry for entry in table.values() if entry.name in names]
