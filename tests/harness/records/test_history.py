"""A row of records: each entry's median in each, what the newest changed, and the picture of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.cli import main
from harness.records.as_json import to_json
from harness.records.history import history
from tests import synthetic


def test_medians_in_a_row_and_the_last_step() -> None:
    runs = [synthetic.run(factor=factor, seed=seed) for seed, factor in enumerate((1.0, 0.5, 0.6))]
    del runs[1].cases[0].results[0]
    lines = {(line.case, line.entry, line.mode): line for line in history(runs)}
    gone = lines["chain-headline", "triton", "cold"]
    assert gone.medians[1] is None and gone.last and gone.last.verdict == "new"
    kept = lines["chain-headline", "cupy", "cold"]
    assert kept.medians == pytest.approx((22.1, 11.05, 13.26), rel=0.01)
    assert kept.last and kept.last.verdict == "slower"
    assert len(lines) == 2 * 2 * 5


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for i, factor in enumerate((1.0, 0.5, 0.6)):
        run = synthetic.run(factor=factor, seed=i)
        run.environment.commit = f"commit{i}"
        paths.append(str(tmp_path / f"{i}.json"))
        Path(paths[-1]).write_text(to_json(run))
    assert main(["diff", *paths]) == 1, "the newest is slower than the one before it"
    out = capsys.readouterr().out
    assert "commit0" in out and "commit2" in out and "20 slower" in out
    assert main(["diff", paths[2], paths[1], paths[0][:-1] + "x"]) == 2
    assert main(["diff", *paths[:2], "--plot", str(tmp_path / "p.png")]) == 2
    if find_spec("matplotlib"):
        assert main(["diff", *paths, "--plot", str(tmp_path / "p.pdf")]) == 2
        assert main(["diff", *paths, "--plot", str(tmp_path / "p.svg")]) == 1
        assert "commit1" in (tmp_path / "p.svg").read_text()
