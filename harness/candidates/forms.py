"""What kind of file somebody brought, told by what is in it, and what it says that it can do."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.candidates import cuda_header, flashinfer
from harness.cases import operators
from harness.cases.case import LAYOUTS
from harness.errors import UsageError
from harness.options import DTYPES

FORMS = ("kernelbench", "functions", "cuda", "solution")
OPERATORS = {operator.function: operator.name for operator in reversed(operators.built_in())}
CLAIM = re.compile(r"^\s*(?:#|//|\*)\s*judge:\s*(dtypes|layouts)\s*=\s*([\w, ]+)$", re.MULTILINE)
LONGEST = 4 << 20  # bytes of a file


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

    @property
    def text(self) -> str:
        """All its source."""
        return "\n".join(self.sources.values())

    @property
    def convolves(self) -> bool:
        """Whether it calls the framework's convolution, which rounds float32 operands to TF32 on a GPU."""
        return re.search(r"conv_transpose(2d)?\(", self.text) is not None

    @property
    def kernels(self) -> str:
        """What kernels of its own the file has, in a word; "" if none."""
        found = re.search(r"@triton\.jit|\bRawKernel\b|\bRawModule\b|__global__", self.text)
        return found[0] if found else ""

    @property
    def branches_on_device(self) -> bool:
        """Whether it asks where its tensors are: then its kernels may be for a GPU only."""
        return re.search(r"\.is_cuda\b|\.device\b", self.text) is not None

    @property
    def wants_gpu(self) -> str:
        """Why it cannot run without a GPU; "" if it can."""
        if "load_inline" in self.text and "cuda_sources" in self.text:
            return "load_inline builds CUDA C++ with nvcc, for a GPU"
        return ""


def read(path: Path, form: str | None = None) -> Candidate:
    """The candidate in a file. UsageError if it cannot be read or is of no form that is known here."""
    try:
        if path.stat().st_size > LONGEST:
            raise UsageError(f"{path}: longer than {LONGEST >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    form = form or _form(path, text)
    claims = {name: tuple(re.split(r"[ ,]+", values.strip())) for name, values in CLAIM.findall(text)}
    for name, known in (("dtypes", DTYPES), ("layouts", LAYOUTS)):
        if unknown := [value for value in claims.get(name, ()) if value not in known]:
            raise UsageError(f"{path}: judge: {name}: {unknown[0]!r}, expected some of {', '.join(known)}")
    if form == "solution":
        return _solution(path, text)
    if form == "cuda":
        header = cuda_header.read(path, text)
        details = {"file": "candidate.cu", **header}
        return Candidate(
            path, form, {"candidate.cu": text}, (OPERATORS[header["operator"]],), details, **claims
        )
    operators = (
        ("chain",) if form == "kernelbench" else tuple(OPERATORS[n] for n in _names(text) if n in OPERATORS)
    )
    if not operators:
        raise UsageError(f"{path}: expected a function {' or '.join(OPERATORS)}, found neither")
    details = {"file": "candidate.py"}
    return Candidate(path, form, {"candidate.py": text}, operators, details, **claims)


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
    names = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def _solution(path: Path, text: str) -> Candidate:
    try:
        document = json.loads(text)
        spec = document["spec"]
        sources = {item["path"]: item["content"] for item in document["sources"]}
        file, _, function = spec["entry_point"].partition("::")
        definition = document["definition"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: no solution.json ({type(error).__name__}: {error})") from None
    if definition not in flashinfer.DEFINITIONS:
        known = ", ".join(flashinfer.DEFINITIONS)
        raise UsageError(f"{path}: definition {definition!r}, expected one of {known}")
    if file not in sources or not function or not file.endswith(".py"):
        raise UsageError(
            f"{path}: entry_point: expected FILE.py::FUNCTION of its sources, got {spec['entry_point']!r}"
        )
    for name in sources:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UsageError(f"{path}: sources: expected paths inside the solution, got {name!r}")
    details = {
        "file": file,
        "function": function,
        "passes_output": spec.get("destination_passing_style"),
        "definition": definition,
        "name": str(document.get("name", path.stem)),
    }
    return Candidate(path, "solution", sources, (flashinfer.DEFINITIONS[definition],), details)
