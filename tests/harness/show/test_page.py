"""The page of a record: whole, escaped, without a network, and working in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.candidates.verdict import Check, Verdict
from harness.candidates.web import judge_page
from harness.show.page import record_page
from harness.timing.calls import CallTimes
from tests import synthetic

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed to open the page with")

# Sorts by the second entry's column, folds out a case by its link, and reports what a person would see.
SCRIPT = """<script>
const heads = [...document.querySelectorAll("#table + p + div th button")];
heads[3].click();
const column = () => [...document.querySelectorAll("#table + p + div tbody tr")].map(row => row.cells[3].textContent);
const up = column(); heads[3].click(); const down = column();
location.hash = "tail-256x256"; unfold();
document.title = JSON.stringify({up, down, open: document.getElementById("tail-256x256").open,
  dots: document.querySelectorAll("#overview ~ svg circle").length, wide: document.documentElement.scrollWidth});
</script>"""


def opened(path: Path, width: int = 1200) -> str:
    """The page's text as the browser has it after its scripts have run."""
    assert BROWSER
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={path.parent / 'profile'}",
    ]
    command += [f"--window-size={width},900", "--dump-dom", path.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_it_needs_nothing_else() -> None:
    page = record_page(synthetic.run())
    assert not re.search(r"(src|href)=\"(?!#)", page) and "@import" not in page and "http" not in page


def test_it_says_what_the_record_says() -> None:
    page = record_page(synthetic.run())
    for text in (
        "chain-headline",
        "18.6",
        "23.9",
        "Made-up GPU",
        "no convolution to serve a chain",
        "eager-ieee",
    ):
        assert text in page
    assert page.count("<circle") == 10 + sum(
        len(r.samples["cold"]) for c in synthetic.run().cases for r in c.results if r.samples
    )


def test_what_a_record_holds_is_no_markup() -> None:
    run = synthetic.run()
    run.cases[0].why = "<script>alert(1)</script>"
    run.environment.command = "a<b>"
    page = record_page(run)
    assert "alert(1)</script>" not in page and "a&lt;b&gt;" in page


def test_wrong_and_missing_answers_are_shown() -> None:
    run = synthetic.run()
    run.finished = False
    wrong = run.cases[0].results[0]
    wrong.status, wrong.error, wrong.reason, wrong.samples = "wrong", 3.5, "element 7", {}
    page = record_page(run)
    assert "wrong: element 7; error 3.5 budgets" in page and "was interrupted" in page


def test_a_record_without_times_is_a_page_too() -> None:
    run = synthetic.run()
    for case in run.cases:
        for result in case.results:
            result.samples = {}
    page = record_page(run)
    assert "Time over the floor" not in page and "Cross-check" in page


@needs_browser
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser(tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(record_page(synthetic.run()).replace("</body>", SCRIPT + "</body>"))
    found = re.search(r"<title>(.*?)</title>", opened(path, width))
    assert found
    import json
    from html import unescape

    seen = json.loads(unescape(found[1]))
    assert seen["up"] == ["22.1", "120"] and seen["down"] == ["120", "22.1"]
    assert seen["open"] and seen["dots"] == 10
    # Wide tables scroll inside themselves: the page is never wider than the window.
    assert seen["wide"] <= width


def test_kinds_of_call_are_on_it_too() -> None:
    run = synthetic.run()
    run.cases = []
    times = {"triton": [8.0, 8.1, 8.2], "eager": [16.0, 16.2, 16.4]}
    run.calls = [CallTimes("host", "tail:1,128,32,32", "float32", times, {"cupy": "CuPy is not installed"})]
    page = record_page(run)
    assert "What a person waits for" in page and "0.500 [" in page and "CuPy is not installed" in page
    assert "Cross-check" not in page


def test_verdicts() -> None:
    timed = {"rows": {"candidate": {"us": 30.5, "low": 30.1, "high": 30.9}}}
    found = [
        Verdict("mine.py", "kernelbench", checks=[Check("uniform", True, "fine", 0.25)]),
        Verdict("<b>.py", "functions", "wrong", ["crop: as if it were forgotten"], checks=[Check("x", False)]),
    ]
    page = judge_page(found)
    assert (
        "0.25" in page and "&lt;b&gt;.py" in page and "crop: as if it were forgotten" in page and "<b>.py" not in page
    )
    found[0].timing = timed | {"case": "a", "gpu": "b", "warm": {"candidate": {"us": 1.0}}}
    assert "30.5" in judge_page(found)
