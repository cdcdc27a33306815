"""What a candidate prints and switches: the judge's own words and coarser arithmetic are signs, others are not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.candidates import cheating, page
from harness.candidates.isolation import ROOT
from harness.candidates.verdict import Check, Verdict

HONEST = (
    "autotune: config BLOCK=128 accepted",
    "3 configurations accepted, 2 left out",
    "the plan was accepted by the driver",
)


@pytest.mark.parametrize("text", HONEST)
def test_other_things_than_a_candidate_may_be_accepted(text: str) -> None:
    assert list(cheating.printed(f"before\n{text}\nafter")) == []


def test_every_line_that_says_accepted_on_a_page_is_the_judges_own() -> None:
    found = Verdict("a.py", "kernelbench", checks=[Check("uniform", True)])
    lines = [
        *page.lines(found),
        *page.ranking([found, found]),
        "2 of 2 accepted, by a budget",
        str(found.document()),
    ]
    said = [line.replace("'", '"') for line in lines if "accepted" in line.lower() or "passed," in line]
    assert len(said) >= 5
    for line in (*said, "  27 of 27 checks passed", "All tests passed", "accepted!", "Verdict: accepted"):
        assert list(cheating.printed(f"before\n{line}")), line


SWITCHES = {
    "torch.set_float32_matmul_precision('highest')": False,
    "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False": False,
    "torch.use_deterministic_algorithms(True)": False,
    "torch.set_float32_matmul_precision('high')": True,
    "torch.set_float32_matmul_precision('medium')": True,
    "torch.backends.cuda.matmul.allow_tf32 = True": True,
    "torch.set_default_dtype(torch.float16)": True,
    "torch.set_autocast_enabled('cpu', True)": True,
}


def test_only_a_coarser_setting_is_a_sign() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import torch\n"
        "from harness.candidates.inside.watch import Watch\n"
        "watch = Watch('nowhere')\nwatch.start({})\n"
    )
    code += "\n".join(f"{line}\nprint(len(watch.look()) > 0)" for line in SWITCHES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert dict(zip(SWITCHES, done.stdout.split(), strict=True)) == {k: str(v) for k, v in SWITCHES.items()}
