"""Where what was compiled here is kept from process to process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


def directory() -> Path:
    """$CONVGAP_CACHE_DIR, else convgap in the user's cache directory; a temporary one, gone at exit, if that can not be
    written."""
    return _usable(os.environ.get("CONVGAP_CACHE_DIR") or None, os.environ.get("XDG_CACHE_HOME") or None)


@cache
def _usable(configured: str | None, base: str | None) -> Path:
    try:
        wanted = Path(configured) if configured else Path(base or Path.home() / ".cache", "convgap")
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except (OSError, RuntimeError):  # not to be written, or nobody knows where the home directory is
        fallback = tempfile.mkdtemp(prefix="convgap-")
        atexit.register(shutil.rmtree, fallback, ignore_errors=True)
        return Path(fallback)
