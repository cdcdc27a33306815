"""Where there is no native path: the reason is said, and calls go through Python."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from convgap import fast
from runtime import cache, native, private


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The native path as in a new process, with nothing built yet."""
    for name, value in {"_not_yet": True, "_build": None, "_module": None, "_state": "new"}.items():
        monkeypatch.setattr(fast, name, value)
    monkeypatch.setattr(cache, "directory", lambda: tmp_path)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CONVGAP_NATIVE", raising=False)
    if reason := native.refusal():
        pytest.skip(f"there is no native path here: {reason}")
    return monkeypatch


NEVER: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "switched off": ("CONVGAP_NATIVE is 0", lambda m: m.setenv("CONVGAP_NATIVE", "0")),
    "another system": ("it is for Linux, and this is darwin", lambda m: m.setattr(sys, "platform", "darwin")),
    "another Python": ("it is for CPython", lambda m: m.setattr(sys.implementation, "name", "pypy")),
    "free-threaded": (
        "it relies on Python's global lock",
        lambda m: m.setattr(native.sysconfig, "get_config_var", lambda name: name == "Py_GIL_DISABLED"),
    ),
    "no exchange": ("__dlpack_c_exchange_api__", lambda m: m.setattr(private, "exchange", None)),
    "no keys": ("the dispatcher's keys", lambda m: m.setattr(private, "KEYS", None)),
}
"""What no compiler could mend."""


@pytest.mark.parametrize("name", NEVER)
def test_refused_before_a_compiler_is_asked(name: str, fresh: pytest.MonkeyPatch) -> None:
    reason, change = NEVER[name]
    fresh.setattr(native, "Build", None)
    with fresh.context() as changed:
        change(changed)
        fast._advance(True)
        assert reason in fast.state()
    assert reason in fast._state and fast._state.endswith("calls go through Python")
    assert fast._module is None and not fast._not_yet


UNBUILT: dict[str, tuple[str, Callable[[pytest.MonkeyPatch, Path], None]]] = {
    "no compiler": ("no C compiler: neither cc, gcc nor clang", lambda m, empty: m.setenv("PATH", str(empty))),
    "one that is not there": ("CC='nowhere -m64' is not on PATH", lambda m, _: m.setenv("CC", "nowhere -m64")),
    "one that fails": ("the C compiler failed", lambda m, _: m.setenv("CC", "false")),
    "no headers": (
        "no Python.h in",
        lambda m, empty: m.setattr(native.sysconfig, "get_path", lambda _: str(empty)),
    ),
}  # fmt: skip
"""What is in the way of a compilation."""


@pytest.mark.parametrize("name", UNBUILT)
def test_it_cannot_be_built(name: str, fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name == "no headers" and not native.compiler():
        pytest.skip("no C compiler, which is missed first")
    reason, change = UNBUILT[name]
    change(fresh, tmp_path)
    fast._advance(True)
    assert reason in fast.state() and fast.state().endswith("calls go through Python")
    assert fast._module is None and not fast._not_yet
    assert not list(tmp_path.iterdir()), "nothing half made is left"


def test_a_damaged_library_is_removed(tmp_path: Path) -> None:
    damaged = tmp_path / "native-0.so"
    damaged.write_bytes(b"\x7fELF, and no more")
    with pytest.raises(native.Unavailable, match=r"native-0\.so does not load"):
        native.load(damaged)
    assert not damaged.exists()
