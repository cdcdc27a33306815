"""Rewrite a model with convgap.fuse, and see what was replaced, what was left, and why.

python examples/fuse_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import convgap


class Block(nn.Module):
    """A residual block in the style of torchvision's ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn1(self.conv1(x)))


class SegmentationNet(nn.Module):
    """A small backbone, a decoder with a transposed convolution, and two heads that end in a global pool."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.layer1 = nn.Sequential(Block(8), Block(8))
        # Followed by a ReLU: its output is needed, so it stays.
        self.decoder = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ReLU())
        self.presence = nn.ConvTranspose2d(8, classes, 3, stride=2, padding=1, output_padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.style = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.decoder(self.layer1(self.stem(x)))
        presence = torch.flatten(self.avgpool(self.presence(x) * 0.5), 1)
        style = (self.style(x) * self.gain).mean((2, 3))
        return presence, style


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = SegmentationNet().eval().to(device, torch.float64)
    fusion = convgap.fuse(model)
    print(fusion)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64, device=device)
    with torch.no_grad():
        differences = [float((a - b).abs().max()) for a, b in zip(model(x), fusion.model(x), strict=True)]
        print(f"largest difference {max(differences):.1e}")
        print(convgap.explain(fusion.model, x))


if __name__ == "__main__":
    main()
