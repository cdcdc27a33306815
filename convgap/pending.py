"""A transposed convolution that waits for what its caller does with it.

`convgap.fuse` lets every module of a model keep its own forward, and exchanges some of the ConvTranspose2d that they
call. Such a layer answers with a `Pending`: if that is scaled and averaged over its planes, the operator takes the
place of all these steps; if anything else is done with it, the steps are made one by one, as they would have been, and
what follows goes on with an ordinary tensor.

To a compiler the Pending itself stands for the tensor. Elsewhere it is inside a tensor of its own (stand_in.py), which
torch's C++ code can do with as it does with any tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from numbers import Real
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convgap.surroundings import mean_under_autocast, restored, state_of, versions_of
from runtime.prepared import accumulator
from runtime.private import FakeTensor, tree_map

MULTIPLY = (
    torch.mul,
    torch.multiply,
    Tensor.mul,
    Tensor.multiply,
    Tensor.__mul__,
    Tensor.__rmul__,
    operator.mul,
)
DIVIDE = (
    torch.div, torch.divide, torch.true_divide, Tensor.div, Tensor.divide, Tensor.true_divide, Tensor.__truediv__,
    operator.truediv,
)  # fmt: skip
MEAN = (torch.mean, Tensor.mean)

_SMALL, _LARGE = 1e-30, 1e30
"""Products of numbers beyond these would be subnormal or infinite in float32, where the steps need not be."""

PLAIN = (Tensor, nn.Parameter, *filter(None, (FakeTensor,)))


class Pending:
    """What stands for a tensor that nobody has needed yet; torch's functions take it for one."""

    __array_priority__ = Tensor.__array_priority__
    """NumPy leaves products with its scalars to what has more than it."""

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        tensors: tuple[Tensor, ...],
        step_by_step: Callable[[Callable[[Any], Any]], Tensor],
        fused: Callable[[float | Tensor], Tensor],
        number: float = 1.0,
        scale: Tensor | None = None,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.tensors, self._step_by_step, self._fused = tensors, step_by_step, fused
        self._number, self._scale = number, scale
        self._state = state_of(device)
        self._versions = versions_of(tensors)
        self._known: Tensor | None = None
        self._products: list[Callable[[], Pending | None]] = []
        """What is made of this and waits itself, as long as anybody has it."""

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # What a model's own isinstance asks for. C++ would believe it, which no compiler asks while it traces.
        return Tensor if torch.compiler.is_compiling() else Pending

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def real(self) -> Tensor:
        """The tensor, computed as it would have been where it was asked for."""
        if self._known is None:
            self._check_unchanged()
            with restored(self._state, self.device):
                self._known = self._step_by_step(real)
            for product in self._products:
                # It takes the values that there are now: whoever asked for them may write to them.
                waiting = product()
                if waiting is not None:
                    waiting.real()
        return self._known

    def values(self) -> Tensor:
        """The values of `real`, which are not differentiated here."""
        if self._known is None:
            self._check_unchanged()
            with restored((False, *self._state[1:]), self.device):
                return self._step_by_step(_values)
        return self._known.detach()

    def anew(self) -> Tensor:
        """What `real` was when it was made, in an autograd graph of its own."""
        self._check_unchanged()
        with restored(self._state, self.device):
            return self._step_by_step(_anew)

    def _check_unchanged(self) -> None:
        # To a compiler versions say nothing, and there are none.
        now = versions_of(self.tensors)
        if now and self._versions and now != self._versions:
            raise RuntimeError(
                "convgap.fuse: the input or the weight of a ConvTranspose2d was changed in place before its output was"
                " used; leave this model as it is, or make the change on a copy"
            )

    def _is_open(self) -> bool:
        """Whether what follows may still be joined to it."""
        return self._known is None and self._state == state_of(self.device)

    def _joined(self, by: Any, divided: bool) -> tuple[float, Tensor | None] | None:
        """Number and tensor that this is scaled by, with one more factor; None where it does not fit the operator."""
        number, scale = self._number, self._scale
        if isinstance(by, Tensor) and type(by) is not Pending:
            fits = type(by) in PLAIN and by.layout == torch.strided and not by.is_nested
            fits = fits and by.device == self.device and not by.is_complex()
            fits = fits and by.dim() <= self.ndim and all(size == 1 for size in by.shape[-2:])
            fits = fits and all(
                have in (1, want) for have, want in zip(reversed(by.shape), reversed(self.shape), strict=False)
            )
            fits = fits and scale is None and not divided and _keeps(self.dtype, by)
            scale = by
        else:
            fits = isinstance(by, Real) and not isinstance(by, bool) and bool(by or not divided)
            factor = float(by) if fits else 0.0
            number = number / factor if fits and divided else number * factor
            fits = fits and (number == 0.0 or _SMALL < abs(number) < _LARGE)
        return (number, scale) if fits and self._is_open() else None

    def _scaled(self, function: Callable[..., Any], by: Any, args: tuple[Any, ...], divided: bool) -> Any:
        """`function(*args)`, one of which is this and the other `by`."""
        factors = self._joined(by, divided)
        if factors is None:
            return _call(function, args, {})

        def step_by_step(of: Callable[[Any], Any]) -> Tensor:
            return function(*map(of, args))

        tensors = (*self.tensors, by) if isinstance(by, Tensor) else self.tensors
        product = Pending(self.shape, self.dtype, self.device, tensors, step_by_step, self._fused, *factors)
        self._products.append(_kept(product))
        return product

    def scaled_in_place(self, function: Callable[..., Any], by: Any, divided: bool) -> Any:
        """This, scaled: what has no value yet and nobody else's value depends on is another from here on."""
        if self._products or torch.compiler.is_compiling() or self._joined(by, divided) is None:
            return function(self.real(), real(by))
        before = object.__new__(Pending)
        vars(before).update(vars(self))
        after = before._scaled(function, by, (before, by), divided)
        vars(self).update(vars(after))
        return self

    def _pooled(self, function: Callable[..., Any], keepdim: bool) -> Tensor | None:
        """The mean over the planes, or None where it has to be made step by step."""
        if not self._is_open():
            return None
        narrowed = self._state[2]
        if narrowed and mean_under_autocast(function, self.dtype, self.device.type, narrowed) != self.dtype:
            return None
        self._check_unchanged()
        multiplier: float | Tensor = self._number
        if self._scale is not None:
            multiplier = self._scale.to(accumulator(self.dtype))
            if self._number != 1.0:
                multiplier = multiplier * self._number
        out = self._fused(multiplier)
        return out if keepdim else out.flatten(-3)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        if not kwargs and len(args) == 2:
            left, right = args
            if func in DIVIDE and type(left) is Pending:
                return left._scaled(func, right, args, True)
            if func in MULTIPLY:
                ours, by = (left, right) if type(left) is Pending else (right, left)
                return ours._scaled(func, by, args, False)
        out = None
        if args and type(args[0]) is Pending:
            if func in MEAN:
                out = _mean(*args, **kwargs)
            elif func is F.adaptive_avg_pool2d:
                out = _adaptive(*args, **kwargs)
        return _call(func, args, kwargs) if out is None else out

    def mul(self, *args: Any, **kwargs: Any) -> Any:
        return Pending.__torch_function__(Tensor.mul, (), (self, *args), kwargs)

    def div(self, *args: Any, **kwargs: Any) -> Any:
        return Pending.__torch_function__(Tensor.div, (), (self, *args), kwargs)

    def mean(self, *args: Any, **kwargs: Any) -> Any:
        return Pending.__torch_function__(Tensor.mean, (), (self, *args), kwargs)

    def __mul__(self, other: Any) -> Any:
        return Pending.__torch_function__(operator.mul, (), (self, other))

    def __rmul__(self, other: Any) -> Any:
        return Pending.__torch_function__(operator.mul, (), (other, self))

    def __truediv__(self, other: Any) -> Any:
        return Pending.__torch_function__(operator.truediv, (), (self, other))

    def __imul__(self, other: Any) -> Any:
        return self.scaled_in_place(operator.imul, other, False)

    def __itruediv__(self, other: Any) -> Any:
        return self.scaled_in_place(operator.itruediv, other, True)

    multiply, divide, true_divide = mul, div, div

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)


def _delegate(name: str) -> None:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.real(), name)(*map(real, args), **kwargs)

    setattr(Pending, name, method)


def _delegate_attribute(name: str) -> None:
    def read(self: Any) -> Any:
        return getattr(self.real(), name)

    def write(self: Any, value: Any) -> None:
        setattr(self.real(), name, value)

    setattr(Pending, name, property(read, write))


# Python looks operators up on the type, where __getattr__ is not asked.
_OWN = {*dir(type), *vars(Pending), "__new__"}
for _name in dir(Tensor):
    if _name.startswith("__") and callable(getattr(Tensor, _name)) and _name not in _OWN:
        _delegate(_name)
for _name in (
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__hash__",
    "__repr__",
    "__or__",
    "__ror__",
):
    _delegate(_name)
_delegate("__reduce_ex__")
for _name in ("data", "grad", "requires_grad"):
    _delegate_attribute(_name)


def _kept(product: Pending) -> Callable[[], Pending | None]:
    """Gives the product as long as somebody else has it; to a compiler, which makes no weak references, always."""
    return (lambda: product) if torch.compiler.is_compiling() else ref(product)


def real(value: Any) -> Any:
    return value.real() if type(value) is Pending else value


def _values(value: Any) -> Any:
    return value.values() if type(value) is Pending else value


def _anew(value: Any) -> Any:
    return value.anew() if type(value) is Pending else value


def _call(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return function(*tree_map(real, args), **tree_map(real, kwargs))


def _mean(input: Pending, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:  # noqa: A002
    y = input
    pair = isinstance(dim, (tuple, list)) and len(dim) == 2 and all(type(d) is int for d in dim)
    if more or not pair:
        return None
    planes = {d % y.ndim if -y.ndim <= d < y.ndim else d for d in dim} == {y.ndim - 2, y.ndim - 1}
    return y._pooled(torch.mean, keepdim) if planes else None


def _adaptive(input: Pending, output_size: Any) -> Any:  # noqa: A002
    one = output_size == 1 or (isinstance(output_size, (tuple, list)) and tuple(output_size) == (1, 1))
    return input._pooled(F.adaptive_avg_pool2d, True) if one else None


def _keeps(dtype: torch.dtype, by: Tensor) -> bool:
    """Whether a product with `by` has the floating-point `dtype` of the other factor. No call that a trace records."""
    narrower = dtype.itemsize > 2 and by.dtype.itemsize < dtype.itemsize
    return not by.dim() or not by.is_floating_point() or by.dtype == dtype or narrower
