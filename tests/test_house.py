"""The house keeps its order: imports go down, no file is too long to read, tests lie as what they test lies."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (
    ("bench",),
    ("tests", "examples", "docs"),
    ("harness",),
    ("convgap",),
    ("torch_impl", "triton_impl", "cupy_impl"),
    ("runtime",),
    ("reference",),
)
"""Top-level names: each imports those of the lines below its own, and none beside it."""

ROOMS = (
    ("cli",),
    ("commands",),
    ("candidates", "tuning"),
    ("operators",),
    ("machine", "show", "runs"),
    ("records",),
    ("timing",),
    ("options",),
    ("entries",),
    ("mutants",),
    ("numerics",),
    ("cases",),
    ("console", "files"),
    ("errors",),
)
"""Rooms and files of harness/, by the same rule."""

LINES = 350
LONG = {"triton_impl/kernels.py", "cupy_impl/kernels.cu"}
"""Read side by side, and so kept whole."""
SUFFIXES = (".py", ".cu", ".cuh", ".h", ".c", ".cpp")


def files(root: Path) -> Iterator[Path]:
    """Source files of the floors, relative to the root."""
    for floor in FLOORS:
        for name in floor:
            for path in (root / f"{name}.py", *sorted((root / name).rglob("*"))):
                if path.suffix in SUFFIXES and path.is_file():
                    yield path.relative_to(root)


def module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, root: Path) -> Iterator[tuple[str, bool]]:
    """(module imported by a file, whether as the file itself is imported); a name imported from a package counts as its
    module where there is such a file."""
    tree = ast.parse((root / path).read_text())
    late = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(outer)
    }
    package = path.parts[:-1]
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = root / base.replace(".", "/") / alias.name
                deeper = inner.is_dir() or inner.with_suffix(".py").exists()
                found.append(f"{base}.{alias.name}" if deeper else base)
        for name in found:
            yield name, node not in late


def level(name: str, order: tuple[tuple[str, ...], ...]) -> int | None:
    return next((at for at, names in enumerate(order) if name in names), None)


def upwards(root: Path) -> list[str]:
    """Imports that go up or sideways, of floors and of rooms."""
    found = []
    for path in files(root):
        if path.suffix != ".py":
            continue
        own = module(path).split(".")
        for name, _ in imports(path, root):
            other = name.split(".")
            pairs: list[tuple[str, str, tuple[tuple[str, ...], ...]]] = [(own[0], other[0], FLOORS)]
            if own[0] == other[0] == "harness" and min(len(own), len(other)) > 1:
                pairs.append((own[1], other[1], ROOMS))
            for mine, theirs, order in pairs:
                a, b = level(mine, order), level(theirs, order)
                if mine != theirs and a is not None and b is not None and a >= b:
                    found.append(f"{path}: imports {name}")
                if order is ROOMS and None in (a, b):
                    found.append(f"{path}: {mine if a is None else theirs} has no place in the order of rooms")
    return sorted(set(found))


def circles(root: Path) -> list[list[str]]:
    """Modules that import each other when they are imported."""
    graph: Mapping[str, set[str]] = {
        module(path): {name for name, at_once in imports(path, root) if at_once}
        for path in files(root)
        if path.suffix == ".py"
    }
    found, done = [], set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name in graph and name not in done:
            for other in sorted(graph[name]):
                visit(other, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def too_long(root: Path) -> list[str]:
    lengths = {path: len((root / path).read_text().splitlines()) for path in files(root)}
    return [f"{path}: {n} lines" for path, n in lengths.items() if n > LINES and str(path) not in LONG]


def shadows(root: Path) -> list[str]:
    """Files and folders with the name of a module of the standard library."""
    names = {path: {path.stem, *path.parts[:-1]} for path in files(root) if path.suffix == ".py"}
    return [str(path) for path, found in names.items() if found & (sys.stdlib_module_names - {"__init__"})]


def astray(root: Path) -> list[str]:
    """Folders of tests that mirror no folder of what they test."""
    folders = {path.parent.relative_to("tests") for path in files(root) if path.parts[0] == "tests"}
    return sorted(str(folder) for folder in folders if not (root / folder).is_dir())


RULES = (upwards, circles, too_long, shadows, astray)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_in_order(rule) -> None:
    assert rule(ROOT) == []


PLANTED = {
    "upwards": (
        {"reference/a.py": "import runtime.b", "runtime/b.py": ""},
        "reference/a.py: imports runtime.b",
    ),
    "beside": (
        {"triton_impl/a.py": "def f():\n    from cupy_impl import b", "cupy_impl/b.py": ""},
        "triton_impl/a.py: imports cupy_impl.b",
    ),
    "rooms": (
        {"harness/cases/a.py": "from harness.records.b import c", "harness/records/b.py": "c = 1"},
        "harness/cases/a.py: imports harness.records.b",
    ),
    "unknown room": (
        {"harness/cellar/a.py": "from harness.cases import b", "harness/cases/b.py": ""},
        "cellar has no place",
    ),
    "circles": (
        {"runtime/a.py": "from runtime import b", "runtime/b.py": "from .a import x"},
        "['runtime.a', 'runtime.b', 'runtime.a']",
    ),
    "too_long": ({"convgap/a.py": "\n" * 351}, "convgap/a.py: 351 lines"),
    "shadows": ({"harness/cases/statistics.py": ""}, "harness/cases/statistics.py"),
    "shadowing folder": ({"harness/inspect/a.py": ""}, "harness/inspect/a.py"),
    "astray": ({"tests/nowhere/test_a.py": ""}, "nowhere"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    sources, says = PLANTED[name]
    for path, text in sources.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    found = [str(fault) for rule in RULES for fault in rule(tmp_path)]
    assert len(found) == 1 and says in found[0]
