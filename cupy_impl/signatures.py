"""What the kernels of a CUDA C++ source are called and take, read off its text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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


_KERNEL = r"__global__([^;{]*?)(\w+)\s*\(([^()]*)\)\s*\{"


def signatures(source: str) -> Iterator[Signature]:
    """The __global__ functions that a source defines, in order. Parameters' types may be templates, not functions."""
    for name in re.finditer(_KERNEL, source):
        parameters = re.sub(r"<[^>]*>", "", name[3]).split(",")
        yield Signature(name[2], name[1], tuple(text.strip() for text in parameters if text.strip()))


def with_constants(source: str, kernel: str, values: Sequence[int]) -> str:
    """The source with constants of the same types in place of a kernel's last parameters.

    It still takes them, under other names, so that it is launched as before; no line moves.
    """
    found = next((one for one in re.finditer(_KERNEL, source) if one[2] == kernel), None)
    count = found[3].count(",") + 1 if found else 0
    if not found or count < len(values):
        expected = f"expected a __global__ function {kernel} of {len(values)} parameters or more in the source"
        raise ValueError(f"kernel: {expected}, it has {count}")
    parameters = found[3].split(",")
    own, fixed = parameters[: count - len(values)], parameters[count - len(values) :]
    constants = "".join(f" constexpr {name.strip()} = {value};" for name, value in zip(fixed, values, strict=True))
    given = [re.sub(r"(\w+)(\s*)$", r"given_\1\2", parameter) for parameter in fixed]
    text = source[: found.start(3)] + ",".join([*own, *given]) + source[found.end(3) : found.end()]
    return text + constants + source[found.end() :]
