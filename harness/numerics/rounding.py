"""Random rounding: torch's operators in float64, each result off by one random rounding of a narrower format.

This is Monte Carlo arithmetic (Parker, 1997; docs/judging.md): the spread of many such runs says how far an honest
calculation in the narrow format may be off, whatever its order.

A sum of n terms is off as one from left to right is whose terms come in no particular order. Each addition rounds a
partial sum. After k of n terms its square is at most (k/n)^2 r^2 + (k/n) q on average, for a result r and the sum q of
the squares of the terms; over all k that is r^2/3 + q/2. So the error is a random number of the size
u sqrt(n) sqrt(r^2/3 + q/2).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from harness.numerics.budget import FORMATS, accumulator

EXACT = """
relu neg abs clamp clamp_min clamp_max maximum minimum fmax fmin max min amax amin where masked_fill hardtanh
cat stack index gather index_select index_put index_copy masked_scatter masked_select scatter select_scatter
slice_scatter embedding copy clone _to_copy detach lift_fresh convert_element_type broadcast_in_dim squeeze flip roll
repeat tril triu diag_embed constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d unfold im2col pixel_shuffle pixel_unshuffle channel_shuffle one_hot
upsample_nearest1d upsample_nearest2d upsample_nearest3d sort topk kthvalue median mode nonzero
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d
adaptive_max_pool3d isnan isinf isfinite item _local_scalar_dense
fill zero full zeros ones empty full_like zeros_like ones_like empty_like new_empty new_zeros new_ones new_full
new_empty_strided empty_strided empty_permuted scalar_tensor arange iota linspace eye
bernoulli uniform normal rand randn rand_like randn_like randperm randint
"""
"""Operators that choose, move or make numbers, and round none."""

JUMPS = "floor ceil round trunc sign sgn heaviside fmod remainder floor_divide frac"
"""Operators whose results are numbers, and jump."""

SIMPLE = {"add", "sub", "rsub", "mul", "div", "sqrt", "square", "reciprocal", "true_divide"}
HARD = """
exp exp2 expm1 log log2 log10 log1p sin cos tan tanh sinh cosh asin acos atan atan2 asinh acosh atanh erf erfc erfinv
sigmoid rsqrt pow lgamma digamma
"""
HARD_ULPS = 4.0
"""CUDA's manual lists up to four ulps for the functions of HARD in float32."""

EXACT_NAMES, JUMP_NAMES, HARD_NAMES = (set(names.split()) for names in (EXACT, JUMPS, HARD))


class Rounding(TorchDispatchMode):
    """While entered, float64 results are rounded at random to `dtype`, `times` as coarsely; times 0: not at all.

    outcomes: what comparisons, argmax and the like decided, in order. script: outcomes of another run.
    jumped: whether an outcome differed from the script's. forced: whether the script's are taken then, so that the run
    goes the same way. unseen: operators that nothing is known of: each element is off by a few units of itself, or of
    the root mean square of all.
    """

    def __init__(
        self,
        dtype: str,
        times: float,
        generator: torch.Generator,
        script: list[Tensor] | None = None,
        *,
        forced: bool = False,
    ) -> None:
        super().__init__()
        self.narrow = getattr(torch, dtype)
        self.unit = times * FORMATS[dtype].unit_roundoff
        self.sum_unit = times * FORMATS[accumulator(dtype)].unit_roundoff
        self.generator, self.script, self.forced = generator, script, forced
        self.outcomes: list[Tensor] = []
        self.unseen: set[str] = set()
        self.jumped = False
        self._place = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A cast to the format at hand, as in x.float(), is one to its stand-in.
        args, kwargs = tree_map(self._wide, (tuple(args), kwargs or {}))
        name = func._schema.name.partition("::")[2]
        plain = name.rstrip("_") if not name.startswith("_") else name
        known = plain in EXACT_NAMES or plain in JUMP_NAMES or plain in SIMPLE or plain in HARD_NAMES or plain in SUMS
        if plain in ("var", "var_mean") and not func.is_view:
            with self:
                return _variance(plain, *args, **kwargs)
        if not known and not func.is_view:
            inner = self._inside(func, args, kwargs)
            if inner is not NotImplemented:
                return inner
        result = func(*args, **kwargs)
        if func.is_view:
            return result
        result = self._decided(plain, args, result)
        if self.unit and plain not in EXACT_NAMES and plain not in JUMP_NAMES:
            for out in tree_leaves(result):
                if isinstance(out, Tensor) and out.dtype in (torch.float64, torch.complex128) and out.numel():
                    self._round(plain, torch.view_as_real(out) if out.is_complex() else out, args, kwargs)
        return result

    def rounded(self, value: Tensor) -> Tensor:
        """A copy of an input, each element off by one rounding."""
        value = value.clone()
        if value.dtype == torch.float64 and self.unit:
            value.addcmul_(value, self._noise(value), value=self.unit)
        return value

    def _wide(self, value: Any) -> Any:
        return torch.float64 if value is self.narrow else value

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator by what it is made of, or NotImplemented."""
        with self:
            if func in decomposition_table:
                return decomposition_table[func](*args, **kwargs)
            return func.decompose(*args, **kwargs)

    def _decided(self, name: str, args: Any, result: Any) -> Any:
        """The result, with what it decided on floating-point numbers noted or taken from the script."""
        if not any(isinstance(a, Tensor) and a.is_floating_point() for a in tree_leaves(args)):
            return result

        def note(out: Any) -> Any:
            number = isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex())
            if not isinstance(out, Tensor) or (number and name not in JUMP_NAMES):
                return out
            if self.script is None:
                self.outcomes.append(out.clone())
                return out
            place, self._place = self._place, self._place + 1
            if place >= len(self.script) or self.script[place].shape != out.shape:
                self.jumped = True
                return out
            expected = self.script[place].to(out.device)
            if torch.equal(out, expected):
                return out
            self.jumped = True
            return out.copy_(expected) if self.forced else out

        return tree_map(note, result)

    def _noise(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).uniform_(-1, 1, generator=self.generator)

    def _round(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        noise = self._noise(out)
        if name in SUMS:
            terms, squares = SUMS[name](out, *args, **kwargs)
            size = self.sum_unit * terms**0.5 * (out.square() / 3 + squares / 2).sqrt()
            if self.sum_unit < self.unit:  # a sum is kept wider, and then stored
                out.addcmul_(out, self._noise(out), value=self.unit)
            out.addcmul_(size, noise)
            return
        size = out
        if name not in SIMPLE and name not in HARD_NAMES:
            self.unseen.add(name)
            size = out.square().mean().sqrt().maximum(out.abs())
        out.addcmul_(size, noise, value=self.unit * (1 if name in SIMPLE else HARD_ULPS))


def _variance(name: str, x: Tensor, dim: Any = None, *more: Any, **options: Any) -> Any:
    """Of the squares of the differences from the mean. correction, unbiased: as torch's operators spell them."""
    if isinstance(dim, bool):
        dim, more = None, (dim, *more)
    correction = options.get("correction", 1)
    if more and isinstance(more[0], bool):
        correction = int(more[0])
    elif more and more[0] is not None:
        correction = more[0]
    keep = options.get("keepdim", bool(more[1]) if len(more) > 1 else False)
    dims = list(range(x.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    count = prod(x.shape[d] for d in dims)
    mean = x.mean(dims, keepdim=True)
    found = (x - mean).square().sum(dims, keepdim=keep) / max(count - (1 if correction is None else correction), 0)
    return (found, mean if keep else mean.squeeze(dims)) if name == "var_mean" else found


# --- sums: how many terms an element has, and the sum of their squares ---


def _sum(out: Tensor, x: Tensor, dim: Any = None, *_: Any, **options: Any) -> tuple[float, Tensor]:
    dims = list(range(x.dim())) if dim is None or dim == [] else dim
    keep = out.dim() == x.dim()
    return x.numel() / out.numel(), x.square().sum(dims, keepdim=keep).view_as(out)


def _mean(out: Tensor, x: Tensor, dim: Any = None, *_: Any, **options: Any) -> tuple[float, Tensor]:
    count, squares = _sum(out, x, dim)
    return count, squares / count**2


def _cumsum(out: Tensor, x: Tensor, dim: int, **_: Any) -> tuple[float, Tensor]:
    return x.shape[dim], x.square().cumsum(dim)


def _product(out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> tuple[float, Tensor]:
    return a.shape[-1], torch.matmul(a.square(), b.square())


def _added(out: Tensor, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> tuple[float, Tensor]:
    return a.shape[-1] + 1, beta**2 * c.square() + alpha**2 * torch.matmul(a.square(), b.square())


def _convolution(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> tuple[float, Tensor]:  # fmt: skip
    squared = None if bias is None else bias.square()
    more = stride, padding, dilation, transposed, output_padding, groups
    count = weight[0].numel()
    if transposed:
        steps = list(stride) * (weight.dim() - 2 if len(stride) == 1 else 1)
        count = weight.shape[0] // groups * prod(-(-k // s) for k, s in zip(weight.shape[2:], steps, strict=True))
    return count + (bias is not None), torch.convolution(x.square(), weight.square(), squared, *more)


def _pool(function: Callable[..., Tensor]) -> Callable[..., tuple[float, Tensor]]:
    def terms(out: Tensor, x: Tensor, size: Any, *more: Any, **options: Any) -> tuple[float, Tensor]:
        adaptive = function in (torch._adaptive_avg_pool2d, torch._adaptive_avg_pool3d)  # pyright: ignore
        count = x.numel() / out.numel() if adaptive else prod(size) ** (1 if len(size) > 1 else out.dim() - 2)
        return count, function(x.square(), size, *more, **options) / count

    return terms


def _prod(out: Tensor, x: Tensor, *_: Any, **__: Any) -> tuple[float, Tensor]:
    return x.numel() / max(out.numel(), 1), out.square()


SUMS: dict[str, Callable[..., tuple[float, Tensor]]] = {
    "sum": _sum, "mean": _mean, "cumsum": _cumsum, "prod": _prod, "cumprod": _prod,
    "mm": _product, "bmm": _product, "mv": _product, "dot": _product,
    "addmm": _added, "baddbmm": _added, "addmv": _added, "convolution": _convolution,
    "avg_pool2d": _pool(torch.nn.functional.avg_pool2d), "avg_pool3d": _pool(torch.nn.functional.avg_pool3d),
    "_adaptive_avg_pool2d": _pool(torch._adaptive_avg_pool2d),  # pyright: ignore
    "_adaptive_avg_pool3d": _pool(torch._adaptive_avg_pool3d),  # pyright: ignore
}  # fmt: skip
