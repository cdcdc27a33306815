"""The public functions: the native path where it serves the call, else validation and one operator call."""

from __future__ import annotations

from typing import SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from convgap import fast
from convgap.arguments import Size, check_chain, check_tail
from convgap.selection import check_name
from convgap.torch_op import dispatch, schemas
from reference.problem import Chain


def multiply_gap(y: Tensor, multiplier: float | Tensor, *, backend: str = "auto") -> Tensor:
    """Mean over H and W of multiplier * y, reading y once: [N, C, H, W] -> [N, C, 1, 1].

    y           float32, float16, bfloat16 or float64, any strides; unbatched [C, H, W] -> [C, 1, 1]
    multiplier  a number, or a tensor that broadcasts to the output (then it gets a gradient)
    backend     "auto", "triton", "cupy" or "torch"; a name never falls back

    Sums in float32 (float64 for float64) and rounds once. Raises TypeError or ValueError for bad
    arguments and RuntimeError, with the reason, for a named backend that is not usable.
    """
    if not torch.compiler.is_compiling():
        out = fast.tail(y, multiplier, backend)
        if out is not None:
            return out
    if has_torch_function_variadic(y, multiplier):
        return handle_torch_function(multiply_gap, (y, multiplier), y, multiplier, backend=backend)
    check_name(backend)
    batched, scale, tensor = check_tail(y, multiplier)
    if torch.compiler.is_compiling():
        out = schemas.ops.multiply_gap(batched, tensor, scale, backend)
    else:
        out = dispatch.multiply_gap(batched, tensor, scale, backend)
    return out if y.dim() == 4 else out.squeeze(0)


def conv_transpose2d_multiply_gap(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    multiplier: float | Tensor = 1.0,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: SupportsIndex = 1,
    dilation: Size = 1,
    strategy: str = "collapsed",
    backend: str = "auto",
) -> Tensor:
    """Mean over H and W of multiplier * conv_transpose2d(x, weight, bias, ...): -> [N, Cout, 1, 1].

    x           [N, Cin, H, W], or unbatched [Cin, H, W] -> [Cout, 1, 1]; any strides
    weight      [Cin, Cout / groups, KH, KW]; bias [Cout] or None; x's dtype and device
    multiplier  a number, or a tensor that broadcasts to the output (then it gets a gradient)
    stride, padding, output_padding, groups, dilation
                as in torch.nn.functional.conv_transpose2d: integers (NumPy's too), or sequences of one or two
    strategy    "collapsed" never makes the convolution's output; "tail" lets torch make it and fuses the rest
    backend     "auto", "triton", "cupy" or "torch"; a name never falls back

    Under autocast x, weight and bias are cast as torch.nn.functional.conv_transpose2d casts them.
    Sums in float32 (float64 for float64) and rounds once. Raises TypeError or ValueError for bad
    arguments and RuntimeError, with the reason, for a named backend that is not usable.
    """
    if not torch.compiler.is_compiling():
        out = fast.chain(
            x, weight, bias, multiplier, stride, padding, output_padding, dilation, groups, strategy, backend
        )
        if out is not None:
            return out
    if has_torch_function_variadic(x, weight, bias, multiplier):
        return handle_torch_function(
            conv_transpose2d_multiply_gap, (x, weight, bias, multiplier), x, weight, bias,
            multiplier=multiplier, stride=stride, padding=padding, output_padding=output_padding, groups=groups,
            dilation=dilation, strategy=strategy, backend=backend,
        )  # fmt: skip
    check_name(backend)
    options = stride, padding, output_padding, dilation, groups, strategy
    batched, problem, scale, tensor = check_chain(x, weight, bias, multiplier, *options)
    if strategy == "tail":
        y = F.conv_transpose2d(
            batched, weight, bias, problem.stride, problem.padding, problem.output_padding, problem.groups,
            problem.dilation,
        )  # fmt: skip
        out = multiply_gap(y, scale if tensor is None else tensor, backend=backend)
    elif isinstance(problem, Chain):
        out = dispatch.chain(problem, batched, weight, bias, tensor, scale, backend)
    else:
        out = schemas.ops.chain(batched, weight, bias, tensor, scale, *problem, backend)
    return out if x.dim() == 4 else out.squeeze(0)
