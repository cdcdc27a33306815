"""An operator of one's own for the lab: the softmax of each row, in Triton and in CUDA C++ (docs/design.md).

python3 bench.py check --operator examples/second_operator/softmax.py
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from cupy_impl.interpret import Module
from harness.cases.case import Case
from harness.cases.inputs import Arguments
from harness.numerics.budget import FORMATS, smallest_normal
from harness.numerics.truth import Truth, numpy_of
from harness.operators.contract import Implementation, Operator, as_backend

BLOCK = 256  # elements that a program of Triton takes in one step
CUDA = r"""
extern "C" __global__ void softmax(const float* x, float* out, int columns, long long row, long long column) {
    x += blockIdx.x * row;  // one warp, one row
    out += (long long)blockIdx.x * columns;
    float largest = x[0], total = 0.0f;
    for (int c = threadIdx.x; c < columns; c += 32) largest = x[c * column] > largest ? x[c * column] : largest;
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        float other = __shfl_xor_sync(~0u, largest, lanes);
        largest = other > largest ? other : largest;
    }
    for (int c = threadIdx.x; c < columns; c += 32) total += expf(x[c * column] - largest);
    for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(~0u, total, lanes);
    for (int c = threadIdx.x; c < columns; c += 32) out[c] = expf(x[c * column] - largest) / total;
}
"""


@triton.jit
def softmax_kernel(x, out, columns, row, column, BLOCK: tl.constexpr):
    x += tl.program_id(0).to(tl.int64) * row
    out += tl.program_id(0).to(tl.int64) * columns
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        c = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(x + c * column, mask=c < columns, other=float("-inf")))
    top = tl.max(largest, axis=0)
    for start in range(0, columns, BLOCK):
        c = start + tl.arange(0, BLOCK)
        total += tl.exp(tl.load(x + c * column, mask=c < columns, other=float("-inf")) - top)
    for start in range(0, columns, BLOCK):
        c = start + tl.arange(0, BLOCK)
        value = tl.exp(tl.load(x + c * column, mask=c < columns, other=0.0) - top) / tl.sum(total, axis=0)
        tl.store(out + c, value, mask=c < columns)


@cache
def cuda_kernel(on_gpu):
    if not on_gpu:  # the interpreter, which has no <math.h>
        return Module(CUDA, ("-Dexpf=__builtin_expf",)).function("softmax")
    import cupy

    return cupy.RawKernel(CUDA, "softmax")


def by_triton(inputs):
    x, out = inputs.x, torch.empty(inputs.x.shape, device=inputs.x.device)
    if len(x):
        softmax_kernel[(len(x),)](x, out, x.shape[1], *x.stride(), BLOCK=BLOCK)
    return out


def by_cuda(inputs):
    x, out = inputs.x, torch.empty(inputs.x.shape, device=inputs.x.device)
    numbers = np.int32(x.shape[1]), *map(np.int64, x.stride())
    if len(x) and x.is_cuda:
        import cupy

        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            cuda_kernel(True)((len(x),), (32,), (x.data_ptr(), out.data_ptr(), *numbers))
    elif len(x):
        cuda_kernel(False)((len(x),), 32, (x, out, *numbers))
    return out


@dataclass(frozen=True)
class Rows:
    rows: int
    columns: int
    in_shape = out_shape = property(lambda self: (self.rows, self.columns))

    def compulsory_bytes(self, itemsize):
        return 2 * itemsize * self.rows * self.columns


class Softmax(Operator):
    name, sizes = "softmax", Rows
    dtypes, references = ("float32",), ("eager",)
    layouts = ("contiguous", "expanded", "sliced", "cropped", "offset", "transposed")
    cases = {  # noqa: RUF012
        "headline": (Case("softmax/headline", Rows(8192, 2048), "64 MiB each way", twin=Rows(3, 1000)),),
        "edge": (
            Case("softmax/edge/1x1", Rows(1, 1), "always 1"),
            Case("softmax/edge/prime", Rows(5, 1031), "no size divides a block", values="normal"),
            Case("softmax/edge/rows0", Rows(0, 7), "an empty batch is an answer, not an error"),
            Case("softmax/edge/huge", Rows(3, 300), "one 1, else 0: nothing overflows", values="huge"),
            Case("softmax/edge/nonfinite", Rows(4, 40), "Inf and NaN reach no other row", values="nonfinite"),
        ),
    }
    implementations = {  # noqa: RUF012
        # A lane's terms, then a tree of the lanes.
        "triton": Implementation(
            by_triton, "Triton", lambda p: -(-p.columns // BLOCK) + 8, unusable=as_backend("triton")
        ),
        "cupy": Implementation(by_cuda, "CUDA C++", lambda p: -(-p.columns // 32) + 5, unusable=as_backend("cupy")),
        "eager": Implementation(lambda i: torch.softmax(i.x, 1), "torch.softmax", lambda p: p.columns, product=False),
    }

    def inputs(self, problem, draw):
        return Arguments(draw.x(problem.in_shape))

    def truth(self, problem, inputs):
        x = numpy_of(inputs.x).astype(np.float64)
        with np.errstate(all="ignore"):
            t = x - x.max(axis=1, keepdims=True)
            p = np.exp(t) / np.exp(t).sum(axis=1, keepdims=True)
            # Three roundings of t (the difference, log2(e), their product) are relative errors of exp(t), above the
            # line and, weighted, below it. Two exp2 and a division are off by 2 ulp each, four roundings.
            steep = np.where(p > 0, abs(t), 0)
            roundings = 3 * (steep + (p * steep).sum(axis=1, keepdims=True)) + 3 * 4
        # A result below the smallest normal number may be flushed, and so may each term of a sum of at least 1.
        flushed = (2 + problem.columns) * smallest_normal("float32")
        return Truth(p, p, FORMATS["float32"].unit_roundoff * p * roundings + flushed, problem.columns)

    def depth(self, problem):
        return problem.columns

    def draw(self, rng):
        return Rows(rng.randint(1, 4), rng.choice((1, 2, 31, 255, 256, 257, 700)))


OPERATOR = Softmax()
