"""Who judges a queue: processes of this machine, one for each GPU, or the workers of a Dask cluster.

A card is never shared: each GPU has one process, and that takes one candidate at a time. Beside it, processes that
see no GPU say of the next candidates whether they are right; only those that are go on to a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch

from harness.candidates import job
from harness.candidates.backlog import Task
from harness.candidates.job import Terms
from harness.candidates.verdict import Verdict
from harness.errors import UsageError

TRIES = 3
"""A candidate during which this many workers died is the one that kills them."""
CORES_OF_A_GPU = 2  # that timing on it is left alone with
FINAL = ("wrong", "refused")  # verdicts of a CPU that a GPU need not repeat
Document = dict[str, Any]
Verdicts = Generator[tuple[Task, Document], None, None]


def local(waiting: Sequence[Task], terms: Terms, processes: int | None = None) -> Verdicts:
    """Judge on this machine; verdicts as they come. processes: beside the GPUs (default: by the cores)."""
    gpus = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = processes or max(1, cores - CORES_OF_A_GPU * gpus)
    if not gpus:
        yield from _through([_Seat("", count)], waiting, terms, gpu=False)
        return
    cards = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    yield from _two_steps(_Seat("", count), [_Seat(card, 1) for card in cards.split(",")], waiting, terms)


class _Seat:
    """Processes that see one GPU, or none; made anew when one of them dies."""

    def __init__(self, card: str, count: int) -> None:
        self.card, self.count = card, count
        self.busy: dict[Future[Document], Task] = {}
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, task: Task, terms: Terms, *, gpu: bool) -> None:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=get_context("spawn"), initializer=_sees, initargs=(self.card,)
            )
        self.busy[self._pool.submit(job.run, task, terms, gpu=gpu)] = task

    def renew(self) -> None:
        """Forget the processes: one of them died."""
        self.close()

    def close(self) -> None:
        """End the processes; what they were at is lost."""
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
        self._pool = None


def _sees(card: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = card


def _through(seats: list[_Seat], waiting: Sequence[Task], terms: Terms, *, gpu: bool) -> Verdicts:
    """All of `waiting`, no more at a time than there are processes."""
    todo, tries = list(reversed(waiting)), dict.fromkeys(waiting, 0)
    try:
        while todo or any(seat.busy for seat in seats):
            for seat in seats:
                while todo and len(seat.busy) < seat.count:
                    seat.submit(todo.pop(), terms, gpu=gpu)
            yield from _finished(seats, todo, tries)
    finally:
        for seat in seats:
            seat.close()


def _two_steps(beside: _Seat, cards: list[_Seat], waiting: Sequence[Task], terms: Terms) -> Verdicts:
    """Right or wrong on the CPU's cores first; who is not found wrong there goes on to a GPU."""
    first, second = list(reversed(waiting)), list[Task]()
    tries, again = dict.fromkeys(waiting, 0), dict.fromkeys(waiting, 0)
    try:
        while first or second or beside.busy or any(card.busy for card in cards):
            # Not far ahead of the GPUs: who stops early has timed what was checked.
            while first and len(beside.busy) < beside.count and len(second) < 4 * len(cards):
                beside.submit(first.pop(), terms, gpu=False)
            for card in cards:
                if second and not card.busy:
                    card.submit(second.pop(0), terms, gpu=True)
            pending = [*beside.busy, *(future for card in cards for future in card.busy)]
            wait(pending, return_when=FIRST_COMPLETED)
            for task, document in _finished([beside], first, tries, block=False):
                if document["verdict"] in FINAL:
                    yield task, document
                else:
                    second.append(task)
            yield from _finished(cards, second, again, block=False)
    finally:
        for seat in (beside, *cards):
            seat.close()


def _finished(seats: list[_Seat], todo: list[Task], tries: dict[Task, int], *, block: bool = True) -> Verdicts:
    """What is done; tasks of processes that died go back to `todo`."""
    if block:
        wait([future for seat in seats for future in seat.busy], return_when=FIRST_COMPLETED)
    for seat in seats:
        broken = False
        for future in [future for future in seat.busy if future.done()]:
            task = seat.busy.pop(future)
            try:
                yield task, future.result()
            except BrokenProcessPool:
                broken = True
                tries[task] += 1
                if tries[task] < TRIES:
                    todo.append(task)
                else:
                    yield task, killed(task)
        if broken:
            for future, task in list(seat.busy.items()):
                seat.busy.pop(future)
                todo.append(task)
            seat.renew()


def killed(task: Task) -> Document:
    """The verdict on a candidate whose every judge died."""
    return Verdict(task.file, "unknown", "crashed", [f"killed: {TRIES} workers died while they judged it"]).document()


def cluster(address: str, waiting: Sequence[Task], terms: Terms, *, gpu: bool) -> Verdicts:
    """Judge on the workers of a Dask cluster, each of which was started with `--resources JUDGE=1 --nthreads 1`.

    What a worker was at when it died is given to another one, and a verdict comes once.
    """
    try:
        from distributed import Client, KilledWorker, as_completed  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("--cluster: needs the extra 'cluster' (pip install 'convgap[cluster]')") from None
    try:
        client = Client(address, timeout=20)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"--cluster: {address}: no scheduler answers ({error})") from None
    with client:
        tries = dict.fromkeys(waiting, 0)

        def submit(task: Task) -> Any:
            tries[task] += 1
            # retries are for jobs that raise; a key of its own each time, for the scheduler remembers failed ones.
            key = f"judge-{task.key(str(terms))[:24]}-{tries[task]}"
            return client.submit(
                job.run, task, terms, gpu=gpu, key=key, resources={"JUDGE": 1}, pure=False, retries=TRIES
            )

        todo = list(reversed(waiting))
        window = max(2, 2 * len(client.scheduler_info(n_workers=-1)["workers"]))
        running = {submit(todo.pop()): None for _ in range(min(window, len(todo)))}
        owner = {future.key: task for future, task in zip(running, waiting)}
        done = as_completed(list(running))
        for future in done:
            task = owner[future.key]
            try:
                yield task, future.result()
            except KilledWorker:
                if tries[task] >= TRIES:
                    yield task, killed(task)
                else:
                    todo.append(task)
            if todo:
                following = todo.pop()
                fresh = submit(following)
                owner[fresh.key] = following
                done.add(fresh)
