"""What the lab's own tests rely on."""

from __future__ import annotations

import pytest

from harness.entries import entry
from harness.entries.entry import Entry
from tests.harness import planted


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Entry]:
    """The bench compares three entries that need nothing but torch; a test may add its own."""
    table = planted.three()
    monkeypatch.setattr(entry, "ENTRIES", table)
    return table
