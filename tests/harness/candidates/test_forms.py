"""What is no candidate is told apart in one sentence, whatever is in it; what only people read decides nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.candidates import backlog, cheating, forms, job, rules
from harness.candidates.worker import Limits
from harness.cli import main
from harness.errors import UsageError
from tests.harness.candidates.test_judge import MODEL, write

DEEP = MODEL + "\nx = " + "+".join("1" for _ in range(2000)) + "\n"
DEEPER = MODEL + "\nx = " + "(" * 150 + "1" + ")" * 150 + "\ny = " + "-" * 100_000 + "1\n"


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        forms.read(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize("text", [DEEP, DEEPER], ids=["sum", "signs"])
def test_what_nests_too_deeply_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, text)
    assert "nests too deeply" in refused(path)
    assert main(["judge", str(path)]) == 2
    assert "nests too deeply" in capsys.readouterr().err


def test_strict_rules_name_it_too() -> None:
    assert "nests too deeply" in rules.form(DEEP)[0]


def test_a_header_that_nests_too_deeply(tmp_path: Path) -> None:
    text = f"/* judge\ngrid = {'[' * 5000}\nend judge */\n__global__ void a() {{}}"
    assert "no TOML" in refused(write(tmp_path, text, "a.cu"))


def solution(path: Any = "main.py", content: Any = "def run(y, m): ...", **more: Any) -> str:
    sources = [{"path": "main.py", "content": "def run(y, m): ..."}, {"path": path, "content": content}]
    document = {"definition": "multiply_gap", "spec": {"entry_point": "main.py::run"}, "sources": sources}
    return json.dumps(document | more)


SOLUTIONS = {
    "definition": solution(definition=["multiply_gap"]),
    "content null": solution(content=None),
    "content of half a pair": solution(content="\ud800"),
    "path with a null": solution("a\0b.py"),
    "path of half a pair": solution("\ud800.py"),
    "path a number": solution(3),
    "path empty": solution(""),
    "path of the folder": solution("."),
    "path above": solution("../a.py"),
    "path of the home": solution("home"),
    "path in the home": solution("./home/a.py"),
    "path long": solution("a" * 300),
    "path deep": solution("/".join("ab" for _ in range(2000))),
    "file and folder": solution("main.py/b"),
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_that_cannot_be_written_to_files_is_named(name: str, tmp_path: Path) -> None:
    refused(write(tmp_path, SOLUTIONS[name], "solution.json"))
    task = backlog.Task("solution.json", SOLUTIONS[name])
    verdict = job.run(task, job.Terms(0, Limits(), 1.0), gpu=False)
    assert verdict["verdict"] == "crashed" and "form: " in str(verdict["reasons"])


def test_names_of_solutions_become_names_of_files(tmp_path: Path) -> None:
    line = json.dumps({"name": "\ud800/\0ä" * 50})
    (task,) = backlog.tasks(write(tmp_path, line, "solutions.jsonl"), problem=False)
    write(tmp_path, task.text, task.file)


@pytest.mark.parametrize("options", [["FIFO"], ["--problem", "FIFO", "a.py"], ["--queue", "FIFO", "--trace", "t"]])
def test_a_pipe_is_not_waited_for(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, MODEL, "a.py")
    os.mkfifo("FIFO")
    assert main(["judge", *options]) == 2
    assert "expected a regular file" in capsys.readouterr().err


def test_a_folder_is_for_a_queue(tmp_path: Path) -> None:
    assert "--queue" in refused(tmp_path)


def test_a_queue_refuses_the_bytes_that_a_file_alone_is_refused_for(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes((MODEL + "# é\n").encode("latin-1"))
    assert "cannot be read" in refused(tmp_path / "a.py")
    (task,) = backlog.tasks(tmp_path, problem=False)
    assert task.key("context")
    verdict = job.run(task, job.Terms(0, Limits(), 1.0), gpu=False)
    assert verdict["verdict"] == "crashed" and "cannot be read" in str(verdict["reasons"])


@pytest.mark.parametrize(
    "claim, named",
    [
        ("# judge: dtype = float16", "dtype"),
        ("# judge: dtypes = float32, float16.", "'float16.'"),
        ("// judge: layouts =", "''"),
    ],
)
def test_a_misspelt_claim_is_named(claim: str, named: str, tmp_path: Path) -> None:
    assert named in refused(write(tmp_path, f"{claim}\n{MODEL}"))


@pytest.mark.parametrize(
    "text",
    [
        "HAVE_TRITON = True\nif HAVE_TRITON:\n    class ModelNew: ...\nelse:\n    ModelNew = None",
        "try:\n    import triton\nexcept ImportError:\n    class ModelNew: ...",
        "class Mine: ...\nModelNew: type = Mine",
    ],
)
def test_a_model_is_found_where_python_would_define_it(text: str, tmp_path: Path) -> None:
    assert forms.read(write(tmp_path, text)).form == "kernelbench"


def test_a_model_that_is_only_declared_is_none(tmp_path: Path) -> None:
    assert "expected class ModelNew" in refused(write(tmp_path, "ModelNew: type"))


WORDS = '"""A RawKernel with accessPolicyWindow would be slower."""\n# without @triton.jit, on no torch.cuda.Stream()\n'
CUDA = 'CODE = r"""\n// no accessPolicyWindow here\n__global__ void a() { const char* s = "//"; int x; }\n"""\n'


def test_comments_are_no_kernels_and_no_signs(tmp_path: Path) -> None:
    said = forms.read(write(tmp_path, WORDS + MODEL))
    assert said.kernels == "" and list(cheating.signs(said.code)) == []
    commented = forms.read(write(tmp_path, CUDA + MODEL))
    assert commented.kernels == "__global__" and list(cheating.signs(commented.code)) == []


def test_what_follows_slashes_in_a_literal_is_code(tmp_path: Path) -> None:
    candidate = forms.read(write(tmp_path, CUDA.replace("int x", "set(accessPolicyWindow)") + MODEL))
    assert [sign.partition(":")[0] for sign in cheating.signs(candidate.code)] == ["persisting"]
