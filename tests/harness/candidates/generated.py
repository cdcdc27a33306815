"""Candidates in bulk, as a program that searches for kernels makes them: right, slow, wrong and cheating."""

from __future__ import annotations

from pathlib import Path

PROBLEM = """
import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x).mean(dim=1)


def get_inputs():
    return [torch.randn(8, 24)]


def get_init_inputs():
    return []
"""
CANDIDATE = """
import torch
from torch import nn

NUMBER = {number}


class ModelNew(nn.Module):
    def forward(self, x):
        {body}
"""
KINDS = {
    "right": ("accepted", ("return x.clamp(min=0).sum(1) / 24", "return (x * (x > 0)).mean(1)")),
    "slow": ("accepted", ("for _ in range(20): y = torch.relu(x).double().mean(1).float()\n        return y",)),
    "wrong": ("wrong", ("return torch.relu(x).sum(1) / 23", "return x.mean(1)", "return torch.relu(x[:, :23]).mean(1)",
                        "return torch.relu(x).half().mean(1).float()", "return torch.zeros_like(x[:, 0])")),
    "cheat": ("refused", ("x.relu_(); return x.mean(1)", "torch.rand(1); return torch.relu(x).mean(1)",
                          "self.y = getattr(self, 'y', torch.relu(x).mean(1)); return self.y.clone()")),
    "broken": ("crashed", ("return torch.relu(y).mean(1)",)),
}  # fmt: skip
"""By kind: the verdict, and the bodies that take turns."""


def write(folder: Path, count: int) -> dict[str, str]:
    """`count` candidates, their kinds in turn; each file's name and the verdict that it deserves."""
    deserved = {}
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        verdict, bodies = KINDS[kind]
        body = bodies[number // len(KINDS) % len(bodies)]
        name = f"{number:03d}_{kind}.py"
        (folder / name).write_text(CANDIDATE.format(number=number, body=body))
        deserved[name] = verdict
    return deserved
