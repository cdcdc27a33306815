"""The project's own planning, from sizes to launches, as wrappers of one file that imports nothing of it.

Each module becomes a function that gives its names: `def plan_tiles(): ... return Space(...)`. The text inside is the
module's, comments included; only imports, types and what the standard library's decorators do are replaced. What no
launch needs is left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

PREFIX = "plan_"

DECORATORS = {
    r"@dataclass\([^)]*\)": "@record",
    r"@dataclass\b": "@record",
    r"@cached_property": "@property",
    r"lru_cache\(maxsize=\d+\)": "cached",
}
"""What stands in for the standard library's: functions of the file."""

LIBRARY = ("math", "typing", "dataclasses", "functools", "collections", "bisect", "threading", "__future__")
"""Modules whose names are left out with the types, or are functions of the file."""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign
Names = set[tuple[str, str]]
"""(module, name in it)."""


@dataclass
class Need:
    """What the file has to hold: definitions, and methods by name, whichever class they are of."""

    names: Names
    methods: set[str]


def functions(modules: Iterable[ModuleType], roots: Names, methods: set[str], instead: Mapping[str, str]) -> str:
    """Text of the functions, one a module, each below those that it needs.

    roots, methods: what the rest of the file asks for. instead: what stands for a name wherever it is imported.
    """
    parts = [Part(module, instead) for module in modules]
    need = Need(set(roots), set(methods))
    size = -1
    while size != (size := len(need.names) + len(need.methods)):
        for part in parts:
            part.ask(need)
    return "\n\n\n".join(part.text(need) for part in parts)


class Part:
    """One module: its definitions by name, and how each is written in the file."""

    def __init__(self, module: ModuleType, instead: Mapping[str, str]) -> None:
        assert module.__file__ is not None
        self.name = module.__name__.rpartition(".")[2]
        self.instead = instead
        source = Path(module.__file__).read_text(encoding="utf-8")
        self.tree = ast.parse(source)
        self.lines = source.splitlines()
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        self.said = {
            node.lineno: after.end_lineno or 0
            for node, after in pairwise(self.tree.body)
            if isinstance(node, ast.Assign) and isinstance(after, ast.Expr)
        }
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.definitions[node.targets[0].id] = node
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in LIBRARY:
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = str(node.module), alias.name

    def ask(self, need: Need) -> None:
        """Add what the needed definitions mention."""
        for name, node in self.definitions.items():
            if (self.name, name) not in need.names or name in self.instead:
                continue
            for inner in _kept(node, need):
                for mentioned, attribute in _mentioned(inner):
                    if mentioned in self.definitions:
                        need.names.add((self.name, mentioned))
                    elif mentioned in self.imports:
                        module, original = self.imports[mentioned]
                        if original in self.instead:
                            continue
                        # `from triton_impl import tiles`, then tiles.gap; or `from runtime.layout import describe`.
                        need.names.add((original, attribute))
                        need.names.add((module.rpartition(".")[2], original))
                    need.methods.add(attribute)

    def text(self, need: Need) -> str:
        """`def plan_NAME():` with the needed definitions."""
        kept = {name: node for name, node in self.definitions.items() if (self.name, name) in need.names}
        for name in self.instead:
            kept.pop(name, None)
        used = {name for node in kept.values() for inner in _kept(node, need) for name, _ in _mentioned(inner)}
        body = ["\n".join(self._import(name) for name in self.imports if name in used)]
        body += [self._definition(node, need) for node in kept.values()]
        names = "".join(f"    {name}={name},\n" for name in kept)
        doc = f'"""{(ast.get_docstring(self.tree) or self.name).splitlines()[0]}"""'
        inner = "\n\n".join(filter(None, [doc, *body, f"return Space(\n{names})"]))
        return f"def {PREFIX}{self.name}():\n" + _indented(inner)

    def _import(self, name: str) -> str:
        module, original = self.imports[name]
        if original in self.instead:
            return f"{name} = {self.instead[original]}"
        if module.startswith("triton."):
            return f"{name} = {module}.{original}"
        if "." in module:
            return f"{name} = {PREFIX}{module.rpartition('.')[2]}().{original}"
        return f"{name} = {PREFIX}{original}()"

    def _definition(self, node: Definition, need: Need) -> str:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        assert node.end_lineno is not None
        lines = dict(enumerate(self.lines, 1))
        for inner in _unneeded(node, need):
            start = min([inner.lineno, *(d.lineno for d in inner.decorator_list)])
            assert inner.end_lineno is not None
            # With the empty line before it.
            for number in range(start - 1, inner.end_lineno + 1):
                lines.pop(number, None)
        for start, end, text in sorted(_types(node), reverse=True):
            (row, column), (last, stop) = start, end
            if row in lines and last in lines:
                line = lines[row][:column] + text + lines[last][stop:]
                for number in range(row + 1, last + 1):
                    del lines[number]
                lines[row] = line
        last = self.said.get(node.lineno, node.end_lineno)
        text = "\n".join(lines[number] for number in range(first, last + 1) if number in lines)
        for pattern, instead in DECORATORS.items():
            text = re.sub(pattern, instead, text)
        return text


def _kept(node: Definition, need: Need) -> list[ast.AST]:
    """The parts of a definition that are written."""
    if not isinstance(node, ast.ClassDef):
        return [node]
    left_out = _unneeded(node, need)
    return [*node.decorator_list, *(inner for inner in node.body if inner not in left_out)]


def _unneeded(node: Definition, need: Need) -> list[ast.FunctionDef]:
    """Methods that nothing in the file calls."""
    if not isinstance(node, ast.ClassDef):
        return []
    methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
    return [m for m in methods if (m.name not in need.methods and not m.name.startswith("__")) or m.name == "__hash__"]


def _mentioned(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(global name, attribute asked of it) in the code of a node; either is empty where there is none. Types aside."""
    skipped = {id(inner) for outer in ast.walk(node) for kind in _annotations(outer) for inner in ast.walk(kind)}
    local = {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
    if isinstance(node, ast.FunctionDef):
        local |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    for inner in ast.walk(node):
        if id(inner) in skipped:
            continue
        if isinstance(inner, ast.Name) and inner.id not in local:
            yield inner.id, ""
        elif isinstance(inner, ast.Attribute):
            owner = inner.value.id if isinstance(inner.value, ast.Name) and inner.value.id not in local else ""
            yield owner, inner.attr


def _annotations(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.arg | ast.AnnAssign):
        return [node.annotation] if node.annotation else []
    return [node.returns] if isinstance(node, ast.FunctionDef) and node.returns else []


Edit = tuple[tuple[int, int], tuple[int, int], str]


def _types(node: ast.AST) -> Iterator[Edit]:
    """Edits that take the types away; a field of a record keeps its place: `name: object`."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.arg) and inner.annotation:
            end = inner.lineno, inner.col_offset + len(inner.arg.encode())
            yield end, _end(inner.annotation), ""
        elif isinstance(inner, ast.FunctionDef) and inner.returns:
            yield (inner.returns.lineno, inner.returns.col_offset - len(" -> ")), _end(inner.returns), ""
        elif isinstance(inner, ast.AnnAssign):
            start = inner.annotation.lineno, inner.annotation.col_offset
            if inner.value is None or (isinstance(node, ast.ClassDef) and inner in node.body):
                yield start, _end(inner.annotation), "object"
            else:
                yield (start[0], start[1] - len(": ")), _end(inner.annotation), ""


def _end(node: ast.expr) -> tuple[int, int]:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in text.splitlines())
