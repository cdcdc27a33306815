"""A first kernel in Triton: the framework's convolution, then one program for each plane of its output.

python3 bench.py judge examples/candidates/tail_triton.py
"""

import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def tail_kernel(y, out, multiplier, PLANE, BLOCK: tl.constexpr):
    # Which plane is mine? A plane is one channel of one sample.
    plane = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, PLANE, BLOCK):
        position = start + tl.arange(0, BLOCK)
        # What lies past the end of the plane belongs to the next one: read as 0.
        total += tl.load(y + plane * PLANE + position, mask=position < PLANE, other=0.0)
    tl.store(out + plane, tl.sum(total, axis=0) * multiplier / PLANE)


def multiply_gap(y, multiplier):
    """Mean over height and width of multiplier * y: [N, C, H, W] float32 -> [N, C, 1, 1]."""
    y = y.contiguous()
    n, c, h, w = y.shape
    out = torch.empty((n, c, 1, 1), device=y.device, dtype=y.dtype)
    tail_kernel[(n * c,)](y, out, float(multiplier), h * w, BLOCK=1024)
    return out


class ModelNew(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride, padding, output_padding, multiplier):
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
        )
        self.multiplier = multiplier

    def forward(self, x):
        return multiply_gap(self.conv_transpose(x), self.multiplier)
