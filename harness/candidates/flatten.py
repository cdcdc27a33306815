"""Functions of the project as the plain functions of one file that imports nothing of it.

What a function refers to comes along. Dataclasses become dicts and their methods functions; constants become
numbers; types, docstrings aside, and whatever only served the ahead-of-time compilation are dropped. Works on
the syntax tree, so that the file is made of the project's own text and cannot fall behind it.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import pairwise
from types import FunctionType, ModuleType
from typing import Any

Function = Callable[..., Any]


class FlattenError(RuntimeError):
    """The source uses something that has no plain counterpart here; the message names it."""


@dataclasses.dataclass
class Scope:
    """What is turned into what.

    dataclasses: become dicts. omitted: their fields that the file does without. calls: classes that become calls of
    the function named. kernels: objects that are named as given, by id. provided: functions of the project that the
    file has its own version of, by id: its name, and which arguments it takes (all if None). keeping: parameters
    that stand for the module `keeper`; they become `kept`, the dict that lasts from call to call, and calls of the
    module's functions go through `prepared`. keepers: functions of the file that take `kept` first. prefixes: of
    the names of a module's functions.
    """

    dataclasses: list[type]
    calls: dict[type, str]
    kernels: dict[int, str]
    provided: dict[int, tuple[str, tuple[int, ...] | None]]
    omitted: frozenset[str]
    keeping: frozenset[str]
    keeper: ModuleType
    keepers: frozenset[str]
    prefixes: dict[str, str]

    @property
    def fields(self) -> dict[str, str]:
        """Fields of the dataclasses, with their types as written."""
        return {
            field.name: str(field.type) for kind in self.dataclasses for field in dataclasses.fields(kind)
        }

    @property
    def members(self) -> dict[str, tuple[Function, bool]]:
        """Methods and properties of the dataclasses by name, and whether it is a property."""
        found: dict[str, tuple[Function, bool]] = {}
        for kind in self.dataclasses:
            for name, member in vars(kind).items():
                if name.startswith("__"):
                    continue
                if isinstance(member, FunctionType):
                    found[name] = member, False
                elif isinstance(member, property) and member.fget is not None:
                    found[name] = member.fget, True
                elif isinstance(member, cached_property):
                    found[name] = member.func, True
        return found

    def name(self, function: Function) -> str:
        """Name of a function in the file."""
        owner, _, name = function.__qualname__.rpartition(".")
        if owner:
            return f"{owner.lower()}_{name}"
        prefix = self.prefixes.get(function.__module__, "")
        return prefix + name.lstrip("_") if prefix else name


def flatten(roots: Iterable[Function], scope: Scope) -> str:
    """Source of `roots` and of every function that they need, what is needed first."""
    done: dict[str, str] = {}

    def visit(function: Function) -> None:
        name = scope.name(function)
        if name in done:
            return
        done[name] = ""  # a cycle ends here
        tree, needed = _plain(function, scope)
        for other in needed:
            visit(other)
        del done[name]
        done[name] = ast.unparse(tree)

    for root in roots:
        visit(inspect.unwrap(root))
    return "\n\n\n".join(wrapped(text) for text in done.values())


def wrapped(text: str, width: int = 110) -> str:
    """The same code with long lines broken at the commas of their outermost bracket."""
    lines = []
    for line in text.splitlines():
        while len(line) > width and (parts := _broken(line)):
            head, inner, tail = parts
            indent = " " * (len(line) - len(line.lstrip()))
            lines.append(head)
            for piece in inner:
                lines += wrapped(f"{indent}    {piece},", width).splitlines()
            line = indent + tail
        lines.append(line)
    return "\n".join(lines)


def _broken(line: str) -> tuple[str, list[str], str] | None:
    """(text up to a bracket, what it holds, the rest) for the longest bracket of a line of code."""
    if line.lstrip().startswith(('"', "'")):
        return None
    best: tuple[int, int, list[int]] | None = None
    open_: list[tuple[int, list[int]]] = []
    quote = ""
    for at, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            open_.append((at, []))
        elif letter == "," and open_:
            open_[-1][1].append(at)
        elif letter in ")]}" and open_:
            start, commas = open_.pop()
            # Only the commas of a call, a display or a tuple: a comprehension has none of its own to break at.
            if commas and (best is None or at - start > best[1] - best[0]):
                best = start, at, commas
    if best is None or " for " in line[best[0] : best[1]]:
        return None
    start, end, commas = best
    edges = [start, *commas, end]
    pieces = [line[a + 1 : b].strip() for a, b in pairwise(edges)]
    return line[: start + 1], [piece for piece in pieces if piece], line[end:]


def _plain(function: Function, scope: Scope) -> tuple[ast.FunctionDef, list[Function]]:
    """Syntax tree of the plain function, and the functions that it refers to."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    rewriter = _Rewriter(function, tree, scope)
    plain = rewriter.visit(tree)
    plain.name = scope.name(function)
    _rename_self(plain, function.__qualname__.rpartition(".")[0].lower())
    _drop_dead(plain)
    used = {node.id for node in ast.walk(plain) if isinstance(node, ast.Name)}
    return ast.fix_missing_locations(plain), [f for name, f in rewriter.needed.items() if name in used]


class _Rewriter(ast.NodeTransformer):
    def __init__(self, function: Function, tree: ast.FunctionDef, scope: Scope) -> None:
        self.globals = function.__globals__
        self.scope = scope
        self.fields, self.members = scope.fields, scope.members
        stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _stores(node)}
        self.locals = stored | {arg.arg for arg in ast.walk(tree) if isinstance(arg, ast.arg)}
        self.needed: dict[str, Function] = {}

    # types go

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list, node.returns = [], None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg("kept" if node.arg in self.scope.keeping else node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.visit(ast.Assign([node.target], node.value))

    # names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.scope.keeping:
            return ast.Name("kept", node.ctx)
        if _stores(node) or node.id in self.locals or hasattr(builtins, node.id):
            return node
        return self._refer(self._resolve(node), node)

    def _resolve(self, node: ast.AST) -> Any:
        """Object that a global name, or an attribute of a module, stands for; None if it is neither."""
        if isinstance(node, ast.Name) and node.id not in self.locals:
            if node.id in self.globals:
                return self.globals[node.id]
            return getattr(builtins, node.id, None)
        if isinstance(node, ast.Attribute):
            owner = self._resolve(node.value)
            if isinstance(owner, ModuleType):
                return getattr(owner, node.attr)
        return None

    def _refer(self, found: Any, node: ast.AST) -> ast.AST:
        if id(found) in self.scope.kernels:
            return ast.Name(self.scope.kernels[id(found)], ast.Load())
        if id(found) in self.scope.provided:
            return ast.Name(self.scope.provided[id(found)][0], ast.Load())
        if isinstance(found, ModuleType):
            if found.__name__ in ("torch", "triton"):
                return node
            raise FlattenError(f"the module {found.__name__} is used by itself")
        if isinstance(found, type) and found.__module__.split(".")[0] == "triton":
            path = f"{'.'.join(found.__module__.split('.')[:2])}.{found.__name__}"
            return ast.parse(path, mode="eval").body
        function = inspect.unwrap(found) if callable(found) else None
        if isinstance(function, FunctionType) and _ours(function):
            name = self.scope.name(function)
            self.needed[name] = function
            return ast.Name(name, ast.Load())
        if isinstance(found, bool | int | float | str | tuple | dict):
            return ast.parse(repr(found), mode="eval").body
        if dataclasses.is_dataclass(found) and not isinstance(found, type):
            return _dict({f.name: _literal(getattr(found, f.name)) for f in dataclasses.fields(found)})
        raise FlattenError(f"{ast.unparse(node)} has no plain counterpart ({type(found).__name__})")

    # attributes and calls

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        owner = self._resolve(node.value)
        if dataclasses.is_dataclass(owner) and not isinstance(owner, type):
            return _literal(getattr(owner, node.attr))
        found = self._resolve(node)
        if found is not None:
            module = self._resolve(node.value)
            if module.__name__.split(".")[0] in ("torch", "triton"):
                return node
            return self._refer(found, node)
        value: Any = self.visit(node.value)
        if node.attr in self.members and self.members[node.attr][1]:
            return ast.Call(self._member(node.attr), [value], [])
        if node.attr in self.fields:
            return ast.Subscript(value, ast.Constant(node.attr), node.ctx)
        return ast.Attribute(value, node.attr, node.ctx)

    def _member(self, name: str) -> ast.Name:
        function = self.members[name][0]
        self.needed[self.scope.name(function)] = function
        return ast.Name(self.scope.name(function), ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.AST:
        found = self._resolve(node.func)
        if isinstance(found, type) and found in self.scope.calls:
            given: list[Any] = [self.visit(argument) for argument in node.args]
            return ast.Call(ast.Name(self.scope.calls[found], ast.Load()), given, [])
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return self._construct(found, node)
        if found is not None and getattr(found, "__module__", "") == "math":
            return self._math(found.__name__, node)
        arguments: list[Any] = [self.visit(argument) for argument in node.args]
        keywords: list[Any] = [ast.keyword(k.arg, self.visit(k.value)) for k in node.keywords]
        if id(found) in self.scope.provided:
            name, taken = self.scope.provided[id(found)]
            arguments = [a for i, a in enumerate(arguments) if taken is None or i in taken]
            if name in self.scope.keepers:
                arguments.insert(0, ast.Name("kept", ast.Load()))
            return ast.Call(ast.Name(name, ast.Load()), arguments, keywords)
        if found is None and isinstance(node.func, ast.Attribute):
            attribute = node.func
            if isinstance(attribute.value, ast.Name) and attribute.value.id in self.scope.keeping:
                target = self._prepare(attribute.attr)
                return ast.Call(
                    ast.Name("prepared", ast.Load()),
                    [ast.Name("kept", ast.Load()), target, *arguments],
                    keywords,
                )
            if attribute.attr in self.members:
                return ast.Call(
                    self._member(attribute.attr), [self.visit(attribute.value), *arguments], keywords
                )
            if attribute.attr in self.fields and "Launch" not in self.fields[attribute.attr]:
                # Not ours: a method of a tensor with the name of one of our fields.
                plain: Any = ast.Attribute(self.visit(attribute.value), attribute.attr, ast.Load())
                return ast.Call(plain, arguments, keywords)
        function: Any = self.visit(node.func)
        return ast.Call(function, arguments, keywords)

    def _prepare(self, name: str) -> ast.Name:
        function = inspect.unwrap(getattr(self.scope.keeper, name))
        self.needed[self.scope.name(function)] = function
        return ast.Name(self.scope.name(function), ast.Load())

    def _construct(self, kind: type, node: ast.Call) -> ast.AST:
        names = [field.name for field in dataclasses.fields(kind)]
        given = dict(zip(names, node.args, strict=False)) | {str(k.arg): k.value for k in node.keywords}
        wanted = {name: value for name, value in given.items() if name not in self.scope.omitted}
        values: dict[str, Any] = {name: self.visit(value) for name, value in wanted.items()}
        for field in dataclasses.fields(kind):
            if field.name not in values and field.name not in self.scope.omitted:
                values[field.name] = _literal(field.default)
        return _dict(values)

    def _math(self, name: str, node: ast.Call) -> ast.AST:
        argument = node.args[0]
        if name == "ceil" and isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Div):
            cdiv = ast.Attribute(ast.Name("triton", ast.Load()), "cdiv", ast.Load())
            left: Any = self.visit(argument.left)
            right: Any = self.visit(argument.right)
            return ast.Call(cdiv, [left, right], [])
        if name == "gcd":
            arguments: list[Any] = [self.visit(a) for a in node.args]
            return ast.Call(ast.Name("gcd", ast.Load()), arguments, [])
        raise FlattenError(f"math.{name} has no plain counterpart: {ast.unparse(node)}")


def _ours(function: FunctionType) -> bool:
    return function.__module__.split(".")[0] in ("convgap", "reference", "runtime", "triton_impl", "harness")


def _stores(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def _literal(value: Any) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


def _dict(values: dict[str, ast.expr]) -> ast.Call:
    return ast.Call(ast.Name("dict", ast.Load()), [], [ast.keyword(k, v) for k, v in values.items()])


def _rename_self(function: ast.FunctionDef, name: str) -> None:
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == "self":
            node.id = name
        elif isinstance(node, ast.arg) and node.arg == "self":
            node.arg = name


def _drop_dead(function: ast.FunctionDef) -> None:
    """Drop assignments to local names that nothing reads, until there are none."""
    while True:
        read = _read_names(function)
        before = ast.dump(function)
        _Dropper(read).visit(function)
        if ast.dump(function) == before:
            return


def _read_names(function: ast.FunctionDef) -> set[str]:
    """Names that are read for more than calling a method of theirs as a statement."""
    read: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read.add(node.id)
    mutated = {name for node in ast.walk(function) if (name := _mutation(node))}
    for name in mutated:
        loads = sum(isinstance(n, ast.Name) and n.id == name and not _stores(n) for n in ast.walk(function))
        calls = sum(_mutation(n) == name for n in ast.walk(function))
        if loads == calls:
            read.discard(name)
    return read


def _mutation(node: ast.AST) -> str | None:
    """Name whose method a statement calls, as in `name.pop(...)`."""
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        owner = call.func.value
        return owner.id if isinstance(owner, ast.Name) else None
    return None


class _Dropper(ast.NodeTransformer):
    def __init__(self, read: set[str]) -> None:
        self.read = read

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        name = _mutation(node)
        return node if name is None or name in self.read else None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body else None

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        target = node.targets[0]
        if isinstance(target, ast.Name):
            return node if target.id in self.read else None
        if not isinstance(target, ast.Tuple) or not all(isinstance(e, ast.Name) for e in target.elts):
            return node
        live = [isinstance(e, ast.Name) and e.id in self.read for e in target.elts]
        if not any(live):
            return None
        if isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(live):
            pairs = [p for p, kept in zip(zip(target.elts, node.value.elts, strict=True), live) if kept]
            if len(pairs) == 1:
                return ast.Assign([pairs[0][0]], pairs[0][1])
            node.targets = [ast.Tuple([a for a, _ in pairs], ast.Store())]
            node.value = ast.Tuple([b for _, b in pairs], ast.Load())
        return node
