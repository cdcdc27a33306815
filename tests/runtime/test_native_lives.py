"""The native call path at length: references, memory, threads, processes, and all of it under sanitizers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch

from runtime import native
from tests.runtime.stand_in import ONE, Calls, plan, y_like

ROOT = Path(__file__).parents[2]


def test_plans_are_bounded_and_nothing_leaks(path: Calls) -> None:
    path.plan = plan(ONE)
    y = torch.rand(2, 3, 8000)
    for width in range(1, 5000):
        path.module.tail(y[..., :width], 0.5, "auto")
    assert path.module.counts()[2] <= 4096
    size = path.plan[0][0][0]
    path.module.tail(y[..., :7], 0.5, "auto")
    before = sys.getrefcount(size)
    for _ in range(20_000):
        path.module.tail(y[..., :7], 0.5, "auto")
        path.module.tail(y[..., :7], "0.5", "auto")
    assert sys.getrefcount(size) == before
    out = path.module.tail(y[..., :7], 0.5, "auto")
    assert sys.getrefcount(out) == 2
    gone = weakref.ref(out)
    del out
    gc.collect()
    assert gone() is None
    path.module.clear()
    assert path.module.counts()[2] == 0
    assert sys.getrefcount(size) < before


@pytest.mark.parametrize("differentiated", [False, True], ids=["", "differentiated"])
def test_memory_does_not_grow(path: Calls, differentiated: bool) -> None:
    node = (lambda *given: given[-1], "kind") if differentiated else None
    path.plan = plan(ONE, workspace=512, counters=4, node=node)
    y = y_like().requires_grad_(differentiated)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for rounds in range(2):
        for _ in range(100_000):
            path.module.tail(y, 0.5, "auto")
            path.module.tail(y, 0.5, 1)
        if not rounds:
            start = resident()
    assert resident() - start < 1 << 20


def test_threads(path: Calls) -> None:
    path.plan = plan(ONE, workspace=512, counters=4)
    barrier, failures = Barrier(8), []

    def work(seed: int) -> None:
        barrier.wait()
        try:
            for i in range(2000):
                y = torch.rand(2, 3, 1 + (i * seed) % 300)
                out = path.module.tail(y, 0.5, "auto")
                assert out is not None and out.shape == (2, 3, 1, 1)
                if i % 500 == seed:
                    path.module.clear()
        except BaseException as error:  # reported by the test
            failures.append(error)

    threads = [Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


PROGRAM = """
import os, sys, torch
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.runtime import stand_in as t
driver = t.Driver(Path({library!r}))
driver.set(device=0, parameters=8)
path = t.Calls(t.loaded(), driver)
path.plan = t.plan(t.ONE, workspace=512, counters=4)
y = torch.rand(2, 3, 4, 5)
"""


@pytest.mark.parametrize(
    "code",
    [
        # In a child CUDA does not work: everything goes through Python, which says so.
        "assert path.module.tail(y, 0.5, 'auto') is not None\npid = os.fork()\n"
        "if not pid: os._exit(path.module.tail(y, 0.5, 'auto') is not None)\n"
        "assert os.waitpid(pid, 0)[1] == 0\nassert path.module.tail(y, 0.5, 'auto') is not None",
        # At the end of the interpreter outputs and plans are still there.
        "kept = [path.module.tail(y, 0.5, 'auto') for _ in range(10)]",
        "import threading\nout = path.module.tail(y, 0.5, 'auto')\n"
        "work = lambda: [path.module.tail(y, 0.5, 'auto') for _ in range(10**7)]\n"
        "threading.Thread(target=work, daemon=True).start()",
    ],
    ids=["fork", "end", "end with a thread at work"],
)
def test_processes(library: Path, code: str) -> None:
    program = PROGRAM.format(root=str(ROOT), library=str(library)) + code
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_sanitizers() -> None:
    """The same tests with native.c compiled for addresses and undefined behaviour to be watched."""
    compiler = native.compiler()
    if not compiler or "gcc" not in Path(compiler[0]).resolve().name:
        pytest.skip("takes gcc, whose sanitizers can be loaded into a Python that was built without")
    libraries = [
        subprocess.run(
            [compiler[0], f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("gcc has no sanitizers here")
    environment = {
        **os.environ, "CC": f"{compiler[0]} -fsanitize=address,undefined -fno-sanitize-recover=all -g",
        "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0",
    }  # fmt: skip
    names = "test_native.py", "test_native_ordinary.py", "test_native_gradients.py", Path(__file__).name
    tests = [str(Path(__file__).with_name(name)) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests,
         "-k", "not processes and not memory and not sanitizers"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
