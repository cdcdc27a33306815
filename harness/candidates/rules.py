"""The strict form of a file with a ModelNew, by its syntax tree.

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
from collections import Counter
from collections.abc import Iterator
from itertools import product

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


def form(text: str) -> list[str]:
    """One line per broken rule, each beginning with the rule's name."""
    try:
        return _broken(ast.parse(text))
    except SyntaxError as error:
        return [f"syntax: {error}"]
    except RecursionError:
        return ["syntax: an expression nests too deeply to be checked"]


def _broken(tree: ast.Module) -> list[str]:
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
