"""Two linear layers with a ReLU between them."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, width, hidden, classes):
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def get_inputs():
    return [torch.randn(32, 128)]


def get_init_inputs():
    return [128, 256, 10]
