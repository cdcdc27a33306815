"""What kind of file somebody brought, told by what is in it, and what it says that it can do."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.candidates import cuda_header, flashinfer
from harness.candidates.uncommented import without_comments
from harness.candidates.worker import HOME
from harness.cases import operators
from harness.cases.case import LAYOUTS
from harness.errors import UsageError
from harness.files import require_regular
from harness.options import DTYPES

FORMS = ("kernelbench", "functions", "cuda", "solution")
OPERATORS = {operator.function: operator.name for operator in reversed(operators.built_in())}
CLAIM = re.compile(r"^\s*(?:#|//|\*)[ \t]*judge:[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", re.MULTILINE)
CLAIMED = {"dtypes": DTYPES, "layouts": LAYOUTS}
LONGEST = 4 << 20  # bytes of a file
ONLY_FILE = "candidate.py"  # what a file that stands alone is called in its own process


@dataclass(frozen=True)
class Candidate:
    """A file to judge. sources: the text of every file that it consists of, by name.

    operators: "chain", "tail". details: what its own process has to know (harness/candidates/inside/subjects.py).
    """

    path: Path
    form: str
    sources: dict[str, str]
    operators: tuple[str, ...]
    details: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32",)
    layouts: tuple[str, ...] = ("contiguous",)

    def claiming(self, dtypes: Sequence[str] | None, layouts: Sequence[str] | None) -> Candidate:
        """The same candidate with other claims, where there are some."""
        return replace(self, dtypes=tuple(dtypes or self.dtypes), layouts=tuple(layouts or self.layouts))

    @cached_property
    def code(self) -> dict[str, str]:
        """Its sources without comments and docstrings. RecursionError for one that nests too deeply to be read."""
        return {name: without_comments(name, text) for name, text in self.sources.items()}

    def does(self, pattern: str) -> str:
        """What of its code matches; "" if nothing."""
        found = re.search(pattern, "\n".join(self.code.values()))
        return found[0] if found else ""

    @property
    def text(self) -> str:
        """All its source."""
        return "\n".join(self.sources.values())

    @property
    def convolves(self) -> bool:
        """Whether it calls the framework's convolution, which rounds float32 operands to TF32 on a GPU."""
        return bool(self.does(r"conv_transpose(2d)?\("))

    @property
    def kernels(self) -> str:
        """What kernels of its own the file has, in a word; "" if none."""
        return self.does(r"@triton\.jit|\bRawKernel\b|\bRawModule\b|__global__")

    @property
    def branches_on_device(self) -> bool:
        """Whether it asks where its tensors are: then its kernels may be for a GPU only."""
        return bool(self.does(r"\.is_cuda\b|\.device\b"))

    @property
    def wants_gpu(self) -> str:
        """Why it cannot run without a GPU; "" if it can."""
        if self.does(r"\bload_inline\b") and self.does(r"\bcuda_sources\b"):
            return "load_inline builds CUDA C++ with nvcc, for a GPU"
        return ""


def read(path: Path, form: str | None = None) -> Candidate:
    """The candidate in a file. UsageError if it cannot be read or is of no form that is known here."""
    try:
        candidate = _read(path, form)
        _ = candidate.code  # Python's parser and writer have a limit each; what is past it is no fault of the judge
    except (RecursionError, MemoryError):
        raise UsageError(f"{path}: an expression nests too deeply for Python to read it; split it") from None
    return candidate


def _read(path: Path, form: str | None) -> Candidate:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; --queue {path} judges all files of one")
    try:
        require_regular(path)
        if path.stat().st_size > LONGEST:
            raise UsageError(f"{path}: longer than {LONGEST >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    form = form or _form(path, text)
    claims = _claims(path, text)
    if form == "solution":
        return _solution(path, text)
    if form == "cuda":
        header = cuda_header.read(path, text)
        details = {"file": "candidate.cu", **header}
        return Candidate(path, form, {"candidate.cu": text}, (OPERATORS[header["operator"]],), details, **claims)
    operators = ("chain",) if form == "kernelbench" else tuple(OPERATORS[n] for n in _names(text) if n in OPERATORS)
    if not operators:
        raise UsageError(f"{path}: expected a function {' or '.join(OPERATORS)}, found neither")
    details = {"file": ONLY_FILE}
    return Candidate(path, form, {ONLY_FILE: text}, operators, details, **claims)


def _claims(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    """What comments `judge: NAME = VALUES` say that it can do."""
    claims = {}
    for name, values in CLAIM.findall(text):
        if name not in CLAIMED:
            raise UsageError(f"{path}: judge: {name}: unknown claim, expected one of {', '.join(CLAIMED)}")
        claims[name] = tuple(re.split(r"[ ,]+", values))
        if unknown := [value for value in claims[name] if value not in CLAIMED[name]]:
            expected = ", ".join(CLAIMED[name])
            raise UsageError(f"{path}: judge: {name}: {unknown[0]!r}, expected some of {expected}")
    return claims


def _form(path: Path, text: str) -> str:
    if path.suffix == ".json":
        return "solution"
    if cuda_header.MARK in text and "__global__" in text and path.suffix != ".py":
        return "cuda"
    if path.suffix in (".cu", ".cuh"):
        raise UsageError(f"{path}: {cuda_header.EXPECTED}")
    names = _names(text)
    if "ModelNew" in names:
        return "kernelbench"
    if any(name in OPERATORS for name in names):
        return "functions"
    raise UsageError(
        f"{path}: expected class ModelNew, a function {' or '.join(OPERATORS)}, a .cu with a header, or a solution.json"
    )


def _names(text: str) -> list[str]:
    """Names that the top level of a Python file defines; all that a broken file seems to define."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return re.findall(r"^(?:class|def)\s+(\w+)", text, re.MULTILINE)
    return list(_defined(tree.body))


def _defined(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that statements define, in the branches of an `if` and a `try` as well."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] * (node.value is not None)
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from _defined([*node.body, *node.orelse])
            if isinstance(node, ast.Try):
                yield from _defined([inner for handler in node.handlers for inner in handler.body])


def _solution(path: Path, text: str) -> Candidate:
    try:
        document = json.loads(text)
        spec = document["spec"]
        sources = {item["path"]: item["content"] for item in document["sources"]}
        file, _, function = spec["entry_point"].partition("::")
        definition = str(document["definition"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: no solution.json ({type(error).__name__}: {error})") from None
    if definition not in flashinfer.DEFINITIONS:
        known = ", ".join(flashinfer.DEFINITIONS)
        raise UsageError(f"{path}: definition {definition!r}, expected one of {known}")
    if file not in sources or not function or not file.endswith(".py"):
        raise UsageError(f"{path}: entry_point: expected FILE.py::FUNCTION of its sources, got {spec['entry_point']!r}")
    for name, content in sources.items():
        if fault := _fault(name, content, sources):
            raise UsageError(f"{path}: sources: {name!r:.80}: {fault}")
    details = {
        "file": file,
        "function": function,
        "passes_output": spec.get("destination_passing_style"),
        "definition": definition,
        "name": str(document.get("name", path.stem)),
    }
    return Candidate(path, "solution", sources, (flashinfer.DEFINITIONS[definition],), details)


def _fault(name: Any, content: Any, sources: dict[Any, Any]) -> str:
    """Why a source of a solution cannot be written to a file of its folder; "" if it can."""
    if not isinstance(name, str) or not isinstance(content, str):
        return "expected a text as path, and one as content"
    try:
        data, _ = os.fsencode(name), content.encode()
    except UnicodeEncodeError:
        return "expected text that can be encoded, got half of a surrogate pair"
    parts = Path(name).parts
    inside = bool(parts) and not Path(name).is_absolute() and ".." not in parts and parts[0] != HOME
    if not inside or b"\0" in data or max(len(os.fsencode(part)) for part in parts) > 255 or len(data) > 1000:
        return f"expected the path of a file inside the solution, and not in {HOME!r}"
    if any(isinstance(other, str) and Path(name) in Path(other).parents for other in sources):
        return "is a file, and the folder of another one"
    return ""
