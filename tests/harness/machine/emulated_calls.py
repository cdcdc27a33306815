"""Calls on the CPU with Triton's kernels as compiled for sm_89: `python -m tests.harness.machine.emulated_calls DTYPE`.

For a process in which Triton compiles. Prints JSON: what was wrong with each call, and which kernels ran.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.cases.spelling import parse
from reference.problem import Chain, Tail
from runtime import call
from tests.harness.machine.emulated import emulated
from triton_impl import prepare

SCALE = 0.5
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second column": lambda x: torch.stack([x, x + 9], -1).flatten(3)[..., ::2],
    "cropped": lambda x: F.pad(x, (1, 2, 1, 1), value=9)[:, :, 1:-1, 1:-2],
    "offset by one element": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:, :1].expand(x.shape),
}
PROBLEMS = {
    "tail:2,3,9,10": "small planes in a run",
    "tail:1,2,64,64": "whole planes",
    "tail:1,1,300,300": "a plane in parts",
    "chain:1,3,4,8,8,k3,s2,p1,op1": "9 taps in 4 bands, which are loaded one by one",
    "chain:2,4,4,8,8,k4,s2,p1": "16 taps in 9 bands, in accesses of 16 bytes",
    "chain:2,8,4,8,8,k2,s2": "4 taps in one band",
    "chain:2,3,4,6,11,k2x5,s3x1,p1x2,op2x0,d1x2": "other numbers along each axis",
    "chain:2,4,4,9,8,k5,s2,p2,op1": "25 taps, each multiplied by itself",
    "chain:2,4,4,1,1,k4": "a latent, in one launch",
    "chain:2,6,8,5,5,k3,p1,g2": "groups",
    "chain:2,3,4,1,1,k3,s2,p1,d3": "bands that hold nothing",
    "chain:20,5,3,4,4,k3,s2,p1,op1": "more samples than a program has at least",
    "chain:2,2,3,40,40,k3,s2,p1,op1": "in one launch, rows in steps",
}
LAID_OUT = ("tail:2,3,9,10", "chain:2,4,3,9,10,k3,s2,p1,op1")


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """0 to 4: their sums are exact, so an answer is right but for its last rounding."""
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def complaints(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """What differs by more than two roundings of the result, the mean's and the dtype's; in float64 by more than 64,
    for torch works out what is wanted in float64 too, and rounds some tens of sums."""
    wrong = []
    for name, value in got.items():
        rtol = (64 if value.dtype == torch.float64 else 2) * torch.finfo(value.dtype).eps
        if not torch.allclose(value.double(), wanted[name], rtol=rtol, atol=0, equal_nan=True):
            wrong.append(f"{name}: {value.flatten()[:4].tolist()}, not {wanted[name].flatten()[:4].tolist()}")
    return "; ".join(wrong)


def tail(p: Tail, y: Tensor) -> str:
    got = call.tail(prepare, y, SCALE, None, 0)
    return complaints({"output": got}, {"output": SCALE * y.double().mean((2, 3), keepdim=True)})


def chain(p: Chain, x: Tensor, *, gradients: bool = True) -> str:
    """Forward in as few launches as there are, in two, and both gradients."""
    weight = numbers(p.c_in, p.c_out // p.groups, *p.kernel, dtype=x.dtype, seed=1)
    bias = numbers(p.c_out, dtype=x.dtype, seed=2) if p.bias else None
    sums = call.band_sums(prepare, p, x, 0)
    got = {
        "output": call.chain(prepare, p, x, weight, bias, SCALE, None, 0),
        "output in two launches": call.contract(prepare, p, sums, weight, bias, SCALE, None, 0),
    }
    inputs = x.double().requires_grad_(), weight.double().requires_grad_()
    convolved = F.conv_transpose2d(
        *inputs,
        None if bias is None else bias.double(),
        p.stride,
        p.padding,
        p.output_padding,
        p.groups,
        p.dilation,
    )
    out = SCALE * convolved.mean((2, 3), keepdim=True)
    wanted: dict[str, Any] = dict.fromkeys(got, out.detach())
    if gradients:
        grad = numbers(p.n, p.c_out, 1, 1, dtype=sums.dtype, seed=3)
        d = call.expand(prepare, p, grad, weight, SCALE, 0)
        got["gradient of x"] = call.band_fill(prepare, p, d, torch.empty_like(x), 0)
        dw, db = call.weight_grad(prepare, p, grad, sums, SCALE, x.dtype, p.bias, 0)
        got["gradient of weight"] = dw
        if db is not None:
            got["gradient of bias"] = db
            wanted["gradient of bias"] = SCALE * grad.double().sum((0, 2, 3))
        found = torch.autograd.grad(out, inputs, grad.double())
        wanted |= dict(zip(("gradient of x", "gradient of weight"), found, strict=True))
    return complaints(got, wanted)


WAYS = {"": {}, ", backwards": {"backwards": True}, ", for just these sizes": {"sized": True}}


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], str], dict[str, bool]]]:
    """(name, call, options of `emulated`). float32 has every problem; the others have every layout."""
    texts = [(text, "contiguous") for text in PROBLEMS] if dtype == torch.float32 else []
    for text, layout in [*texts, *((text, layout) for text in LAID_OUT for layout in LAYOUTS)]:
        p = parse(text)
        x = LAYOUTS[layout](numbers(*p.in_shape, dtype=dtype))
        call_: Callable[[], str] = lambda p=p, x=x: tail(p, x) if isinstance(p, Tail) else chain(p, x)  # noqa: E731
        for way, options in WAYS.items() if layout == "contiguous" else [("", {})]:
            yield f"{text}, {layout}{way}", call_, options
    for text in ("chain:2,3,4,8,8,k3,s2,p1,op1", "chain:2,3,4,8,8,k4,s2,p1", "chain:2,4,4,1,1,k4"):
        p = parse(text)
        wild = numbers(*p.in_shape, dtype=dtype)
        wild[0, 1, 0, 0] = torch.inf
        yield f"{text}, an Inf", lambda p=p, x=wild: chain(p, x, gradients=False), {}


def main(name: str) -> None:
    found, ran = {}, set()
    for name_, call_, options in calls(getattr(torch, name)):
        with emulated(89, **options) as kernels:
            try:
                found[name_] = call_()
            except (RuntimeError, ValueError, LookupError) as error:
                found[name_] = f"{type(error).__name__}: {error}"
        ran |= set(kernels)
    print(json.dumps({"wrong": {k: v for k, v in found.items() if v}, "calls": len(found), "ran": sorted(ran)}))


if __name__ == "__main__":
    main(sys.argv[1])
