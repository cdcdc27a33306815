"""From a Triton kernel to machine code, kept on disk and found again without Triton's compiler.

`triton.compile` keeps what it has compiled too, but before it looks there, and before it compiles, it hashes its whole
installation, 400 MB: 0.4 to 0.9 s of the first call of a process. So its stages are called one after the other here,
and what they make is kept under a key of its own. Triton's version and its library's size and time tell as much as the
hash does, unless somebody edits Triton's Python files in place: TRITON_ALWAYS_COMPILE=1 is for them.
"""

from __future__ import annotations

import json
import logging
import os
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import Any

import triton
from triton import knobs
from triton._C import libtriton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.cache import get_cache_manager

FILE = "machine_code.json"

_python_at_work = Lock()
"""The first stage is Python code, so several threads take turns at it and are all late for the stages after it, which
run beside each other. One after the other, the first thread is there in half the time."""

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


def machine_code(source: ASTSource, target: GPUTarget, options: dict[str, Any], *, anew: bool = False) -> MachineCode:
    """Compile `source` for `target` with Triton's `options`, or find what that gave before in Triton's cache
    folder.

    anew: whatever is found there is not to be trusted. Raises whatever Triton raises, and RuntimeError for a
    kernel that needs scratch memory.
    """
    files = get_cache_manager(_key(source, target, options))
    path = None if anew or knobs.compilation.always_compile else files.get_file(FILE)
    found = _read(path) if path else None
    if found is None:
        found = _made(*compiled(source, target, options))
        files.put(json.dumps(vars(found) | {"cubin": b64encode(found.cubin).decode()}), FILE, binary=False)
    return found


def compiled(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """A cubin and its metadata: by Triton's stages or, where somebody watches `triton.compile` or this Triton's stages
    are called in another way, by that. Raises whatever it raises."""
    if not _watched():
        try:
            return _by_stages(source, target, options)
        except Exception as error:
            _log.debug("by triton.compile, after %r", error)
    made = triton.compile(source, target=target, options=options)
    return made.asm["cubin"], made.metadata._asdict()


def _watched() -> bool:
    """Whether Triton was asked to dump or replace what its stages make, or to tell somebody."""
    asked = knobs.compilation
    hook = getattr(knobs.runtime, "add_stages_inspection_hook", None)
    return bool(asked.dump_ir or asked.override or asked.listener or hook)


def _by_stages(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    backend: Any = make_backend(target)
    chosen = backend.parse_options(options | source.parse_options())
    stages: dict[str, Any] = {}
    backend.add_stages(stages, chosen, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module_map = backend.get_module_map()
    with _python_at_work:
        made = source.make_ir(target, chosen, backend.get_codegen_implementation(chosen), module_map, context)
    metadata = {"target": target, **vars(chosen)}
    for stage in stages.values():
        made = stage(made, metadata)
    return made, metadata


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


def _made(cubin: bytes, metadata: dict[str, Any]) -> MachineCode:
    name = metadata["name"]
    if metadata["global_scratch_size"] or metadata["profile_scratch_size"]:
        raise RuntimeError(f"{name}: expected a kernel without scratch memory")
    return MachineCode(cubin, name, 32 * metadata["num_warps"], metadata["shared"])
