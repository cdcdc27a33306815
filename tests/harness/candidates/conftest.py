"""What a judge asks is as much in these tests as it is elsewhere, of fewer samples where kernels are interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.candidates import trials


@pytest.fixture
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter takes some 10 s for the samples of the published problems; 8 still are more than a block takes."""
    if not torch.cuda.is_available():
        for name in ("OLD", "TODAY"):
            monkeypatch.setattr(trials, name, replace(getattr(trials, name), n=8))
