"""What this project's folders are called where they are imported from.

In the checkout they stand beside each other: `reference`, `harness`, ... In an installed wheel they are inside the
one package `convgap`, because names as plain as these belong to whoever runs a script. Building a wheel rewrites
import statements (setup.py); a name that is put together at run time is asked for here.
"""

import sys
from pathlib import Path

_PREFIX = __name__.removesuffix("runtime.names")
INSTALLED = bool(_PREFIX)
# A fresh process that has this folder on its path, or works in it, imports the same files as this one.
ROOT = Path(__file__).parents[1 + _PREFIX.count(".")]


def importable(module: str) -> str:
    """The name to import, for one of the checkout: "harness.cli" is "convgap.harness.cli" in an installed wheel."""
    return _PREFIX + module


def module_command(module: str) -> list[str]:
    """The command line that runs a module of the checkout in a process of its own."""
    return [sys.executable, "-m", importable(module)]
