"""A kernel for the second operator, judged as kernels for this project's own are: one program for each row.

python3 bench.py judge --operator examples/second_operator/softmax.py examples/candidates/softmax_triton.py
"""

import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def softmax_kernel(x, out, COLUMNS, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    # What lies past the end of the row belongs to the next one: read as -inf, whose exponential is 0.
    value = tl.load(x + row * COLUMNS + column, mask=column < COLUMNS, other=float("-inf"))
    value = tl.exp(value - tl.max(value, axis=0))
    tl.store(out + row * COLUMNS + column, value / tl.sum(value, axis=0), mask=column < COLUMNS)


class ModelNew(nn.Module):
    def forward(self, x):
        x = x.contiguous()
        out = torch.empty_like(x)
        softmax_kernel[(x.shape[0],)](x, out, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
        return out
