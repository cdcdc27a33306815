"""Wrong answers of known kinds to the known problems: what the estimated budget has to refuse, and how it is made.

Each is calculated in float64 with the one fault and then rounded to float32, so that nothing but the fault is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from harness.candidates.problems.file import ProblemFile, Wide
from harness.numerics.rounding import SUMS, Rounding

PIECES = 32  # of a sum: after each the accumulator is rounded
PRODUCTS = ("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "convolution")


class Made:
    """One call: a problem, a model with its state, the arguments. Wrong answers are made of these."""

    def __init__(self, problem: ProblemFile, model: torch.nn.Module, seed: int) -> None:
        self.problem, self.model, self.seed = problem, model, seed
        self.inputs = problem.inputs(seed)
        self.name = problem.path.stem

    def answer(self, inputs: list[Any] | None = None, **state: Tensor) -> Tensor:
        """In float64, with other arguments or another state where they are given."""
        wide = Wide(self.problem, self.model, inputs or self.inputs)
        wide.state = wide.state | state
        return wide(lambda value: value.clone())[0].double()


Fault = Callable[[Made], Tensor | None]
"""The wrong answer, or None where a problem leaves no room for it."""


class _Coarse(Rounding):
    """Sums and products in a coarser format than the tensors'; everything else as it is."""

    def __init__(self, *, tf32: bool) -> None:
        super().__init__("float32", 1.0, torch.Generator())
        self.tf32, self.met = tf32, False

    def _round(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        if self.tf32 and name in PRODUCTS:
            out.copy_(getattr(torch.ops.aten, name)(*tree_map(tf32, args), **kwargs))
            self.met = True
        elif not self.tf32 and name in SUMS:
            out.copy_(_halved(name, *args, **kwargs).view_as(out))
            self.met = True


def tf32(value: Any) -> Any:
    """A tensor rounded to TF32's eleven bits, as tensor cores round their operands."""
    if not isinstance(value, Tensor):
        return value
    return ((value.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()


def _halved(name: str, *args: Any, **kwargs: Any) -> Tensor:
    """A sum whose accumulator is a float16: rounded after each of some pieces."""
    if name in ("mm", "bmm"):
        return _pieces(args[0], args[1].transpose(-1, -2), lambda a, b: a @ b.transpose(-1, -2))
    if name in ("addmm", "baddbmm"):
        return _pieces(args[1], args[2].transpose(-1, -2), lambda a, b: a @ b.transpose(-1, -2), args[0])
    if name == "convolution":
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args
        axis = 0 if transposed else 1
        start = 0.0 if bias is None else bias.view(-1, *[1] * (x.dim() - 2))
        more = stride, padding, dilation, transposed, output_padding, groups

        def piece(a: Tensor, b: Tensor) -> Tensor:
            return torch.convolution(a.movedim(-1, 1), b.movedim(-1, axis), None, *more)

        return _pieces(x.movedim(1, -1), weight.movedim(axis, -1), piece, start)
    x, *more = args
    if name == "avg_pool2d":
        (height, width), (down, right) = more[:2]
        terms = x.unfold(2, height, down).unfold(3, width, right).flatten(-2)
    else:
        dims = sorted(d % x.dim() for d in (more[0] if more and more[0] else range(x.dim())))
        terms = x.permute(*[d for d in range(x.dim()) if d not in dims], *dims).flatten(x.dim() - len(dims))
    total = _pieces(terms, terms, lambda a, _: a.sum(-1))
    return total if name == "sum" else total / terms.shape[-1]


def _pieces(a: Tensor, b: Tensor, piece: Callable[[Tensor, Tensor], Tensor], start: Any = 0.0) -> Tensor:
    size = -(-a.shape[-1] // PIECES)
    total: Any = start
    for first, second in zip(a.split(size, -1), b.split(size, -1), strict=True):
        total = (total + piece(first, second)).half().double()
    return total


def _coarser(*, use_tf32: bool) -> Fault:
    def make(made: Made) -> Tensor | None:
        mode = _Coarse(tf32=use_tf32)
        with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), mode:
            found = made.answer()
        return found if mode.met else None

    return make


def _tile(made: Made) -> Tensor | None:
    right = made.answer()
    if right.dim() == 0:  # the last samples are not read
        return made.answer([value[: -len(value) // 8] for value in made.inputs])
    wrong = right.contiguous().clone()
    wrong.view(-1)[-max(1, right.numel() // 8) :] = 0
    return wrong


def _swapped(made: Made) -> Tensor | None:
    right = made.answer()
    return None if right.dim() == 0 else right[[1, 0, *range(2, len(right))]]


def _no_bias(made: Made) -> Tensor | None:
    biases = {n: v * 0 for n, v in made.model.state_dict().items() if n.endswith("bias")}
    return made.answer(**biases) if biases else None


def _divisor(made: Made) -> Tensor | None:
    """One too few, or one too many, of what is averaged over."""
    right = made.answer()
    if made.name in ("layer_norm", "batch_norm"):
        count = made.inputs[0].numel() / made.model.norm.weight.numel()  # pyright: ignore
        count = 256 if made.name == "layer_norm" else count
        bias = _channels(made, "bias")
        return (right - bias) * sqrt((count - 1) / count) + bias
    counts = {"reduction": 192, "pooling": 9, "loss": 128, "chain": 24 * 24}
    if made.name == "attention":  # the root of one too many
        q, k, v = made.inputs
        return made.answer([q.double() * sqrt(q.shape[-1] / (q.shape[-1] + 1)), k.double(), v.double()])
    if made.name not in counts:
        return None
    return right * counts[made.name] / (counts[made.name] - 1)


def _channels(made: Made, name: str) -> Tensor:
    value = getattr(made.model.norm, name).detach().double()
    return value if made.name == "layer_norm" else value.view(-1, 1, 1)


def _stale(made: Made) -> Tensor | None:
    return made.answer(made.problem.inputs(made.seed + 1))


def _epsilon(made: Made) -> Tensor | None:
    """Added to the root, and not under it."""
    if made.name not in ("layer_norm", "batch_norm"):
        return None
    x = made.inputs[0].double()
    dims = [1] if made.name == "layer_norm" else [0, 2, 3]
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    normal = (x - mean) / (variance.sqrt() + made.model.norm.eps)  # pyright: ignore
    return normal * _channels(made, "weight") + _channels(made, "bias")


class _WithoutRelu(TorchFunctionMode):
    met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.relu:
            self.met = True
            return args[0]
        return func(*args, **(kwargs or {}))


def _no_relu(made: Made) -> Tensor | None:
    with _WithoutRelu() as mode:
        found = made.answer()
    return found if mode.met else None


def _constant(made: Made) -> Tensor | None:
    right = made.answer()
    return torch.full_like(right, right.mean().item() if right.dim() else 1.0)


FAULTS: dict[str, Fault] = {
    "TF32": _coarser(use_tf32=True),
    "float16 accumulator": _coarser(use_tf32=False),
    "last tile left out": _tile,
    "two samples swapped": _swapped,
    "no bias": _no_bias,
    "divisor off by one": _divisor,
    "earlier answer": _stale,
    "epsilon beside the root": _epsilon,
    "no ReLU": _no_relu,
    "constant": _constant,
}
