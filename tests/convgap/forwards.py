"""Models whose forwards do what a trace cannot see, and what is compared of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Model(nn.Module):
    """A layer, what else models have, and a forward that each test gives: `forward(self, x)`."""

    def __init__(self, ahead: Callable[..., Any]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3, 2, 1, 1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("whole", torch.tensor([2, 3, 4, 5]).reshape(4, 1, 1))
        self.register_buffer("mask", torch.tensor([True, False, True, True]).reshape(4, 1, 1))
        self.register_buffer("wide", torch.rand(4, 1, 1, dtype=torch.float64))
        self.register_buffer("zero_dim", torch.tensor(0.3, dtype=torch.float64))
        self.register_buffer("batch", torch.rand(2, 1, 1, 1))
        self.last: Any = None
        self.calls = 0
        self.factor: Any = 0.5
        self.ahead = ahead

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.ahead(self, x) if mask is None else self.ahead(self, x, mask)


@torch.no_grad()
def without_gradient(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3))


def under_no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.up(x)
    return (y * self.gain).mean((2, 3))


def partly_no_grad(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    with torch.no_grad():
        return y.mean((2, 3)) + x.sum()


def under_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (self.up(x) * 0.5).mean((2, 3))


def convolution_under_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = self.up(x)
    return (y * 0.5).mean((2, 3))


def without_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.pool(self.up(x.float()))


def dropout(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.up(x).mean((2, 3)), 0.5, self.training)


def dropout_before(self: Any, x: Tensor) -> Tensor:
    return self.up(F.dropout(x, 0.5, self.training)).mean((2, 3))


def dropout_between(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.up(x), 0.5, self.training).mean((2, 3))


def auxiliary(self: Any, x: Tensor) -> Any:
    y = self.up(x)
    pooled = y.mean((2, 3))
    return (pooled, y) if self.training else pooled


def other_way(self: Any, x: Tensor) -> Any:
    y = self.up(x)
    if not self.training:
        y = y.relu()
    return y.mean((2, 3))


def unpooled(self: Any, x: Tensor) -> Any:
    y = self.up(x)
    return y.mean((2, 3)) if self.training else {"y": [y]}


def randomly(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3)) * torch.rand(4) + random.random() + float(np.random.rand())


def random_scale(self: Any, x: Tensor) -> Tensor:
    return (self.up(x) * random.uniform(0.5, 1.5)).mean((2, 3))


def writes(self: Any, x: Tensor) -> Tensor:
    self.last = x * 2
    self.calls += 1
    return (self.up(x) * self.calls).mean((2, 3))


def keeps_output(self: Any, x: Tensor) -> Tensor:
    self.last = self.up(x)
    return self.last.mean((2, 3))


def optional(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    out = (self.up(x) * self.factor).mean((2, 3))
    return out if mask is None else out * mask


def normed(self: Any, x: Tensor) -> Tensor:
    return self.up(self.norm(x)).mean((2, 3))


def constants(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3)) + torch.arange(4.0)


def twice(self: Any, x: Tensor) -> Tensor:
    return self.up(x).mean((2, 3)) + self.up(-x).relu().mean((2, 3))


def in_place_before(self: Any, x: Tensor) -> Tensor:
    x = self.relu(x - 0.5)
    return self.up(x).mean((2, 3))


@torch.no_grad()
def in_place_between(self: Any, x: Tensor) -> Tensor:
    x = x + 0
    y = self.up(x)
    self.relu(x.sub_(0.5))
    return y.mean((2, 3)) + x.sum()


def in_place_after(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    out = self.pool(y)
    out += 1
    return out


def asked(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    if isinstance(y, Tensor) and torch.is_tensor(x) and self.calls == 0:
        assert y.shape[1] == 4 and y.dim() == y.ndim == 4 and y.size(0) == len(x)
        return (y * 0.5).mean((2, 3))
    return x


def numpy_scale(self: Any, x: Tensor) -> Tensor:
    return (np.float32(0.5) * self.up(x)).mean((2, 3))


def times_itself(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    y *= 0.5
    y /= 3
    y *= self.whole
    return y.mean((2, 3))


def times_itself_seen(self: Any, x: Tensor) -> Tensor:
    y = z = self.up(x)
    w = y * 3
    y *= 0.5
    return y.mean((2, 3)) + z.mean((2, 3)) + w.mean((2, 3))


def times_itself_wider(self: Any, x: Tensor) -> Tensor:
    y = self.up(x)
    y *= self.wide
    return y.mean((2, 3))


def by_name(self: Any, x: Tensor) -> Tensor:
    return torch.mean(input=self.up(x).mul(2).div(3), dim=(2, 3))


def scaled_by(name: str) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.pool(getattr(self, name) * self.up(x))

    return forward


SCALES = ("gain", "whole", "mask", "wide", "zero_dim", "batch")
KEPT: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        without_gradient, under_no_grad, partly_no_grad, under_autocast, convolution_under_autocast, without_autocast,
        dropout, dropout_before, dropout_between, auxiliary, other_way, unpooled, randomly, random_scale, writes,
        keeps_output, optional, normed, constants, twice, in_place_before, in_place_between, in_place_after, asked,
        numpy_scale, times_itself, times_itself_seen, times_itself_wider, by_name,
    )
} | {f"scaled by {name}": scaled_by(name) for name in SCALES}  # fmt: skip


def make(ahead: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    return Model(ahead)


def data(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def leaves(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def outcome(model: nn.Module, *more: Any) -> list[Tensor]:
    """Outputs, gradients and what the generators draw next."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    x = data().requires_grad_()
    out = leaves(model(x, *more))
    assert all(type(leaf) is Tensor for leaf in out)
    result = [leaf.detach() for leaf in out]
    ends = [leaf for leaf in out if leaf.requires_grad]
    if ends:
        wanted = [x, *model.parameters()]
        total: Any = sum(end.float().square().sum() for end in ends)
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        result += [torch.zeros_like(w) if g is None else g for g, w in zip(grads, wanted, strict=True)]
    return [
        *result,
        torch.tensor(len(ends)),
        torch.rand(2),
        torch.tensor([random.random(), np.random.rand()]),
    ]
