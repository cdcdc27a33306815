"""Kinds of launches are compiled ahead beside each other, once, and never while a CUDA graph is captured."""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import Barrier, active_count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime import ahead
from runtime.prepared import Prepared

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_begun", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def prepared(kind: str, load: Callable[[torch.device], Any]) -> Prepared:
    launch: Any = SimpleNamespace(kind=kind, load=load)
    return Prepared(launch, 0, 0, "")


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name.endswith("(_load)"):
            thread.join()


def test_beside_each_other_and_once() -> None:
    together, loaded = Barrier(3, timeout=60), list[str]()

    def load(kind: str) -> Prepared:
        def work(device: torch.device) -> None:
            together.wait()  # broken if one of the three waits for another to end
            loaded.append(f"{kind} on {device}")

        return prepared(kind, work)

    ahead.load(DEVICE, [*map(load, "abc")])
    ahead.load(DEVICE, [*map(load, "cba")])
    wait()
    assert sorted(loaded) == ["a on cuda:0", "b on cuda:0", "c on cuda:0"]


def test_the_last_launch_is_begun_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix product, which takes the compiler longest."""
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.run)
    loaded = list[str]()

    def load(kind: str) -> Prepared:
        return prepared(kind, lambda device: loaded.append(kind))

    ahead.load(DEVICE, [load("sums"), load("product")])
    assert loaded == ["product", "sums"]


def test_what_is_waited_for_is_not_begun_again() -> None:
    together, loaded = Barrier(2, timeout=60), list[str]()

    def load(kind: str) -> Prepared:
        def work(device: torch.device) -> None:
            together.wait()  # broken if one of the two waits for the other to end
            loaded.append(kind)

        return prepared(kind, work)

    ahead.load_now((made.launch, DEVICE) for made in map(load, "ab"))
    assert sorted(loaded) == ["a", "b"]
    before = active_count()
    ahead.load(DEVICE, [*map(load, "ab")])
    assert active_count() == before and len(loaded) == 2
    ahead.load_now([])


def test_what_fails_is_left_to_the_launch(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("planted")

    ahead.load(DEVICE, [prepared("a", fail)])
    wait()
    ahead.load_now([(prepared("b", fail).launch, DEVICE)])
    assert capfd.readouterr().err == ""


def test_where_no_thread_can_be_started_the_launch_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    loaded = list[torch.device]()
    ahead.load(DEVICE, [prepared("a", loaded.append)])
    assert not loaded


def test_nothing_is_begun_on_the_cpu_or_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, before = list[torch.device](), active_count()
    ahead.load(torch.device("cpu"), [prepared("a", loaded.append)])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    ahead.load(DEVICE, [prepared("a", loaded.append)])
    assert active_count() == before and not loaded
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    ahead.load(DEVICE, [prepared("a", loaded.append)])
    wait()
    assert loaded == [DEVICE]
