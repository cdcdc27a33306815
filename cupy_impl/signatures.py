"""What the kernels of a CUDA C++ source are called and take, read off its text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """One __global__ function. attributes: what stands before its name; parameters: each one's declaration."""

    name: str
    attributes: str
    parameters: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(re.findall(r"\w+", parameter)[-1] for parameter in self.parameters)

    @property
    def pointers(self) -> dict[int, str]:
        """Positions and names of the parameters that are pointers."""
        names = enumerate(zip(self.parameters, self.names, strict=True))
        return {at: name for at, (parameter, name) in names if "*" in parameter}


def signatures(source: str) -> Iterator[Signature]:
    """The __global__ functions that a source defines, in order. Parameters' types may be templates, not functions."""
    for name in re.finditer(r"__global__([^;{]*?)(\w+)\s*\(([^()]*)\)\s*\{", source):
        parameters = re.sub(r"<[^>]*>", "", name[3]).split(",")
        yield Signature(name[2], name[1], tuple(text.strip() for text in parameters if text.strip()))
