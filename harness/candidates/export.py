"""One self-contained file with a ModelNew, made of the project's own Triton sources.

In this order: imports, kernels, wrappers, the class. Kernels are the text of triton_impl/kernels.py. Wrappers
are the project's own launch plan and order of launches (triton_impl, runtime/execute.py), made plain by
harness/candidates/flatten.py; written here is only what holds them together.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from harness.errors import UsageError

STRATEGIES = ("collapsed", "tail")
SUFFIX = "_kernel"


# --- the file ---

_IMPORTS = """\
import torch
import torch.nn as nn
import triton
import triton.language as tl
"""

_DOC = {
    "collapsed": '''\
"""ConvTranspose2d, times a number, averaged over height and width, without the convolution's output.

Everything is linear, so a kernel tap contributes its weight times the sum of the input elements that it sends
inside the output: the sum over a rectangle of rows and columns (its band). One pass over the input finds the
sums of all bands, and a small contraction with the weight gives the answer. Forward only; float32, float16,
bfloat16 (accumulated in float32) and float64, contiguous, channels_last and other strides.
"""
''',
    "tail": '''\
"""ConvTranspose2d by the framework, then the multiplication and the average over height and width in one kernel.

Forward only; float32, float16, bfloat16 (accumulated in float32) and float64, contiguous, channels_last and
other strides.
"""
''',
}

_SUPPORT = '''\
def gcd(*values):
    """Greatest common divisor of numbers >= 0."""
    result = 0
    for value in values:
        while value:
            result, value = value, result % value
    return result


def launcher(special, grid):
    """launch(device, stream, *arguments) of a kernel on a grid; the stream is the current one.

    The kernel is compiled for the types, constants and multiples that the plan knows, and not once more for what a
    launch would guess from its arguments.
    """
    kernel, ready = special["kernel"], {}
    constants = dict(special["constants"])

    def launch(device, stream, *arguments):
        if triton.knobs.runtime.interpret:
            kernel[grid](*arguments, **constants)
            return
        run = ready.get(device)
        if run is None:
            run = ready[device] = specialization_compile(special)[(*grid, 1)]
        run(*arguments, *constants.values())

    return launch


def prepared(kept, prepare, *arguments):
    """prepare(*arguments), worked out once for each distinct set of arguments."""
    key = prepare, *(tuple(a.values()) if isinstance(a, dict) else a for a in arguments)
    if key not in kept:
        kept[key] = prepare(*arguments)
    return kept[key]


def zeroed_counters(kept, count, device, stream):
    """int32 zeros for one launch, which leaves zeros behind: launches on one stream share them.

    A captured call may be replayed at any time on any stream, so it gets counters of its own: from zeros made
    in an earlier eager call, or from memory that the graph itself zeroes.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        spare = kept.get(("spare", device))
        if spare is None or spare.numel() < count:
            return torch.zeros(count, dtype=torch.int32, device=device)
        kept["spare", device] = spare[count:]
        return spare[:count]
    own = kept.get(("counters", device, stream))
    if own is None or own.numel() < count:
        if ("spare", device) not in kept:
            kept["spare", device] = torch.zeros(1 << 20, dtype=torch.int32, device=device)
            # Graphs on other streams rely on these zeros.
            torch.cuda.synchronize(device)
        own = kept["counters", device, stream] = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
    return own


def current_stream(x):
    """Raw handle of the current stream of the tensor's device."""
    return triton.runtime.driver.active.get_current_stream(x.device.index) if x.is_cuda else 0
'''

_ENTRY = {
    "collapsed": '''\
def conv_transpose2d_multiply_gap(x, weight, bias, multiplier, stride, padding, output_padding, kept):
    """mean over height and width of multiplier * conv_transpose2d(x): [N, C_in, H, W] -> [N, C_out, 1, 1].

    `kept` lasts from call to call: launch plans and counters.
    """
    if x.dim() != 4 or x.shape[1] != weight.shape[0] or x.dtype != weight.dtype or x.device != weight.device:
        raise ValueError(
            f"x: expected [N, {weight.shape[0]}, H, W] of {weight.dtype} on {weight.device}, "
            f"got {tuple(x.shape)} of {x.dtype} on {x.device}"
        )
    n, c_in, h, w = x.shape
    problem = dict(
        n=n, c_in=c_in, c_out=weight.shape[1], h=h, w=w, kernel=tuple(weight.shape[2:]), stride=tuple(stride),
        padding=tuple(padding), output_padding=tuple(output_padding), dilation=(1, 1), groups=1,
        bias=bias is not None,
    )
    size = chain_out_size(problem, 0), chain_out_size(problem, 1)
    if min(size) < 1:
        raise ValueError(f"x: expected a convolution output of at least 1 x 1, {h} x {w} gives {size}")
    with torch.cuda.device_of(x):
        return chain(
            kept, problem, x, weight.detach().contiguous(), None if bias is None else bias.detach(),
            multiplier, None, current_stream(x),
        )
''',
    "tail": '''\
def multiply_gap(y, multiplier, kept):
    """mean over height and width of multiplier * y: [N, C, H, W] -> [N, C, 1, 1].

    `kept` lasts from call to call: launch plans and counters.
    """
    with torch.cuda.device_of(y):
        return tail(kept, y, multiplier, None, current_stream(y))
''',
}

_CLASS = '''\
class ModelNew(nn.Module):
    """The average over height and width of multiplier * ConvTranspose2d(x): [N, in, H, W] -> [N, out, 1, 1]."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride, padding, output_padding, multiplier
    ):
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, output_padding=output_padding
        )
        self.multiplier = multiplier
        self.kept = {}

    def forward(self, x):
@FORWARD@
'''

_FORWARD = {
    "collapsed": """\
        conv = self.conv_transpose
        return conv_transpose2d_multiply_gap(
            x, conv.weight, conv.bias, self.multiplier, conv.stride, conv.padding, conv.output_padding, self.kept
        )""",
    "tail": """\
        return multiply_gap(self.conv_transpose(x).detach(), self.multiplier, self.kept)""",
}


def source(strategy: str = "collapsed") -> str:
    """Text of the file. ValueError for an unknown strategy."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {STRATEGIES}, got {strategy!r}")
    try:
        from harness.candidates.flatten import FlattenError, flatten
        from runtime import execute  # pyright: ignore[reportAttributeAccessIssue]
        from triton_impl import launch
    except ImportError as error:
        raise UsageError(f"the file is made of the Triton kernels: {error}") from None
    root = {"collapsed": execute.chain, "tail": execute.tail}[strategy]
    wrappers = flatten([launch.Specialization.compile, root], _scope())
    names = re.findall(rf"\b(\w+){SUFFIX}\b", wrappers)
    body = f"{_SUPPORT}\n\n{wrappers}\n\n\n{_ENTRY[strategy]}"
    class_ = _CLASS.replace("@FORWARD@", _FORWARD[strategy])
    text = "\n\n".join((_DOC[strategy] + "\n" + _IMPORTS, kernel_text(set(names)), body, class_))
    names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FlattenError(f"defined twice in the exported file: {', '.join(sorted(twice))}")
    return _without_unused(text)


def _scope() -> Any:
    from harness.candidates.flatten import Scope
    from reference import problem
    from runtime import counters, layout, prepared  # pyright: ignore[reportAttributeAccessIssue]
    from triton_impl import kernels, launch, plan  # pyright: ignore[reportAttributeAccessIssue]

    found = [
        kind
        for module in (problem, layout, prepared, plan, launch)
        for kind in vars(module).values()
        if isinstance(kind, type)
        and kind.__module__ == module.__name__
        and hasattr(kind, "__dataclass_fields__")
    ]
    launched = {
        id(kernel): name + SUFFIX for name, kernel in vars(kernels).items() if hasattr(kernel, "arg_names")
    }
    return Scope(
        dataclasses=[kind for kind in found if kind is not launch.Launch],
        calls={launch.Launch: "launcher"},
        kernels=launched,
        provided={
            id(counters.take): ("zeroed_counters", None),
        },
        omitted=frozenset({"depth"}),
        keeping=frozenset({"kernels"}),
        keeper=launch,
        keepers=frozenset({"zeroed_counters"}),
        prefixes={plan.__name__: "plan_", problem.__name__: "problem_"},
    )


def kernel_text(names: set[str]) -> str:
    """The launched kernels of these names and the helpers that they call, comments included, in house order."""
    from triton_impl import kernels

    assert kernels.__file__ is not None
    text = Path(kernels.__file__).read_text(encoding="utf-8")
    lines = text.splitlines()
    defined = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    needed: set[str] = set()
    todo = [name for name in names if name in defined]
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            inner = ast.walk(defined[name])
            todo += [n.id for n in inner if isinstance(n, ast.Name) and n.id in defined]
    pieces = []
    for name, node in defined.items():
        if name not in needed:
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        piece = "\n".join(lines[first - 1 : node.end_lineno])
        if name in names:
            piece = renamed(piece, name)
        pieces.append(piece)
    return "\n\n\n".join(pieces) + "\n"


def renamed(piece: str, name: str) -> str:
    """A launched kernel under its name in the file, its parameters lined up again."""
    head, end, body = piece.partition("):")
    shift = " " * len(SUFFIX)
    head = head.replace(f"def {name}(", f"def {name}{SUFFIX}(", 1).replace("\n ", f"\n{shift} ")
    return head + end + body


def _without_unused(text: str) -> str:
    """The file without helper functions that nothing in it calls."""
    tree = ast.parse(text)
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    lines = text.splitlines()
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name not in used and not node.decorator_list:
            assert node.end_lineno is not None
            del lines[node.lineno - 1 : node.end_lineno + 2]
    return "\n".join(lines) + "\n"
