"""A crash names the line of the author's own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.candidates.judged import judged

MODEL = """import torch


class ModelNew(torch.nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.conv_transpose = torch.nn.ConvTranspose2d(*sizes[:-1])

    def forward(self, x):
        return {}[9]
"""
IMPORT = f"{MODEL}\n\ntorch.no_such_name\n"


@pytest.mark.parametrize(("text", "line"), [(MODEL, 10), (IMPORT, 13)], ids=["call", "import"])
def test_a_crash_names_the_line_of_the_file(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    found = judged(path)
    assert found.verdict == "crashed"
    assert f"(mine.py, line {line})" in found.reasons[0], found.reasons
