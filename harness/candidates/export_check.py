"""Is a ModelNew file what it has to be? Its form by its syntax tree, its answers against the oracle.

imports      import torch, torch.nn as nn, triton, triton.language as tl at the top, and no other anywhere
order        imports, then @triton.jit kernels, then wrapper functions, then class ModelNew; nothing else
functions    none of tl.tanh, sigmoid, gelu, silu, softmax, mish
stores       a launched kernel stores each buffer by one tl.store, counted through the helpers that it calls
launch       a wrapper launches: kernel[grid](...); every kernel is used
constructor  (in_channels, out_channels, kernel_size, stride, padding, output_padding, multiplier),
             self.conv_transpose = nn.ConvTranspose2d(...), forward(self, x)
testing      no __main__, get_inputs, get_init_inputs, test functions, assert, print, exec or eval
"""

from __future__ import annotations

import ast
import copy
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from harness.cases.inputs import Inputs
from harness.entries.entry import TF32_OPERAND
from harness.errors import last_line
from harness.numerics.budget import Comparison, compare
from harness.numerics.truth import truth
from reference import eager
from reference.problem import Chain

IMPORTS = ("import torch", "import torch.nn as nn", "import triton", "import triton.language as tl")
FORBIDDEN = frozenset({"tanh", "sigmoid", "gelu", "silu", "softmax", "mish"})
PARAMETERS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "output_padding",
    "multiplier",
)
TESTING = frozenset({"__main__", "get_inputs", "get_init_inputs"})
CALLS = frozenset({"print", "exec", "eval", "__import__", "compile", "open"})

LIMIT_S = 600  # first calls compile; a file that takes longer hangs


def form(text: str) -> list[str]:
    """One line per broken rule, each beginning with the rule's name."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [f"syntax: {error}"]
    kernels = [node for node in tree.body if isinstance(node, ast.FunctionDef) and _is_kernel(node)]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not _is_kernel(node)]
    return [
        *_imports(tree),
        *_order(tree),
        *_functions(tree),
        *_stores(kernels, functions),
        *_launch(kernels, functions),
        *_constructor(tree),
        *_testing(tree),
    ]


def _is_kernel(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith("triton.") for decorator in node.decorator_list)


def _imports(tree: ast.Module) -> Iterator[str]:
    found = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for line, count in Counter(found).items():
        if line not in IMPORTS or count > 1:
            yield f"imports: {line}: expected {'; '.join(IMPORTS)}, each once"
    yield from (f"imports: {line} is missing" for line in IMPORTS if line not in found)


def _order(tree: ast.Module) -> Iterator[str]:
    ranks = []
    for at, node in enumerate(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            rank = 0
        elif isinstance(node, ast.FunctionDef):
            rank = 1 if _is_kernel(node) else 2
            extra = [ast.unparse(d) for d in node.decorator_list if ast.unparse(d) != "triton.jit"]
            yield from (f"order: {node.name} is decorated with @{text}" for text in extra)
        elif isinstance(node, ast.ClassDef) and node.name == "ModelNew":
            rank = 3
        elif at == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        else:
            line = ast.unparse(node).splitlines()[0]
            yield f"order: line {node.lineno}: {line}: nothing of that kind belongs here"
            continue
        ranks.append(rank)
    if ranks != sorted(ranks):
        yield "order: expected imports, then kernels, then wrappers, then class ModelNew"
    for rank, what in enumerate(("imports", "kernels", "wrappers", "class ModelNew")):
        if rank not in ranks:
            yield f"order: there are no {what}" if rank < 3 else "order: there is no class ModelNew"
    if ranks.count(3) > 1:
        yield "order: class ModelNew is there more than once"


def _functions(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN:
            owner = ast.unparse(node.value)
            if owner.split(".")[0] in ("tl", "triton"):
                yield f"functions: line {node.lineno}: {owner}.{node.attr}"


# --- stores ---


def _stores(kernels: list[ast.FunctionDef], functions: list[ast.FunctionDef]) -> Iterator[str]:
    table = {kernel.name: kernel for kernel in kernels}
    called = {_callee(node) for kernel in kernels for node in ast.walk(kernel) if isinstance(node, ast.Call)}
    for kernel in kernels:
        if kernel.name in called:
            continue
        most: Counter[str] = Counter()
        for variant in _variants(kernel):
            most |= Counter(_stored(variant, table, {p: p for p in _parameters(kernel)}, ()))
        if not most:
            yield f"stores: {kernel.name} stores nothing"
        for buffer, count in most.items():
            if count > 1:
                yield f"stores: {kernel.name} stores {buffer} by {count} tl.store"


def _variants(kernel: ast.FunctionDef) -> Iterator[ast.FunctionDef]:
    """The kernel for every choice of the compile-time flags that it tests: each is compiled by itself."""
    fixed = {a.arg for a in kernel.args.args if a.annotation and "constexpr" in ast.unparse(a.annotation)}
    tests = [node.test for node in ast.walk(kernel) if isinstance(node, ast.If | ast.IfExp)]
    flags = sorted({name for test in tests if (name := _flag(test)) in fixed and name})
    for values in product((False, True), repeat=len(flags)):
        chosen = _Choose(dict(zip(flags, values, strict=True))).visit(copy.deepcopy(kernel))
        yield ast.fix_missing_locations(chosen)


def _flag(test: ast.expr) -> str:
    """Name that a condition tests, as in `FLAG` or `not FLAG`; "" if it tests anything else."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test = test.operand
    return test.id if isinstance(test, ast.Name) else ""


class _Choose(ast.NodeTransformer):
    """Keeps the branch that is compiled."""

    def __init__(self, values: dict[str, bool]) -> None:
        self.values = values

    def _taken(self, test: ast.expr) -> bool | None:
        value = self.values.get(_flag(test))
        return value if value is None or isinstance(test, ast.Name) else not value

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        taken = self._taken(node.test)
        return node if taken is None else ((node.body if taken else node.orelse) or [ast.Pass()])

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        taken = self._taken(node.test)
        return node if taken is None else (node.body if taken else node.orelse)


def _parameters(kernel: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*kernel.args.posonlyargs, *kernel.args.args)]


def _callee(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _stored(
    kernel: ast.FunctionDef,
    table: dict[str, ast.FunctionDef],
    roots: dict[str, str],
    above: tuple[str, ...],
) -> Iterator[str]:
    """Buffer of every tl.store in the kernel and the helpers that it calls.

    roots: which parameter of the launched kernel each name was computed from. A pointer is the first of the
    names in an address that stands for one.
    """
    roots = dict(roots)
    if kernel.name in above:
        return
    for node in _in_order(kernel):
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            root = _root(node.value, roots)
            for target in targets:
                if root and isinstance(target, ast.Name) and target.id not in _parameters(kernel):
                    roots[target.id] = root
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.store":
            yield _root(node.args[0], roots) or ast.unparse(node.args[0])
        elif isinstance(node, ast.Call) and _callee(node) in table:
            helper = table[_callee(node)]
            given = dict(zip(_parameters(helper), node.args, strict=False))
            given |= {str(k.arg): k.value for k in node.keywords}
            inner = {name: root for name, value in given.items() if (root := _root(value, roots))}
            yield from _stored(helper, table, inner, (*above, kernel.name))


def _in_order(kernel: ast.FunctionDef) -> list[ast.stmt | ast.expr]:
    """Nodes by where they end, so that an assignment comes before what uses its name."""
    placed = [node for node in ast.walk(kernel) if isinstance(node, ast.stmt | ast.expr)]
    return sorted(placed, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0))


def _root(node: ast.expr, roots: dict[str, str]) -> str | None:
    """Parameter that an address is computed from: the leftmost name of a sum of a pointer and offsets."""
    if isinstance(node, ast.Name):
        return roots.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return _root(node.left, roots) or _root(node.right, roots)
    if isinstance(node, ast.Subscript):
        return _root(node.value, roots)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        return _root(node.args[0], roots)
    return None


# --- launch, constructor, testing ---


def _launch(kernels: list[ast.FunctionDef], functions: list[ast.FunctionDef]) -> Iterator[str]:
    called = [node.func for f in functions for node in ast.walk(f) if isinstance(node, ast.Call)]
    # A text as index is a look-up in a dict of functions.
    if not any(isinstance(f, ast.Subscript) and not isinstance(f.slice, ast.Constant) for f in called):
        yield "launch: no wrapper launches a kernel: expected kernel[grid](...)"
    for kernel in kernels:
        others = (*functions, *(k for k in kernels if k is not kernel))
        names = {n.id for f in others for n in ast.walk(f) if isinstance(n, ast.Name)}
        if kernel.name not in names:
            yield f"launch: nothing uses the kernel {kernel.name}"


def _constructor(tree: ast.Module) -> Iterator[str]:
    found = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "ModelNew"]
    if not found:
        return
    class_ = found[-1]
    if [ast.unparse(base) for base in class_.bases] != ["nn.Module"]:
        yield "constructor: expected class ModelNew(nn.Module)"
    methods = {node.name: node for node in class_.body if isinstance(node, ast.FunctionDef)}
    for name, expected in (("__init__", ("self", *PARAMETERS)), ("forward", ("self", "x"))):
        if name not in methods:
            yield f"constructor: {name} is missing"
        elif tuple(_parameters(methods[name])) != expected:
            yield f"constructor: expected {name}({', '.join(expected)})"
    made = [
        node
        for node in ast.walk(class_)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "self.conv_transpose"
        and ast.unparse(node.value).startswith("nn.ConvTranspose2d(")
    ]
    if not made:
        yield "constructor: expected self.conv_transpose = nn.ConvTranspose2d(...)"


def _testing(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        line = f"testing: line {getattr(node, 'lineno', 0)}:"
        if isinstance(node, ast.Assert):
            yield f"{line} assert"
        elif isinstance(node, ast.Constant) and node.value == "__main__":
            yield f"{line} __main__"
        elif isinstance(node, ast.FunctionDef) and (node.name in TESTING or node.name.startswith("test")):
            yield f"{line} def {node.name}"
        elif isinstance(node, ast.Call) and _callee(node) in CALLS:
            yield f"{line} {_callee(node)}(...)"


# --- answers ---


@dataclass(frozen=True)
class Answer:
    """What running the file on one problem gave; error in units of the budget, None if it gave none."""

    problem: Chain
    layout: str
    passed: bool
    message: str
    error: float | None = None

    def line(self) -> str:
        p = self.problem
        sizes = f"{p.n}x{p.c_in}x{p.h}x{p.w} -> {p.c_out}"
        return (
            f"{'ok   ' if self.passed else 'WRONG'} {sizes}, kernel {p.kernel}, {self.layout}: {self.message}"
        )


def problems(*, gpu: bool) -> list[Chain]:
    """What the file is run on: KernelBench's shapes of old and of today, and some it never had."""
    x2 = (3, 3), (2, 2), (1, 1), (1, 1)
    odd = [
        Chain(2, 3, 5, 9, 10, *x2),
        Chain(1, 2, 3, 25, 32, (4, 4), (2, 2), (1, 1)),
        Chain(3, 5, 2, 7, 7, (3, 2), (2, 3), (1, 0), (0, 1)),
        Chain(1, 20, 9, 4, 4, (4, 4), (2, 2), (1, 1)),
        Chain(2, 3, 4, 6, 6, (1, 1), (2, 2)),
    ]
    if not gpu:
        return odd
    return [*odd, Chain(128, 3, 16, 32, 32, *x2), Chain(16, 64, 128, 128, 128, *x2)]


def answers(path: Path, *, gpu: bool | None = None) -> Iterator[Answer]:
    """Run the file in a process of its own that has nothing of the project, and compare with the oracle."""
    gpu = torch.cuda.is_available() if gpu is None else gpu
    text = path.read_text(encoding="utf-8")
    calls_torch = "self.conv_transpose(" in text
    with tempfile.TemporaryDirectory() as folder:
        chosen = problems(gpu=gpu)
        wanted = [(problem, "contiguous") for problem in chosen]
        wanted += [(chosen[0], "channels_last"), (chosen[0], "offset")]
        request = [(problem.__dict__, layout) for problem, layout in wanted]
        torch.save({"calls": request, "device": "cuda" if gpu else "cpu"}, Path(folder) / "request.pt")
        (Path(folder) / "model_new.py").write_text(text, encoding="utf-8")
        failure = _run_alone(Path(folder), interpret=not gpu)
        if failure:
            yield Answer(chosen[0], "contiguous", False, failure)
            return
        given = torch.load(Path(folder) / "answers.pt")
    for (problem, layout), item in zip(wanted, given, strict=True):
        inputs = Inputs(
            item["x"],
            item["weight"],
            item["bias"],
            item["multiplier"],
            {n: getattr(problem, n) for n in ("stride", "padding", "output_padding", "groups", "dilation")},
        )
        verdict = judge(item["out"], problem, inputs, tf32=gpu and calls_torch)
        yield Answer(problem, layout, verdict.passed, verdict.message, verdict.worst)


def judge(out: Tensor, problem: Chain, inputs: Inputs, *, tf32: bool) -> Comparison:
    """A file's answer against the oracle, in the budget of the operator as written: the file may be anyone's.

    tf32: whether the convolution is the framework's on a GPU, which rounds its factors.
    """
    right = truth(problem, inputs)
    error = TF32_OPERAND if tf32 else 0.0
    plan = right.plan(eager.depth(problem), stores=eager.stores(problem), operand_error=error)
    return compare(out, right.expected, right.magnitude, "float32", **plan)


def _run_alone(folder: Path, *, interpret: bool) -> str:
    """Run the file in its folder; what went wrong, or ""."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ALONE],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {LIMIT_S} s"
    return f"the file failed: {last_line(done.stderr)}" if done.returncode else ""


_ALONE = """
import torch, model_new
request = torch.load("request.pt")
answers = []
for index, (p, layout) in enumerate(request["calls"]):
    torch.manual_seed(index)
    arguments = p["c_in"], p["c_out"], p["kernel"], p["stride"], p["padding"], p["output_padding"], 0.5
    model = model_new.ModelNew(*arguments).to(request["device"])
    x = torch.rand(p["n"], p["c_in"], p["h"], p["w"]).to(request["device"])
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "offset":
        x = torch.empty(x.numel() + 1, device=x.device)[1:].view(x.shape).copy_(x)
    with torch.no_grad():
        out = model(x)
        again = model(x) if x.is_cuda else out
    if not torch.equal(again, out):
        out = torch.full_like(out, torch.nan)
    conv = model.conv_transpose
    answers.append(dict(x=x.cpu(), weight=conv.weight.detach().cpu(), bias=conv.bias.detach().cpu(),
                        multiplier=0.5, out=out.detach().cpu()))
torch.save(answers, "answers.pt")
"""
