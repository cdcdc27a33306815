"""Train a small model with two heads, step by step and fused: the same losses, and no activation of y's size.

An encoder makes features; a generator head upsamples them, scales by a learned factor per channel and
pools (what a discriminator's or a style encoder's summary does); a classifier head upsamples, scales by
a number and pools to logits.

    python examples/train.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convgap


class Eager(nn.Module):
    """The model as one writes it first."""

    def __init__(self, features: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, features, 3, padding=1), nn.Tanh())
        self.generator = nn.ConvTranspose2d(features, 4, 4, stride=2, padding=1)
        self.gain = nn.Parameter(torch.full((4, 1, 1), 0.7))
        self.classifier = nn.ConvTranspose2d(features, classes, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        summary = (self.generator(h) * self.gain).mean((2, 3))
        logits = (self.classifier(h) * 0.5).mean((2, 3))
        return summary, logits


class Fused(Eager):
    """The same parameters; the two heads are one operator call each."""

    backend = "auto"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        summary = convgap.conv_transpose2d_multiply_gap(
            h, self.generator.weight, self.generator.bias, multiplier=self.gain, stride=2, padding=1,
            backend=self.backend,
        )  # fmt: skip
        logits = convgap.conv_transpose2d_multiply_gap(
            h, self.classifier.weight, self.classifier.bias, multiplier=0.5, stride=2, padding=1,
            output_padding=1, backend=self.backend,
        )  # fmt: skip
        return summary.flatten(1), logits.flatten(1)


def train(model: nn.Module, steps: int, device: torch.device, dtype: torch.dtype = torch.float64) -> list[float]:
    """Losses of `steps` steps of SGD with momentum on seeded data."""
    torch.manual_seed(0)
    x = torch.rand(8, 2, 7, 6, dtype=dtype).to(device)
    target, labels = torch.rand(8, 4, dtype=dtype).to(device), torch.randint(3, (8,)).to(device)
    model.to(device, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(steps):
        summary, logits = model(x)
        loss = F.mse_loss(summary, target) + F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    eager = Eager()
    fused = Fused()
    fused.load_state_dict(eager.state_dict())
    before, after = train(eager, 20, device), train(fused, 20, device)
    for step in range(0, 20, 5):
        print(f"step {step:2d}  loss step by step {before[step]:.12f}  fused {after[step]:.12f}")
    print(f"largest difference {max(abs(a - b) for a, b in zip(before, after, strict=True)):.1e}")


if __name__ == "__main__":
    main()
