"""In which order the interpreter runs blocks and threads."""

from __future__ import annotations

import pytest

from tests.cupy_impl.own_kernels import ORDERS


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CONVGAP_INTERPRET_ORDER", request.param)
    return request.param


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVGAP_INTERPRET_ORDER", "forward")
