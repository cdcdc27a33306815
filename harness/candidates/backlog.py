"""Candidates in bulk: which there are, what tells them apart, and which of them a trace has verdicts for already."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.candidates.verdict import Check, Verdict
from harness.errors import UsageError
from harness.files import require_regular

BYTE_FOR_BYTE: Any = {"encoding": "utf-8", "errors": "surrogateescape"}
SUFFIXES = (".py", ".cu", ".cuh", ".json")


@dataclass(frozen=True)
class Task:
    """One candidate as data that any machine can judge. file: its name; of several of one text, each is a task."""

    file: str
    text: str

    def key(self, context: str) -> str:
        """Same file under the same judge, problem, settings and card: same key."""
        return hashlib.sha256(f"{context}\0{self.file}\0{self.text}".encode(**BYTE_FOR_BYTE)).hexdigest()


def tasks(source: Path, *, problem: bool) -> list[Task]:
    """Every file of a folder, or every line of a JSONL of solutions. UsageError if there is none."""
    try:
        if source.is_dir():
            paths = sorted(p for p in source.iterdir() if p.suffix in SUFFIXES and p.is_file())
            # Bytes that are no text stay what they are: the judge of the file has to see them.
            found = [Task(path.name, path.read_text(**BYTE_FOR_BYTE)) for path in paths]
        else:
            require_regular(source)
            lines = source.read_text(encoding="utf-8").splitlines()
            found = [_solution(source, at, line, problem) for at, line in enumerate(lines, 1) if line.strip()]
    except OSError as error:
        raise UsageError(f"--queue: {source}: cannot be read ({error})") from None
    except UnicodeDecodeError:
        raise UsageError(f"--queue: {source}: expected a folder, or a JSONL of solutions") from None
    if not found:
        raise UsageError(f"--queue: {source}: expected files {', '.join(SUFFIXES)} or lines of JSON, found none")
    return found


def _solution(source: Path, number: int, line: str, problem: bool) -> Task:
    """A line of flashinfer-bench's solutions; with a problem the file of its entry point is the candidate."""
    try:
        document = json.loads(line)
        name = re.sub(r"[^\w.-]", "_", f"{number:05d}-{document.get('name', 'solution')}", flags=re.ASCII)[:120]
        if not problem:
            return Task(f"{name}.json", line)
        file = document["spec"]["entry_point"].partition("::")[0]
        text = next(item["content"] for item in document["sources"] if item["path"] == file)
        text.encode()
        return Task(f"{name}.py", text)
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError) as error:
        raise UsageError(f"--queue: {source}, line {number}: no solution ({type(error).__name__}: {error})") from None


@cache
def version() -> str:
    """Of the judge: a digest of all that decides a verdict."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("candidates", "numerics", "timing"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def remembered(trace: Path) -> dict[str, Verdict]:
    """Verdicts of a trace by their keys; a last line that was cut off, as by a kill, is skipped."""
    found: dict[str, Verdict] = {}
    if not trace.exists():
        return found
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            judged = json.loads(line)["judged"]
            found[judged["key"]] = verdict_of(judged["verdict"])
        except (ValueError, TypeError, KeyError):
            continue
    return found


def verdict_of(document: dict[str, Any]) -> Verdict:
    """A verdict again, from what `Verdict.document` wrote."""
    names = (
        "file",
        "form",
        "verdict",
        "reasons",
        "notes",
        "timing",
        "settings",
        "absolute_error",
        "relative_error",
    )
    found = Verdict(**{name: document[name] for name in names})
    found.checks = [Check(**check) for check in document["checks"]]
    return found


def whole_lines(trace: Path) -> None:
    """End a line that was cut off, so that the next one stands alone."""
    if trace.exists() and (data := trace.read_bytes()) and not data.endswith(b"\n"):
        with trace.open("ab") as file:
            file.write(b"\n")


def left(done: int, total: int, seconds: float) -> Iterator[str]:
    """Progress in words: how many, and about how long the rest takes at the pace so far."""
    yield f"{done} of {total} judged"
    if done and done < total:
        rest = seconds / done * (total - done)
        yield f"about {rest / 60:.0f} min left" if rest >= 90 else f"about {rest:.0f} s left"
