"""What the bench compares, and what building it costs."""

from __future__ import annotations

import pytest
import torch

from convgap import selection as chosen
from harness.cases.case import Case
from harness.cases.inputs import make_inputs
from harness.entries import entry
from reference.problem import Tail


def test_an_entry_probes_its_own_backend_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of one kernel set is not the other's to pay for."""
    probed: list[str] = []
    monkeypatch.setattr(chosen, "_found", {})
    monkeypatch.setattr(chosen, "probe", lambda name, device, check: probed.append(name))
    inputs = make_inputs(Case("one", Tail(1, 1, 2, 2), "any"), torch.device("cpu"))
    assert entry.require_usable("cupy", inputs) == "interpreter"
    assert probed == ["cupy"]
