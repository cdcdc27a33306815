"""Kinds of launches compiled ahead, each in a thread of its own: what needs several of them waits for the slowest to
compile, not for one after the other."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread

import torch

from runtime.prepared import Launch, Prepared

_begun: set[tuple[Hashable, torch.device]] = set()


def load(device: torch.device, prepared: Sequence[Prepared]) -> None:
    """Begin to compile and load what this process has not yet begun. Whoever launches one of these waits for its
    thread, and meets the error that it met. On the CPU nothing is compiled for a launch."""
    if device.type != "cuda":
        return
    # A call's last launch is a matrix product, which takes the compiler longest.
    for made in reversed(prepared):
        key = made.launch.kind, device
        if key not in _begun:
            if torch.cuda.is_current_stream_capturing():
                return  # loading code would end the capture
            _begun.add(key)
            # Python waits for it at its end, for a compiler must not be cut off at work. There are no new threads then.
            with suppress(RuntimeError):
                Thread(target=_load, args=(made.launch, device)).start()


def load_now(launches: Iterable[tuple[Launch, torch.device]]) -> None:
    """Compile and load these and wait for all of them, each on the device beside it. No call begins with them again: to
    start a thread takes about as long as to prepare the launch. What fails here is left to whoever launches it."""
    wanted = list(launches)
    with ThreadPoolExecutor() as threads:
        list(threads.map(_load, *zip(*wanted, strict=True)))
    _begun.update((launch.kind, device) for launch, device in wanted)


def _load(launch: Launch, device: torch.device) -> None:
    with suppress(Exception):
        launch.load(device)
