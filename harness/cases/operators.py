"""Which operators there are: chain and tail, and one of your own that a file describes (docs/design.md).

The objects themselves are in harness/operators/, above every room that they speak of. They are loaded here by name, as
a file of your own is, so the rooms below know of an operator only what its object says.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.errors import UsageError, one_line
from runtime.names import importable

BUILT_IN = {"chain": "harness.operators.chain", "tail": "harness.operators.tail"}
"""The project's own, each with the module whose OPERATOR it is, in house order."""

_own: dict[Path, Any] = {}


@cache
def built_in() -> tuple[Any, ...]:
    """The project's own operators, each a harness.operators.contract.Operator."""
    return tuple(import_module(importable(module)).OPERATOR for module in BUILT_IN.values())


def known() -> tuple[Any, ...]:
    """Every operator of this process: the project's own, then those that were loaded."""
    return *built_in(), *_own.values()


def of(problem: Any) -> Any:
    """The operator whose sizes these are. TypeError for sizes of none."""
    for operator in known():
        if type(problem) is operator.sizes:
            return operator
    names = ", ".join(operator.sizes.__name__ for operator in known())
    raise TypeError(f"problem: expected sizes of a known operator ({names}), got {type(problem).__name__}")


def load(path: Path) -> Any:
    """The operator that a file describes, as its OPERATOR; from then on it is known.

    UsageError if the file cannot be run, or if its operator would be taken for another one.
    """
    path = path.resolve()
    if path not in _own:
        operator = _read(path)
        if operator.name in (other.name for other in known()):
            raise UsageError(f"--operator: {path}: expected a name of its own, got {operator.name!r}")
        operator.file = path
        _own[path] = operator
    return _own[path]


def _read(path: Path) -> Any:
    kind = import_module(importable("harness.operators.contract")).Operator
    # Its own folder is searched too: kernels may lie beside the file, as they do beside a script.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"operator_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UsageError(f"--operator: {path}: expected a file of Python")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's file dies of
        raise UsageError(f"--operator: {path}: {one_line(error)}") from None
    operator: Any = getattr(module, "OPERATOR", None)
    if not isinstance(operator, kind):
        found = "nothing of that name" if operator is None else type(operator).__name__
        raise UsageError(f"--operator: {path}: expected OPERATOR to be an Operator, got {found}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", operator.name):
        raise UsageError(f"--operator: {path}: name: expected lower-case letters, got {operator.name!r}")
    return operator
