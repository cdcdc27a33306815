"""Machine code on disk, found without Triton's compiler.

Triton keeps what it has compiled too, but before it looks there it hashes its whole installation, 400 MB: the
larger part of a first call that has nothing to compile. Its version and its library's size and time tell as
much, unless somebody edits its Python files in place: TRITON_ALWAYS_COMPILE=1 is for them.
"""

from __future__ import annotations

import json
import logging
import os
from base64 import b64decode, b64encode
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from uuid import uuid4

import triton
from triton import knobs
from triton._C import libtriton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.cache import get_cache_manager

FILE = "machine_code.json"

_log = logging.getLogger("convgap")


@dataclass(frozen=True)
class MachineCode:
    """One kernel, as the driver loads and launches it."""

    cubin: bytes
    name: str
    """Its entry point."""
    threads: int
    """Per program."""
    shared: int
    """Bytes of shared memory per program."""


def machine_code(
    source: ASTSource, target: GPUTarget, options: dict[str, Any], *, anew: bool = False
) -> MachineCode:
    """Compile `source` for `target` with Triton's `options`, or find what that gave before in Triton's cache
    folder.

    anew: whatever is found there is not to be trusted. Raises whatever Triton raises, and RuntimeError for a
    kernel that needs scratch memory.
    """
    files = get_cache_manager(_key(source, target, options))
    path = None if anew or knobs.compilation.always_compile else files.get_file(FILE)
    found = _read(path) if path else None
    if found is None:
        found = _compiled(_compile(source, target, options, anew))
        files.put(json.dumps(vars(found) | {"cubin": b64encode(found.cubin).decode()}), FILE, binary=False)
    return found


def _compile(source: ASTSource, target: GPUTarget, options: dict[str, Any], anew: bool) -> Any:
    """What Triton makes of it. Files in its own cache that cannot be read are made once more, as if they were
    not there."""
    if not anew:
        try:
            return triton.compile(source, target=target, options=options)
        except Exception as error:
            _log.debug("compiled anew, past Triton's cache, after %r", error)
    # Under a name of its own: even where Triton is told to compile always, it reads its list of files first.
    other = copy(source)
    name = f"{source.hash()}-{uuid4()}"
    other.hash = lambda: name
    return triton.compile(other, target=target, options=options)


def _key(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> str:
    library = os.stat(str(libtriton.__file__))
    # Triton knows which switches change its code, but not of all that are named after it.
    switches = libtriton.get_cache_invalidating_env_vars()
    switches |= {name: value for name, value in os.environ.items() if name.startswith("TRITON_")}
    installation = triton.__version__, library.st_size, library.st_mtime_ns
    parts = *installation, source.hash(), target, sorted(options.items()), sorted(switches.items())
    return sha256(repr(parts).encode()).hexdigest()


def _read(path: str) -> MachineCode | None:
    """What is in the file; None if it is damaged, as by a loss of power, or gone."""
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        return MachineCode(**fields | {"cubin": b64decode(fields["cubin"], validate=True)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _compiled(compiled: Any) -> MachineCode:
    made = compiled.metadata
    if made.global_scratch_size or made.profile_scratch_size:
        raise RuntimeError(f"{made.name}: expected a kernel without scratch memory")
    return MachineCode(compiled.asm["cubin"], made.name, 32 * made.num_warps, made.shared)
