"""What a machine lacks, or a reader who went away, costs a command one line and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--shape", "tail:2,3,4,5"]


@pytest.mark.parametrize("command", ["check", "compare", "doctor"])
def test_a_closed_pipe_is_no_wrong_answer(command: str) -> None:
    """As `bench.py check | head -1` leaves it: nobody reads any more when the command prints."""
    read, write = os.pipe()
    os.close(read)
    options = [] if command == "doctor" else [*SMALL, "--backends", "eager-ieee"]
    done = subprocess.run(
        [sys.executable, "bench.py", command, *options],
        check=False,
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert done.returncode == 141 and done.stderr == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_closed_is_not_written_to(closed: str) -> None:
    """As the shell closes it, before Python starts."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" bench.py list entries {closed}', sys.executable],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert ("eager" in done.stdout) == (closed == "2>&-")


CHECK, COMPARE = ["check", *SMALL, "--backends", "triton,cupy,torch"], [*SMALL, "--backends", "torch"]
INSPECT = ["inspect", "--cases", "tail/7x7"]
PROJECT = ["project", "--record", "docs/results/h100.json.gz"]
BROKEN = {
    "a C compiler": ("", {"CC": "false", "CXX": "false", "PATH": "/nowhere"}, [CHECK, ["doctor"]]),
    "Triton": ("sys.modules['triton'] = None", {}, [CHECK, ["doctor"], INSPECT, PROJECT]),
    "CuPy": ("sys.modules['cupy'] = None", {}, [CHECK, ["doctor"], INSPECT]),
    "NVML": ("sys.modules['pynvml'] = None", {}, [COMPARE, ["doctor"], ["profile"], ["sanitize"]]),
    "hypothesis": (
        "sys.modules['hypothesis'] = None",
        {},
        [["fuzz", "--examples", "1", "--backends", "torch"]],
    ),
    "matplotlib": ("sys.modules['matplotlib'] = None", {}, [[*COMPARE, "--plot", "x"]]),
    "a home": ("", {"HOME": "/nowhere/at/all"}, [COMPARE, ["doctor"], PROJECT]),
}
"""What is taken away: how, by which variables, and the commands that would need it."""


@pytest.mark.parametrize("part", BROKEN)
def test_no_command_ends_in_a_traceback_because_a_part_is_missing(part: str, tmp_path: Path) -> None:
    plant, changes, commands = BROKEN[part]
    program = f"import sys, torch\n{plant}\ntorch.cuda.is_available = lambda: False\n"
    program += "from harness.cli import main\n"
    program += f"for words in {commands}:\n    print('code', main(words), flush=True)\n"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | changes
    if part == "a C compiler":
        # What an earlier process compiled would hide that it is missing.
        env["CONVGAP_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    codes = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    assert len(codes) == len(commands) and set(codes) <= {"code 0", "code 1", "code 2"}
