"""What the public functions take: every argument checked once, before anything is launched."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from reference.problem import Chain, Geometry
from runtime.prepared import accumulator

Size = SupportsIndex | Sequence[SupportsIndex]
"""A number for both axes, or a sequence of one or two: anything that torch takes for an integer."""

Pair = tuple[int, int]
Options = tuple[Pair, Pair, Pair, Pair, int, str]
"""Stride, padding, output padding, dilation, groups, strategy."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
STRATEGIES = ("collapsed", "tail")


def options_of(
    stride: Size, padding: Size, output_padding: Size, dilation: Size, groups: SupportsIndex, strategy: str
) -> Options:
    """The numbers of a call as Python's own integers, in pairs.

    Every call comes by here before anything is looked up, for True and 2.0 are equal to 1 and 2, and would find what
    was kept for them.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {STRATEGIES}, got {strategy!r}")
    return (
        pair_of("stride", stride, 1),
        pair_of("padding", padding, 0),
        pair_of("output_padding", output_padding, 0),
        pair_of("dilation", dilation, 1),
        _integer("groups", groups, 1),
        strategy,
    )


def channels_of(in_channels: SupportsIndex, out_channels: SupportsIndex, groups: int) -> Pair:
    """The channels of a layer as Python's own integers, whole groups of them."""
    numbers = _integer("in_channels", in_channels, 1), _integer("out_channels", out_channels, 1)
    for name, number in zip(("in_channels", "out_channels"), numbers, strict=True):
        if number % groups:
            raise ValueError(f"{name}: expected a multiple of groups={groups}, got {number}")
    return numbers


def check_layer(multiplier: Any, dtype: Any) -> None:
    """Refuse a multiplier, and a dtype of parameters, that no call of a layer could take."""
    if not isinstance(multiplier, Tensor):
        _number(multiplier)
    if dtype is not None:
        _check_dtype("dtype", dtype)


def conv_size(
    axis: int, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: Pair, padding: Pair,
    output_padding: Pair, dilation: Pair,
) -> int:  # fmt: skip
    """Rows (axis 0) or columns (1) of the convolution's output, by the formula of torch's ConvTranspose2d; sizes may
    be symbols."""
    return (
        (x_shape[axis - 2] - 1) * stride[axis] - 2 * padding[axis]
        + dilation[axis] * (weight_shape[axis + 2] - 1) + output_padding[axis] + 1
    )  # fmt: skip


def geometry_of(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    groups: int,
    strategy: str,
) -> Geometry:
    """The numbers as the operators take them, checked against the sizes."""
    if len(weight_shape) != 4 or 0 in weight_shape[1:]:
        raise ValueError(f"weight: expected [Cin, Cout / groups, KH, KW] without zeros, got {tuple(weight_shape)}")
    c_in = x_shape[-3]
    if weight_shape[0] != c_in:
        raise ValueError(f"weight: expected {c_in} input channels (x's), got {weight_shape[0]}")
    if c_in % groups:
        raise ValueError(f"groups: expected a divisor of x's {c_in} channels, got {groups}")
    c_out = weight_shape[1] * groups
    for axis, name in enumerate(("height", "width")):
        if output_padding[axis] >= max(stride[axis], dilation[axis]):
            raise ValueError(
                f"output_padding: expected less than stride or dilation, {max(stride[axis], dilation[axis])}"
                f" along the {name}, got {output_padding[axis]}"
            )
        size = conv_size(axis, x_shape, weight_shape, stride, padding, output_padding, dilation)
        if size < 1:
            raise ValueError(f"padding: expected an output {name} of at least 1, these sizes give {size}")
    if bias_shape is not None and tuple(bias_shape) != (c_out,):
        raise ValueError(f"bias: expected [{c_out}], got {tuple(bias_shape)}")
    return Geometry(stride, padding, output_padding, dilation, groups)


def problem_of(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    *options: Any,
) -> Chain:
    """The checked sizes of one call; an unbatched x is a batch of one."""
    geometry = geometry_of(x_shape, weight_shape, bias_shape, *options)
    n, c_in, h, w = x_shape if len(x_shape) == 4 else (1, *x_shape)
    c_out, kernel = weight_shape[1] * geometry.groups, (weight_shape[2], weight_shape[3])
    return Chain(n, c_in, c_out, h, w, kernel, *geometry, bias_shape is not None)


# A model calls with the same few sizes over and over.
known_problem = lru_cache(maxsize=4096)(problem_of)


def check_tail(y: Tensor, multiplier: float | Tensor) -> tuple[Tensor, float, Tensor | None]:
    """(y [N, C, H, W], number, tensor): the multiplier is one of the two last, [N, C, 1, 1] if it is a tensor."""
    check_planes("y", y)
    batched = y if y.dim() == 4 else y.unsqueeze(0)
    return batched, *multiplier_of(multiplier, batched, batched.shape[1], y.dim() == 4)


def check_chain(
    x: Tensor, weight: Tensor, bias: Tensor | None, multiplier: float | Tensor, *options: Any
) -> tuple[Tensor, Chain | Geometry, float, Tensor | None]:
    """(x [N, Cin, H, W], sizes, number, tensor). `options`: as `options_of` takes them.

    While torch.compile traces, sizes may be symbols: then only the numbers that are none come back, as a Geometry.
    """
    check_planes("x", x)
    check_like("weight", weight, x)
    if bias is not None:
        check_like("bias", bias, x)
    sizes = x.shape, weight.shape, None if bias is None else bias.shape
    numbers = options_of(*options)
    if torch.compiler.is_compiling():
        problem = geometry_of(*sizes, *numbers)
    else:
        try:
            problem = known_problem(*sizes, *numbers)
        except TypeError:  # symbolic sizes cannot be looked up
            problem = problem_of(*sizes, *numbers)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    scale, tensor = multiplier_of(multiplier, batched, weight.shape[1] * problem.groups, x.dim() == 4)
    return batched, problem, scale, tensor


def check_planes(name: str, tensor: Tensor) -> None:
    """Refuse what is not [N, C, H, W] or [C, H, W] of a dtype and layout that the kernels take."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    _check_dtype(name, tensor.dtype)
    _dense(name, tensor)
    shape = tensor.shape
    if len(shape) not in (3, 4):
        raise ValueError(f"{name}: expected [N, C, H, W] or [C, H, W], got {tuple(shape)}")
    if shape[-3] == 0 or shape[-2] == 0 or shape[-1] == 0:
        raise ValueError(f"{name}: expected at least one channel, row and column, got {tuple(shape)}")


def _check_dtype(name: str, dtype: Any) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got {dtype}")


def check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    _dense(name, tensor)
    if tensor.dtype != x.dtype and not _autocast_joins(tensor, x):
        raise TypeError(f"{name}: expected x's dtype {x.dtype}, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected x's device {x.device}, got {tensor.device}")


def _dense(name: str, tensor: Tensor) -> None:
    # Asked first: a nested tensor has no sizes to ask for.
    if tensor.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got a nested one")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")


def _autocast_joins(tensor: Tensor, x: Tensor) -> bool:
    """Whether autocast casts both to one dtype: it leaves float64 alone."""
    narrow = DTYPES[:3]
    return autocast_to(x.device.type) is not None and tensor.dtype in narrow and x.dtype in narrow


def autocast_to(device: str) -> torch.dtype | None:
    """The dtype of the autocast that is in force for a type of device, None where there is none."""
    if not has_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def has_autocast(device: str) -> bool:
    """Whether a type of device knows autocast: torch raises an error where it is asked of one that does not."""
    # torch 2.11 compiles no model that asks torch.amp; the devices that models are compiled for have autocast.
    if torch.compiler.is_compiling():
        return device != "meta"
    return torch.amp.is_autocast_available(device)


def multiplier_of(multiplier: float | Tensor, x: Tensor, c_out: int, batched: bool) -> tuple[float, Tensor | None]:
    """(number, None) or (1, tensor [N, Cout, 1, 1] in the accumulator's dtype)."""
    if type(multiplier) is float:  # most are, and the next questions take a microsecond
        return multiplier, None
    if not isinstance(multiplier, Tensor):
        if not _traced_from_numpy(multiplier):
            return _number(multiplier), None
        multiplier = torch.as_tensor(multiplier, device=x.device)
        if multiplier.dim() or multiplier.dtype == torch.bool or multiplier.is_complex():
            raise TypeError("multiplier: expected a number or a torch.Tensor, got an array of NumPy's")
        multiplier = multiplier.to(accumulator(x.dtype))
    _dense("multiplier", multiplier)
    if not multiplier.is_floating_point():
        raise TypeError(f"multiplier: expected a floating-point tensor, got {multiplier.dtype}")
    if multiplier.device != x.device:
        raise ValueError(f"multiplier: expected x's device {x.device}, got {multiplier.device}")
    shape = (x.shape[0], c_out, 1, 1) if batched else (c_out, 1, 1)
    fits = multiplier.dim() <= len(shape) and all(
        have in (1, want) for have, want in zip(reversed(multiplier.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"multiplier: expected a shape that broadcasts to the output's {shape}, got {tuple(multiplier.shape)}"
        )
    multiplier = multiplier.to(accumulator(x.dtype)).expand(shape)
    return 1.0, multiplier if batched else multiplier.unsqueeze(0)


def _traced_from_numpy(value: Any) -> bool:
    """Whether torch.compile traces `value` as a tensor: it turns NumPy's scalars into arrays of no dimension."""
    return torch.compiler.is_compiling() and type(value).__module__ == "numpy"


def _number(multiplier: Any) -> Any:
    """`multiplier` as a float, or as the symbol that it is while torch traces."""
    if isinstance(multiplier, (torch.SymFloat, torch.SymInt)):
        return torch.sym_float(multiplier)
    if isinstance(multiplier, bool) or not isinstance(multiplier, Real):
        raise TypeError(f"multiplier: expected a number or a torch.Tensor, got {type(multiplier).__name__}")
    try:
        return float(multiplier)
    except OverflowError:
        raise ValueError("multiplier: expected a number that a float can hold, got a larger one") from None


def _integer(name: str, value: Any, least: int) -> Any:
    """`value` as an int, or as the symbol that it is while torch traces: NumPy's integers too, but no bool."""
    if type(value) is not int:
        value = _as_integer(name, value)
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    if value >= 1 << 63:
        raise ValueError(f"{name}: expected a number of 64 bits, got {value}")
    return value


def _as_integer(name: str, value: Any) -> Any:
    if _traced_from_numpy(value):
        value = value.item()
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    # Before 2.1, NumPy's bools say that they are indices.
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        raise TypeError(f"{name}: expected an int, got bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None


def pair_of(name: str, value: Any, least: int) -> Pair:
    """A number for both axes, or one or two in a sequence, as torch takes them."""
    if not isinstance(value, (tuple, list)):
        number = _integer(name, value, least)
        return number, number
    if len(value) not in (1, 2):
        raise ValueError(f"{name}: expected an int or two, got {len(value)} of them")
    return _integer(name, value[0], least), _integer(name, value[-1], least)
