"""Several threads on one communicator: they take turns, whatever each of them waits for."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream.communicator import Communicator
from jetstream.errors import (
    BusyError,
    ClosedError,
    CommunicatorAbortedError,
    JetstreamError,
    PeerDiedError,
    TimedOutError,
)
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools
from jetstream.work import Work

WAIT_S = 20.0


PRODUCT = str(Path(jetstream.__file__).parent)


def is_inside(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_filename.startswith(PRODUCT)


class Threads:
    """Threads whose exceptions are raised where they are joined."""

    def __init__(self) -> None:
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        def body() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=body, daemon=True))
        self._threads[-1].start()

    def wait_until_inside(self) -> None:
        """Until all have begun a call of the product; that they wait in it takes a moment more."""
        end_s = time.monotonic() + WAIT_S
        while not all(map(is_inside, self._threads)):
            assert time.monotonic() < end_s
            time.sleep(0.01)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in self._threads)
        for error in self._errors:
            raise error


def talk(comm: Communicator, index: int, rounds: int) -> None:
    """Messages round the ring, in every way, with the tag of this thread."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for n in range(rounds):
        count = (1, 7, 500, 30_000)[(n + index) % 4]
        x = np.full(count, comm.rank * 100 + index, np.int32)
        y = np.empty_like(x)
        if n % 3 == 0:
            work = comm.isend(x, right, index)
            comm.recv(y, left, index)
            work.wait(WAIT_S)
        elif n % 3 == 1:
            receive = comm.irecv(y, left, index)
            comm.send(x, right, index)
            receive.wait(WAIT_S)
            assert (receive.source, receive.tag) == (left, index)
        else:
            receive = comm.irecv(y, left, index)
            work = comm.isend(x, right, index)
            while not (receive.done() and work.done()):
                pass
        assert (y == left * 100 + index).all()
        if n % 8 == index:
            time.sleep(0.001)


def reduce_often(comm: Communicator, rounds: int) -> None:
    """New plans all the time, while others wait."""
    for n in range(rounds):
        x = np.full(n + 1, comm.rank + 1.0)
        comm.all_reduce(x)
        assert (x == comm.size * (comm.size + 1) / 2).all()
        counts = [(n + rank) % 5 for rank in range(comm.size)]
        mine = np.full(counts[comm.rank], comm.rank)
        together = comm.all_gather(mine, counts=counts)
        assert together.tolist() == np.repeat(np.arange(comm.size), counts).tolist()
        work = comm.all_reduce(np.ones(9, np.int64), async_op=True)
        comm.barrier()
        assert (work.wait(WAIT_S) == comm.size).all()


def run_many(comm: Communicator, progress: bool) -> None:
    if progress:
        comm.start_progress()
    threads = Threads()
    for index in range(1, 4):
        threads.start(talk, comm, index, 40)
    reduce_often(comm, 80)
    threads.join()
    assert (comm.all_reduce(np.ones(3)) == comm.size).all()


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize("ranks", [2, 3])
def test_many(rank_pools: Pools, ranks: int, progress: bool) -> None:
    env = {"JETSTREAM_PROGRESS": "inline", "N": str(progress)}  # processes of their own
    rank_pools(ranks, env=env).run(run_many, progress)


def run_depends(comm: Communicator) -> None:
    """What a thread waits for is what another one has yet to ask for."""
    for n in range(20):
        if comm.rank == 0:
            threads, y = Threads(), np.zeros(1)
            threads.start(comm.recv, y, 1, n)
            time.sleep((0, 0.001, 0.01)[n % 3])
            x = comm.all_reduce(np.ones(2))
            comm.send(x, 1, 1000)
            threads.join()
            assert y[0] == n
        else:
            comm.all_reduce(np.ones(2))
            comm.recv(np.empty(2), 0, 1000)
            comm.send(np.full(1, float(n)), 0, n)
    comm.barrier()


def test_waiter_keeps_nobody(rank_pools: Pools) -> None:
    rank_pools(2).run(run_depends)


def run_watch(comm: Communicator, progress: bool) -> float:
    """A thread tells of the end of operations; returns the share of a core that waiting takes."""
    if progress:
        comm.start_progress()
    works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def watch() -> None:
        while (work := works.get()) is not None:
            told.put(work.watch(WAIT_S))

    threads = Threads()
    threads.start(watch)
    for n in range(60):
        x = np.full(1000, n)
        work = comm.all_reduce(x, async_op=True)
        works.put(work)
        assert (comm.all_reduce(np.ones(2)) == comm.size).all()
        if n % 2:
            assert work.wait(WAIT_S) is x  # both may
        assert told.get(timeout=WAIT_S) is x
        assert (x == n * comm.size).all() and work.is_done
    late = comm.irecv(np.empty(1), 1 - comm.rank, 5)
    works.put(late)
    comm.barrier()
    time.sleep(0.05)
    before, began_s = time.process_time(), time.monotonic()
    time.sleep(0.5)
    share = (time.process_time() - before) / (time.monotonic() - began_s)
    comm.barrier()
    comm.send(np.ones(1), 1 - comm.rank, 5)
    assert told.get(timeout=WAIT_S)[0] == 1
    works.put(None)
    threads.join()
    return share


@pytest.mark.parametrize("progress", [False, True])
def test_watch(rank_pools: Pools, progress: bool) -> None:
    env = {"JETSTREAM_PROGRESS": "inline", "N": str(progress)}
    assert max(rank_pools(2, env=env).run(run_watch, progress)) < 0.3


def run_watch_alone(comm: Communicator) -> None:
    """Both ranks launch and only watch: it gets on."""
    for n in range(10):
        work = comm.all_reduce(np.full(50_000, n), async_op=True)
        assert (work.watch(WAIT_S) == n * comm.size).all()
    receive = comm.irecv(np.empty(1), comm.rank, 1)
    with pytest.raises(TimedOutError, match="waiting for"):
        receive.watch(0.2)
    comm.send(np.ones(1), comm.rank, 1)
    assert receive.watch(WAIT_S)[0] == 1


def test_watch_alone(rank_pools: Pools) -> None:
    rank_pools(2).run(run_watch_alone)


def run_timeout(comm: Communicator) -> None:
    """One thread's time is over; the other's wait goes on."""
    if comm.rank == 1:
        time.sleep(0.6)
        comm.send(np.ones(1), 0, 1)
        comm.barrier()
        return
    threads, y = Threads(), np.zeros(1)
    threads.start(comm.recv, y, 1, 1)
    with pytest.raises(TimedOutError, match=r"receive of 16 bytes from rank 1.*waiting for rank 1"):
        comm.recv(np.zeros(2), 1, 2, timeout=0.3)
    assert comm.iprobe(1, 7) is None
    threads.join()
    assert y[0] == 1
    comm.barrier()


def test_timeout(rank_pools: Pools) -> None:
    rank_pools(2).run(run_timeout)


def run_interrupt(comm: Communicator) -> None:
    """Ctrl-C ends the main thread's receive and no other."""
    if comm.rank == 1:
        comm.recv(np.empty(1), 0, 3)
        comm.send(np.ones(1), 0, 1)
        return
    threads, y = Threads(), np.zeros(1)
    threads.start(comm.recv, y, 1, 1)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        comm.recv(np.zeros(1), 1, 2)
    assert time.monotonic() - began_s < WAIT_S
    comm.send(np.zeros(1), 1, 3)
    threads.join()
    assert y[0] == 1


def test_interrupt(rank_pools: Pools) -> None:
    rank_pools(2).run(run_interrupt)


def run_abort(comm: Communicator) -> None:
    """While others wait nobody can close; after an abort they come out, and it can."""
    errors: list[JetstreamError] = []

    def wait(function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except JetstreamError as error:
            errors.append(error)

    other = comm.dup()
    threads = Threads()
    if comm.rank == 0:
        threads.start(wait, other.recv, np.zeros(1), 1, 1)
        threads.start(wait, other.irecv(np.zeros(1), 1, 2).watch)
        threads.start(wait, other.all_reduce, np.zeros(1))
        threads.wait_until_inside()
        time.sleep(0.3)
        with pytest.raises(BusyError, match="another thread"):
            other.close()
        other.abort()
        other.close()
        threads.join()
        assert len(errors) == 3, errors
        for error in errors:  # closed: the main thread had the interpreter first
            assert isinstance(error, (CommunicatorAbortedError, ClosedError)), errors
    comm.barrier()
    other.close()


def test_abort(rank_pools: Pools) -> None:
    rank_pools(2).run(run_abort)


def run_death(comm: Communicator) -> list[str]:
    """Rank 1 dies; of two threads of rank 0 that wait one waits for rank 2, which stays."""
    errors: list[str] = []

    def wait(source: int) -> None:
        try:
            comm.recv(np.zeros(1), source, 1)
        except JetstreamError as error:
            errors.append(f"{type(error).__name__}: {error}")

    if comm.rank == 0:
        threads = Threads()
        for source in (1, 2):
            threads.start(wait, source)
            time.sleep(0.1)
        comm.send(np.zeros(1), 1, 2)
        threads.join()
    elif comm.rank == 1:
        comm.recv(np.empty(1), 0, 2)
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        wait(0)
    return errors


def test_death() -> None:
    with RankPool(3, timeout_s=30, fresh=True) as pool:
        pool.start(run_death)
        first, second, third = pool.wait()
        assert second.has_died
        assert len(first.value) == 2 and len(third.value) == 1, (first, third)
        for text in first.value + third.value:
            assert text.startswith(PeerDiedError.__name__) and "rank 1" in text, text
