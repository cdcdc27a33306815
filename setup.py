"""What pyproject.toml cannot say: an installed wheel puts one name, `convgap`, into everybody's top level.

In the checkout the folders stand beside each other and import each other by plain names: `from reference.problem
import Chain`. In a wheel they are packages inside `convgap`, and each such statement is rewritten on its way there:
`from convgap.reference.problem import Chain`. A user's own reference.py, or harness, then hides nothing of it. An
editable install (`uv sync`) is the checkout itself. `runtime/names.py` has the names that are put together at run time.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = "convgap"
# Every folder with an __init__.py beside this file, and what is inside it.
PACKAGES = find_packages(exclude=["tests", "tests.*"])
MOVED = {name for name in PACKAGES if "." not in name} - {ROOT}
EDITABLE = "editable_wheel" in sys.argv


def rewritten(source: str, path: str) -> str:
    """A module's text with the imports of moved folders found inside the one package. SyntaxError if one cannot be."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.ImportFrom):
            moved = not node.level and (node.module or "").partition(".")[0] in MOVED
        elif isinstance(node, ast.Import):
            moved = any(alias.name.partition(".")[0] in MOVED for alias in node.names)
            if moved and (len(node.names) > 1 or not node.names[0].asname):
                # `import a.b` binds `a`, which a wheel does not have.
                raise SyntaxError(f"{path}:{node.lineno}: write `from ... import` or `import ... as`")
        else:
            continue
        if moved:
            line, column = node.lineno - 1, node.col_offset
            before, statement = lines[line][:column], lines[line][column:]
            lines[line] = before + re.sub(r"^(from|import)\s+", rf"\g<0>{ROOT}.", statement)
    return "".join(lines)


class InsideOneRoot(build_py):
    """Copies modules as ever, then rewrites the copies' imports; what an earlier build left is not taken along."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        for file in () if self.editable_mode else self.get_outputs(include_bytecode=False):
            if file.endswith(".py"):
                path = Path(file)
                path.write_text(rewritten(path.read_text(encoding="utf-8"), file), encoding="utf-8")


def installed(package: str) -> str:
    """The name of one of PACKAGES where it is installed."""
    return package if EDITABLE or package.partition(".")[0] == ROOT else f"{ROOT}.{package}"


def data_files(package: str) -> list[str]:
    """Patterns of what is no module: kernels, headers, py.typed, and folders of a package that are no packages."""
    folders = [path for path in Path(*package.split(".")).iterdir() if path.is_dir() and path.name != "__pycache__"]
    return ["*", *(f"{path.name}/**/*" for path in folders if not (path / "__init__.py").exists())]


setup(
    packages=[installed(package) for package in PACKAGES],
    package_dir={} if EDITABLE else {f"{ROOT}.{name}": name for name in MOVED},
    package_data={installed(package): data_files(package) for package in PACKAGES},
    # What a build or an editor left there.
    exclude_package_data={"": ["*.so", "*.pyd", "*.pyc", "*~"]},
    entry_points={"console_scripts": [f"convgap = {'' if EDITABLE else ROOT + '.'}harness.cli:main"]},
    cmdclass={"build_py": InsideOneRoot},
)
