"""The process that a candidate runs in, seen from outside: started, limited, asked, ended.

It is spawned with an environment, a home, caches and a temporary folder of its own, and inherits one socket. How
far it is cut off from the system is found out in isolation.py; inside.sandbox is what a process can do to itself
(file sizes, no writing outside its folder). Memory, disk and time are watched from here, where nothing of the
candidate runs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from harness.candidates import inside
from harness.candidates.isolation import ROOT, strongest
from harness.candidates.wire import WireError, receive, send

KEPT = (
    "PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CC", "CXX", "LANG", "LC_ALL",
    "TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH", "TRITON_CUOBJDUMP_PATH", "TRITON_NVDISASM_PATH",
    "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
)  # fmt: skip
HOME = "home"
"""Folder beside the candidate's files, for what it and its libraries keep."""
WATCH_S = 0.05
TAIL = 4000  # characters of what the candidate printed that are kept


@dataclass(frozen=True)
class Limits:
    """seconds: for one request. memory, disk: bytes, of all of the candidate's processes and of its folder."""

    seconds: float = 120.0
    memory: int = 16 << 30
    disk: int = 2 << 30


@dataclass(frozen=True)
class Ended(Exception):
    """The candidate's process is gone, or was ended: `verdict` says how ("crashed", "timeout", "refused")."""

    verdict: str
    reason: str


class Worker:
    """One candidate's process. A context manager: leaving it ends every process of the candidate."""

    def __init__(self, limits: Limits, *, interpret: bool) -> None:
        self.limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="judged-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._channel, theirs = socket.socketpair()
        self._log: Any = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        (self.folder / HOME).mkdir()
        apart = strongest(not interpret)
        arguments = theirs.fileno(), limits.disk, apart.writable, not interpret
        start = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
            f"from {inside.__name__}.main import main; main(*{arguments!r})"
        )
        self.process = subprocess.Popen(
            [*apart.prefix, sys.executable, "-I", "-c", start],
            cwd=self.folder,
            env=_environment(self.folder, interpret=interpret),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        self._ended = ""
        self._done = Event()
        self._watch = Thread(target=self._look, daemon=True)
        self._watch.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the candidate and remove its folder."""
        self._done.set()
        self._kill()
        self._watch.join()
        self.process.wait()
        self._channel.close()
        self._log.close()
        self._folder.cleanup()

    def printed(self) -> str:
        """The beginning and the end of what the candidate wrote to its standard output and error."""
        self._log.flush()
        size = os.fstat(self._log.fileno()).st_size
        parts = [os.pread(self._log.fileno(), TAIL, 0)]
        if size > TAIL:
            parts.append(os.pread(self._log.fileno(), TAIL, max(TAIL, size - TAIL)))
        return "\n".join(part.decode(errors="replace") for part in parts)

    def ask(
        self,
        command: str,
        blobs: Sequence[Any] = (),
        *,
        most: int = 1 << 20,
        seconds: float | None = None,
        **header: Any,
    ) -> tuple[dict[str, Any], list[bytearray]]:
        """One request and its answer: a header and at most `most` bytes of blobs.

        Raises Ended if the process died, hung, or wrote to the channel what the judge's part of it did not.
        """
        # Whoever answers has read the request: what a candidate writes blindly to the socket has no such token.
        token = secrets.token_hex(16)
        try:
            self._channel.settimeout(seconds or self.limits.seconds)
            send(self._channel, header | {"command": command, "token": token}, blobs)
            answer, found = receive(self._channel, most)
        except TimeoutError:
            self._kill()
            limit = seconds or self.limits.seconds
            raise Ended("timeout", self._ended or f"no answer to {command!r} in {limit:g} s") from None
        except WireError as error:
            self._kill()
            raise Ended("refused", f"forged: wrote to the judge's channel ({error})") from None
        except (EOFError, OSError):
            raise self._death() from None
        if answer.get("token") != token:
            self._kill()
            raise Ended("refused", "forged: wrote to the judge's channel an answer that nobody had asked for")
        if answer.get("failed"):
            raise Ended(answer.get("verdict", "crashed"), str(answer["failed"]))
        return answer, found

    def _death(self) -> Ended:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.poll()
        if self._ended:
            return Ended("crashed", self._ended)
        if code is None:
            self._kill()
            return Ended("refused", "forged: closed the judge's channel and went on")
        if code == 0:
            return Ended("refused", "exit: left the process with code 0 instead of answering")
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            with contextlib.suppress(ValueError):
                return Ended("crashed", f"killed by {signal.Signals(number).name}")
        last = (self.printed().strip().splitlines() or ["it printed nothing"])[-1]
        return Ended("crashed", f"ended with code {code}: {last[:300]}")

    def _kill(self) -> None:
        for pid in (*_descendants(self.process.pid), self.process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _look(self) -> None:
        """End the processes once they hold more memory, or their folder and log more bytes, than allowed."""
        page, round_ = os.sysconf("SC_PAGE_SIZE"), 0
        while not self._done.wait(WATCH_S):
            memory = sum(_resident(pid) for pid in (self.process.pid, *_descendants(self.process.pid))) * page
            if memory > self.limits.memory:
                self._ended = f"memory: more than {self.limits.memory >> 20} MiB"
            round_ += 1
            if round_ % 10 == 0 and _size(self.folder) > self.limits.disk:
                self._ended = f"disk: more than {self.limits.disk >> 20} MiB written"
            if os.fstat(self._log.fileno()).st_size > self.limits.disk // 16:
                self._ended = f"output: printed more than {self.limits.disk >> 24} MiB"
            if self._ended:
                self._kill()
                return


def _environment(folder: Path, *, interpret: bool) -> dict[str, str]:
    private = {
        "HOME": "home", "TMPDIR": "home", "XDG_CACHE_HOME": "home/cache", "TRITON_CACHE_DIR": "home/triton",
        "TRITON_HOME": "home", "CUPY_CACHE_DIR": "home/cupy", "CUDA_CACHE_PATH": "home/cuda",
        "TORCH_EXTENSIONS_DIR": "home/extensions", "TORCHINDUCTOR_CACHE_DIR": "home/inductor",
        "CONVGAP_CACHE_DIR": "home/interpreter",
    }  # fmt: skip
    found = {name: os.environ[name] for name in KEPT if name in os.environ}
    found |= {name: str(folder / place) for name, place in private.items()}
    found |= {"PYTHONDONTWRITEBYTECODE": "1", "USER": "judged", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if interpret:
        found |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    # nvcc and ninja of the environment that runs the judge.
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), found.get("PATH", os.defpath)])
    return found


def _descendants(pid: int) -> list[int]:
    """Processes that `pid` and its children started and that still run."""
    children: dict[int, list[int]] = {}
    for number, fields in _stats():
        children.setdefault(int(fields[1]), []).append(number)
    found, todo = [], [pid]
    while todo:
        more = children.get(todo.pop(), [])
        found += more
        todo += more
    return found


def _stats() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = (entry / "stat").read_text(errors="replace")
                yield int(entry.name), text[text.rindex(")") + 2 :].split()


def _resident(pid: int) -> int:
    """Pages of memory that a process holds."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return 0


def _size(folder: Path) -> int:
    """Bytes of the files beneath a folder."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(at, name)).st_size
    return total
