"""Finds the C or C++ compiler of this machine."""

from __future__ import annotations

import os
import shlex
import shutil


def find_compiler(variable: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Command line of a compiler: what the environment's variable says, else the first of the names that is on PATH;
    empty if there is none."""
    named = os.environ.get(variable, "").strip()
    for command in [shlex.split(named)] if named else [[name] for name in names]:
        if path := shutil.which(command[0]):
            return path, *command[1:]
    return ()
