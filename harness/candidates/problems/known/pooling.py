"""Average pooling."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, kernel, stride):
        super().__init__()
        self.pool = nn.AvgPool2d(kernel, stride)

    def forward(self, x):
        return self.pool(x)


def get_inputs():
    return [torch.randn(4, 8, 25, 25)]


def get_init_inputs():
    return [3, 2]
