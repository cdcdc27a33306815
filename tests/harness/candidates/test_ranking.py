"""What is said of times, on made-up samples: summary, witnesses, page. On a GPU also the real thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.candidates import answers, page, ranking
from harness.candidates.exam import Rules
from harness.candidates.trials import SMALL, Trial
from harness.candidates.verdict import Found, Verdict
from harness.cases.case import Case
from harness.cli import main
from harness.timing.floors import Card

CASE = Case("chain/small", SMALL, "made up")
EXAMPLE = Path(__file__).parents[3] / "examples" / "candidates" / "tail_triton.py"


class Worker:
    """Answers as a process does; `kernel_us` is what the profiler saw, `wrong` spoils the graph's answer."""

    def __init__(self, kernel_us: float = 9.0, wrong: bool = False) -> None:
        self.kernel_us, self.wrong = kernel_us, wrong
        self.inputs: Any = None

    def ask(self, command: str, blobs: Sequence[Any] = (), *, what: str, **_: Any) -> tuple[dict[str, Any], list[Any]]:
        assert command == "time"
        if what == "kernels":
            return {"kernels": [{"name": "k", "count": 1.0, "us": self.kernel_us}] if self.kernel_us else []}, []
        if what == "secret":
            x = torch.frombuffer(bytearray(blobs[0]), dtype=torch.float32).view(SMALL.in_shape)
            values = answers.right(SMALL, replace(self.inputs, x=x)).expected.astype(np.float32)
            return {}, [bytearray((values * (2 if self.wrong else 1)).astype(np.float32).tobytes())]
        return {}, []


def timed(worker: Worker, us: float) -> tuple[ranking.Timed, Any]:
    worker.inputs = Trial("timed", SMALL, 0.5, 1).inputs(1)
    verdict = Verdict("file.py", "kernelbench")
    judged: Any = SimpleNamespace(verdict=verdict)
    timer: Any = SimpleNamespace(
        ceilings=SimpleNamespace(read_us=lambda size, mode: 8.0), card=Card("a card", 1.0, 1 << 20, 100)
    )
    rng = np.random.default_rng(1)
    samples = {
        mode: {name: list(value * rng.uniform(1, 1.02, 40)) for name, value in
               {"candidate 0": us, "triton": 20.0, "eager-tf32": 90.0}.items()}
        for mode in ranking.MODES
    }  # fmt: skip
    verdict.timing = ranking._summary("candidate 0", samples, timer, CASE.name, CASE.problem.compulsory_bytes(4), [])
    channel: Any = worker
    return ranking.Timed(judged, channel, Rules(), worker.inputs, CASE), timer


def test_honest_times_and_their_page() -> None:
    item, timer = timed(Worker(), 10.0)
    ranking._witnesses(item, timer)
    verdict = item.judged.verdict
    low, high = verdict.timing["rows"]["triton"]["over_candidate"]
    assert 1.9 < low < high < 2.1 and verdict.timing["reference"] == "eager-tf32"
    text = "\n".join(page.lines(verdict))
    assert "times the candidate's: slower" in text and "% of what reading the input allows" in text and "1 x k" in text
    assert "10." in "\n".join(page.ranking([verdict, Verdict("b.py", "kernelbench", "wrong", ["wrong: so"])]))


@pytest.mark.parametrize(
    "worker, us, reason",
    [
        (Worker(), 1.0, "impossible: "),
        (Worker(kernel_us=60.0), 10.0, "timer: "),
        (Worker(kernel_us=0.0), 10.0, "idle: "),
        (Worker(wrong=True), 10.0, "graph: "),
    ],
)
def test_witnesses_against(worker: Worker, us: float, reason: str) -> None:
    item, timer = timed(worker, us)
    with pytest.raises(Found) as found:
        ranking._witnesses(item, timer)
    assert found.value.verdict == "refused" and found.value.reason.startswith(reason)


def test_a_card_that_is_busy_for_a_while_is_no_trick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wall clock of five that agrees with the events is enough, for only others make it run long."""
    for walls, accepted in (([49.8, 31.0, 12.0], True), ([49.8] * ranking.ATTEMPTS, False)):
        item, timer = timed(Worker(), 10.0)
        left = iter(walls)
        monkeypatch.setattr(ranking, "_wall", lambda item, count, left=left: next(left))
        if accepted:
            ranking._witnesses(item, timer)
            assert item.judged.verdict.timing["wall_us"] == 12.0
        else:
            with pytest.raises(Found, match=r"timer: events say 10\.\d us, the judge's own clock 49\.8 us"):
                ranking._witnesses(item, timer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nothing is timed without a GPU")
def test_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", str(EXAMPLE), "--seconds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "by the judge's own clock" in printed and "eager-tf32" in printed
