"""The operator as a module that holds an nn.ConvTranspose2d."""

from __future__ import annotations

from typing import SupportsIndex

import torch
from torch import Tensor, nn

from convgap.arguments import Size, channels_of, check_layer, options_of, pair_of
from convgap.functions import conv_transpose2d_multiply_gap, multiply_gap
from convgap.layer import obstacle
from convgap.selection import check_name


class ConvTranspose2dMultiplyGAP(nn.Module):
    """Global average pool of multiplier * ConvTranspose2d(x): [N, in, H, W] -> [N, out, 1, 1].

    `conv_transpose` is an ordinary nn.ConvTranspose2d: same parameters, initialisation and state_dict
    keys as a model that calls it step by step. The arguments are its own, and `multiplier`,
    `strategy` and `backend` those of `conv_transpose2d_multiply_gap`. A tensor multiplier is kept as
    it is given: pass an nn.Parameter to train it.

    A `conv_transpose` that is more than its weight and its numbers is called, and only what follows is fused: one with
    hooks (weight_norm, spectral_norm and pruning are hooks), with a forward of its own, or another module in its
    place. Parametrizations (torch.nn.utils.parametrizations) are read like any weight.

    Raises TypeError and ValueError, which name the argument, what was expected and what came.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        multiplier: float | Tensor = 1.0,
        *,
        groups: SupportsIndex = 1,
        bias: bool = True,
        dilation: Size = 1,
        strategy: str = "collapsed",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_name(backend)
        numbers = options_of(stride, padding, output_padding, dilation, groups, strategy)
        check_layer(multiplier, dtype)
        channels = channels_of(in_channels, out_channels, numbers[4])
        self.conv_transpose = nn.ConvTranspose2d(
            *channels, pair_of("kernel_size", kernel_size, 1), *numbers[:3], numbers[4], bias,
            numbers[3], device=device, dtype=dtype,
        )  # fmt: skip
        self.multiplier = multiplier
        self.strategy = strategy
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv_transpose
        if obstacle(conv):
            return multiply_gap(conv(x), self.multiplier, backend=self.backend)
        return conv_transpose2d_multiply_gap(
            x,
            conv.weight,
            conv.bias,
            multiplier=self.multiplier,
            stride=conv.stride,  # pyright: ignore[reportArgumentType]
            padding=conv.padding,  # pyright: ignore[reportArgumentType]
            output_padding=conv.output_padding,  # pyright: ignore[reportArgumentType]
            groups=conv.groups,
            dilation=conv.dilation,  # pyright: ignore[reportArgumentType]
            strategy=self.strategy,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        shown = self.multiplier if not isinstance(self.multiplier, Tensor) else tuple(self.multiplier.shape)
        return f"multiplier={shown}, strategy={self.strategy!r}, backend={self.backend!r}"
