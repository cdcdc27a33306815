"""The verdict on a file, as tests ask for it: always the same seed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from harness.candidates import forms, judging
from harness.candidates.verdict import Verdict

SEED = 2026


def judged(path: Path, **settings: Any) -> Verdict:
    """Everything but times."""
    with ExitStack() as stack:
        chosen = judging.Settings(SEED, torch.cuda.is_available(), **settings)
        return judging.judge(forms.read(path), chosen, stack).verdict
