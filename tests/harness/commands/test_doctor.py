"""What doctor says of a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import main
from harness.commands import doctor


def test_doctor_needs_a_fast_backend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def status(usable: bool) -> Callable[..., list[Any]]:
        names = {"triton": False, "cupy": usable, "torch": True}
        return lambda device=None: [
            SimpleNamespace(name=n, usable=u, reason="" if u else "no compiler", how="interpreter" if u else "")
            for n, u in names.items()
        ]

    monkeypatch.setattr(doctor.convgap, "status", status(True))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "triton     not usable: no compiler" in out and "cupy       usable, interpreter" in out
    monkeypatch.setattr(doctor.convgap, "status", status(False))
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["fast_backend_usable"] is False and found["backends"]["triton"]["reason"] == "no compiler"
