"""One self-contained file with a ModelNew, made of the project's own Triton sources.

In this order: imports, kernels, wrappers, the class. Kernels are the text of triton_impl/kernels.py. Wrappers
are the project's own planning and order of launches (triton_impl, runtime/call.py), brought along by planning.py;
written here is only what holds them together.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from harness.candidates.planning import functions
from harness.errors import UsageError

STRATEGIES = ("collapsed", "tail")
CHAIN = ("band_sums_contract", "band_sums", "contract")
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
inside the output: the sum over a rectangle of rows and columns (its band). One reading of the input finds the
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
def Space(**names):
    """An object with these attributes."""
    space = lambda: None  # noqa: E731
    space.__dict__.update(names)
    return space


def record(kind):
    """The class with its fields as parameters of its constructor, equal and hashed by them."""
    fields = [name for name in vars(kind).get("__annotations__", ()) or kind.__annotations__]

    def __init__(self, *values, **named):
        defaults = {name: getattr(kind, name) for name in fields if hasattr(kind, name)}
        vars(self).update(defaults | dict(zip(fields, values)) | named)

    kind.__init__ = __init__
    kind.__eq__ = lambda self, other: vars(self) == vars(other)
    kind.__hash__ = lambda self: hash(tuple(vars(self)[name] for name in fields))
    return kind


def cached(function):
    """The function, which works out each answer once."""
    kept = {}

    def wrapper(*arguments):
        if arguments not in kept:
            kept[arguments] = function(*arguments)
        return kept[arguments]

    return wrapper


def bisect_right(values, value):
    """How many of the rising values are at most `value`."""
    return sum(each <= value for each in values)


def gcd(*values):
    """Greatest common divisor of numbers >= 0."""
    result = 0
    for value in values:
        while value:
            result, value = value, result % value
    return result


def ceil(value):
    """The least whole number that is not below the value."""
    return -int(-value // 1)


def launcher(special, grid, sizes):
    """launch(device, stream, *arguments) of a kernel on a grid; the stream is the current one.

    The kernel is compiled for the types, constants and multiples that the plan knows, and not once more for what a
    launch would guess from its arguments.
    """
    kernel, ready = special.kernel, {}
    constants = dict(special.constants)
    order = [kernel.arg_names.index(name) for name, _ in special.types]
    fixed = [kernel.arg_names.index(name) for name in constants]

    def launch(device, stream, *arguments):
        values = dict(zip(order, (*arguments, *sizes))) | dict(zip(fixed, constants.values()))
        values = [values[place] for place in range(len(values))]
        if triton.knobs.runtime.interpret:
            kernel[grid](*values)
            return
        run = ready.get(device)
        if run is None:
            run = ready[device] = special.compile()[(*grid, 1)]
        run(*values)

    return launch


def plan_workspace():
    """Memory that a launch works in: partial sums, and counters that are zero before it and after it."""
    kept = {}

    def zeros(count, device, stream):
        # Launches on one stream share counters. A captured call may be replayed at any time on any stream, so it gets
        # counters of its own: from zeros made in an earlier eager call, or from memory that the graph itself zeroes.
        if device.type != "cuda":
            return torch.zeros(count, dtype=torch.int32, device=device)
        if torch.cuda.is_current_stream_capturing():
            spare = kept.get(device)
            if spare is None or spare.numel() < count:
                return torch.zeros(count, dtype=torch.int32, device=device)
            kept[device] = spare[count:]
            return spare[:count]
        own = kept.get((device, stream))
        if own is None or own.numel() < count:
            if device not in kept:
                kept[device] = torch.zeros(1 << 20, dtype=torch.int32, device=device)
                # Graphs on other streams rely on these zeros.
                torch.cuda.synchronize(device)
            own = kept[device, stream] = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
        return own

    def of(made, output, stream):
        acc = torch.float64 if output.dtype == torch.float64 else torch.float32
        partials = torch.empty(made.partials, dtype=acc, device=output.device) if made.partials else output
        return partials, zeros(made.counters, output.device, stream) if made.counters else output

    return Space(of=of)


def plan_refused():
    """Nothing is refused here: what does not compile raises."""
    return Space(check=lambda launch, device: None, note=lambda launch, device, error: None)


def current_stream(x):
    """Raw handle of the current stream of the tensor's device."""
    return triton.runtime.driver.active.get_current_stream(x.device.index) if x.is_cuda else 0
'''

_ENTRY = {
    "collapsed": '''\
def conv_transpose2d_multiply_gap(x, weight, bias, multiplier, stride, padding, output_padding, kept):
    """mean over height and width of multiplier * conv_transpose2d(x): [N, C_in, H, W] -> [N, C_out, 1, 1].

    `kept` lasts from call to call: the launches that are planned, and their counters.
    """
    if x.dim() != 4 or x.shape[1] != weight.shape[0] or x.dtype != weight.dtype or x.device != weight.device:
        raise ValueError(
            f"x: expected [N, {weight.shape[0]}, H, W] of {weight.dtype} on {weight.device}, "
            f"got {tuple(x.shape)} of {x.dtype} on {x.device}"
        )
    if not kept:
        kept.update(problem=plan_problem(), prepare=plan_prepare(), call=plan_call())
    n, c_in, h, w = x.shape
    problem = kept["problem"].Chain(
        n, c_in, weight.shape[1], h, w, tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(output_padding),
        bias=bias is not None,
    )
    size = problem.out_size(0), problem.out_size(1)
    if min(size) < 1:
        raise ValueError(f"x: expected a convolution output of at least 1 x 1, {h} x {w} gives {size}")
    bias = None if bias is None else bias.detach()
    with torch.cuda.device_of(x):
        return kept["call"].chain(
            kept["prepare"], problem, x, weight.detach().contiguous(), bias, multiplier, None, current_stream(x)
        )
''',
    "tail": '''\
def multiply_gap(y, multiplier, kept):
    """mean over height and width of multiplier * y: [N, C, H, W] -> [N, C, 1, 1].

    `kept` lasts from call to call: the launches that are planned, and their counters.
    """
    if not kept:
        kept.update(prepare=plan_prepare(), call=plan_call())
    with torch.cuda.device_of(y):
        return kept["call"].tail(kept["prepare"], y, multiplier, None, current_stream(y))
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


ASKED = {
    "collapsed": {
        ("call", "chain"),
        ("problem", "Chain"),
        *(("prepare", f"prepare_{name}") for name in CHAIN),
    },
    "tail": {("call", "tail"), ("prepare", "prepare_multiply_gap")},
}
"""What the wrappers above ask of the project's planning."""

OWN = {"Launch": "launcher", "INTERPRETED": "triton.knobs.runtime.interpret", "FixedSource": "None"}
"""What the file has its own of, or does without: its code is for any sizes, never for just those of a call."""


def source(strategy: str = "collapsed") -> str:
    """Text of the file. ValueError for an unknown strategy."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {STRATEGIES}, got {strategy!r}")
    try:
        from triton_impl import constants, kernels, launch, one_launch, parameters, prepare, slices, tiles
    except ImportError as error:
        raise UsageError(f"the file is made of the Triton kernels: {error}") from None
    from reference import problem
    from runtime import call, layout, prepared

    choices = tiles, parameters, slices, one_launch, prepare
    modules = problem, layout, prepared, constants, launch, *choices, call
    plans = functions(modules, ASKED[strategy], {"out_size", "compile"}, OWN)
    launched = [name for name in vars(kernels) if re.search(rf"^ +kernels\.{name},$", plans, re.MULTILINE)]
    table = "".join(f"        {name}={name}{SUFFIX},\n" for name in launched)
    table = f'def plan_kernels():\n    """The launched kernels."""\n    return Space(\n{table}    )'
    body = "\n\n\n".join((_SUPPORT.rstrip(), table, plans, _ENTRY[strategy]))
    class_ = _CLASS.replace("@FORWARD@", _FORWARD[strategy])
    return "\n\n".join((_DOC[strategy] + "\n" + _IMPORTS, kernel_text(set(launched)), body, class_))


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
