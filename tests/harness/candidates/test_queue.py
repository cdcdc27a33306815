"""A queue of candidates: judged once each, stopped and resumed, and nothing lost where a process dies."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.candidates import backlog, crew
from harness.candidates.job import Terms
from harness.candidates.worker import Limits
from harness.cli import main
from tests.harness.candidates import generated

TERMS = Terms(0, Limits(), 1.0)


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    folder = tmp_path / "candidates"
    folder.mkdir()
    (tmp_path / "problem.py").write_text(generated.PROBLEM)
    return folder


def judge(queue: Path, *more: str) -> int:
    given = ["--problem", str(queue.with_name("problem.py")), "--trace", str(queue.with_name("trace.jsonl"))]
    out = ["--json", str(queue.with_name("out.json"))]
    return main(["judge", "--queue", str(queue), *given, *out, "--processes", "1", *more])


def _without_times(page: str) -> list[str]:
    """The lines in any order: on a GPU, what is timed twice has other digits, and equally fast files change places."""
    return sorted(re.sub(r"[0-9.]+ us|\[[0-9., ]+\]|^ +[0-9]+ ", "", line) for line in page.splitlines())


def test_every_kind_gets_its_verdict_and_a_queue_goes_on_where_it_stopped(
    queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deserved = generated.write(queue, 10)
    assert judge(queue) == 1
    first = capsys.readouterr()
    documents = json.loads(queue.with_name("out.json").read_text())
    assert {d["file"]: d["verdict"] for d in documents} == deserved
    assert "10 of 10 judged; 4 accepted" in first.err and "estimated" in first.out
    trace = queue.with_name("trace.jsonl")
    lines = trace.read_text().splitlines()
    assert len(lines) == 10 and json.loads(lines[0])["evaluation"]["status"]
    trace.write_text("\n".join(lines[:7]) + "\n" + lines[7][:40])  # killed while it wrote the eighth
    assert judge(queue) == 1
    again = capsys.readouterr()
    assert (
        _without_times(again.out) == _without_times(first.out)
        and "7 of 10 have a verdict" in again.err
        and "3 of 3 judged" in again.err
    )
    keys = Counter(json.loads(line)["judged"]["key"] for line in trace.read_text().splitlines() if line[-1] == "}")
    assert len(keys) == 10 and set(keys.values()) == {1}


def test_another_problem_is_judged_anew_and_the_same_is_not() -> None:
    task = backlog.Task("a.py", "text")
    assert task.key("one") == backlog.Task("a.py", "text").key("one") != task.key("two")
    assert task.key("one") != backlog.Task("b.py", "text").key("one") != backlog.Task("a.py", "more").key("one")


def test_lines_of_solutions(tmp_path: Path) -> None:
    source = {"path": "main.py", "content": "class ModelNew: ..."}
    line = json.dumps({"name": "first", "spec": {"entry_point": "main.py::run"}, "sources": [source]})
    path = tmp_path / "solutions.jsonl"
    path.write_text(f"{line}\n\n{line}\n")
    assert [task.file for task in backlog.tasks(path, problem=True)] == ["00001-first.py", "00003-first.py"]
    assert backlog.tasks(path, problem=True)[0].text == source["content"]
    assert backlog.tasks(path, problem=False)[0] == backlog.Task("00001-first.json", line)


@pytest.mark.parametrize(
    "options, says",
    [
        (["--processes", "0"], "--processes: expected a number from 1"),
        (["--full"], "--full: is not for --queue"),
        (["more.py"], "expected no other FILE"),
    ],
)
def test_bad_usage(options: list[str], says: str, queue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generated.write(queue, 1)
    assert judge(queue, *options) == 2
    assert says in capsys.readouterr().err


def test_an_empty_queue_and_one_without_memory(queue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(queue) == 2 and "found none" in capsys.readouterr().err
    assert main(["judge", "--queue", str(queue)]) == 2 and "--trace" in capsys.readouterr().err
    assert main(["judge", "--cluster", "tcp://nowhere:1", "a.py"]) == 2


def dies(task: backlog.Task, terms: Terms, *, gpu: bool) -> dict[str, Any]:
    """Stands for a judge: the first process that meets `once` dies of it, and each that meets `always`."""
    if task.file == "always" or (task.file == "once" and not Path(task.text).exists()):
        Path(task.text).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"verdict": "accepted", "gpu": gpu}


def test_processes_that_die_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew.job, "run", dies)
    names = ("a", "once", "b", "always", "c")
    waiting = [backlog.Task(name, str(tmp_path / name)) for name in names]
    found = list(crew.local(waiting, TERMS, 1))
    assert Counter(task.file for task, _ in found) == Counter(names)
    verdicts = {task.file: document["verdict"] for task, document in found}
    assert verdicts == dict.fromkeys(names, "accepted") | {"always": "crashed"}


def test_a_cluster_loses_nothing_when_a_worker_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    monkeypatch.setattr(crew.job, "run", dies)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, resources={"JUDGE": 1}, dashboard_address=None
    ) as cluster:
        names = ("a", "once", "b", "c", "d")
        waiting = [backlog.Task(name, str(tmp_path / name)) for name in names]
        found = list(crew.cluster(cluster.scheduler_address, waiting, TERMS, gpu=False))
    assert Counter(task.file for task, _ in found) == Counter(names)
    assert all(document["verdict"] == "accepted" for _, document in found)
