"""What every test relies on: which device it runs on, and that no test changes that for the next."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

# Workers of pytest-xdist share the cores, and so do the processes that tests start. Read as NumPy and torch load.
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

with contextlib.suppress(ImportError):
    # Before torch: seen to fail in a process where compilers had been loaded.
    import matplotlib.figure  # noqa: F401

import torch

GPU = torch.cuda.is_available()

# Triton decides when a kernel is decorated whether to interpret it: this comes before any import that may load it.
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
else:
    with contextlib.suppress(ImportError):
        import triton_impl.launch  # noqa: F401

from harness.numerics.guards import Guards  # noqa: E402
from tests.long import LONG  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before -m looks at marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.partition("[")[0] in LONG:
            item.add_marker("long")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The CUDA device if there is one, else the CPU, where both kernel sets are interpreted."""
    return torch.device("cuda", torch.cuda.current_device()) if GPU else torch.device("cpu")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """A test of the command line may switch Triton's interpreter on; the next test starts as this one did. How wide
    the terminal is that the tests were started from says nothing of what is tested."""
    os.environ.pop("COLUMNS", None)
    before = os.environ.get("TRITON_INTERPRET")
    yield
    if before is None:
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = before


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Outputs and workspaces start as NaN, between zones of NaN that nobody may write to."""
    with Guards() as guards:
        yield
    assert guards.broken() == []
