"""A rank that forks: the child cannot use the communicator, the parent does not notice."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream import plans
from jetstream.communicator import Communicator
from jetstream.errors import ClosedError, ForkedError, PeerDiedError
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools


def _raise_timeout(*_: Any) -> None:
    raise TimeoutError("the child hangs")


def fork_and_run(child: Callable[[], None]) -> str:
    """Runs ``child`` in a fork of this process; returns "" or what went wrong there."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, _raise_timeout)
            signal.alarm(30)
            child()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


def run_fork(comm: Communicator) -> None:
    x = np.ones(1000)
    work = comm.all_reduce(np.ones(4), async_op=True)
    receive = comm.irecv(np.empty(2), comm.rank, 5)

    def child() -> None:
        for call in (
            lambda: comm.all_reduce(x),
            lambda: comm.all_reduce(x, out=np.empty(1000)),
            lambda: comm.all_gather(x),
            lambda: comm.broadcast(x),
            lambda: comm.all_reduce(x, async_op=True),
            lambda: comm.send(x, 0),
            lambda: comm.recv(x, 0),
            lambda: comm.time_launches("barrier", x, 3),
            comm.barrier,
            comm.counters,
            receive.wait,
            receive.done,
        ):
            with pytest.raises(ForkedError, match=r"made before a fork .* jetstream\.init"):
                call()  # type: ignore[no-untyped-call]
        comm.abort()
        comm.close()
        gc.collect()

    assert fork_and_run(child) == ""
    for n in range(20):
        assert (comm.all_reduce(np.full(1000, n)) == n * comm.size).all()
    assert (work.wait() == comm.size).all()
    comm.send(np.ones(2), comm.rank, 5)
    assert receive.wait().tolist() == [1, 1]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_child_is_refused_and_parent_goes_on(rank_pools: Pools, world: int) -> None:
    rank_pools(world).run(run_fork)


def exit_normally() -> None:
    sys.exit(0)


def run_children_that_end(comm: Communicator) -> None:
    """Whatever way a child ends, with its exit handlers or without: the parent is still there."""
    context = multiprocessing.get_context("fork")
    for target in (exit_normally, os.abort):
        process = context.Process(target=target)
        process.start()
        process.join()
        comm.barrier()
    pid = os.fork()
    if pid == 0:
        try:
            sys.stdout.flush()
        finally:
            os.execv(sys.executable, [sys.executable, "-c", "pass"])
    os.waitpid(pid, 0)
    subprocess.run([sys.executable, "-c", "pass"], check=True, close_fds=False)
    assert (comm.all_reduce(np.ones(100)) == comm.size).all()


def test_children_that_end(rank_pools: Pools) -> None:
    rank_pools(2).run(run_children_that_end)


def test_fork_while_another_thread_closes() -> None:
    texts = []

    def ask() -> None:
        with pytest.raises((ClosedError, ForkedError)):
            comm.counters()

    def fork_beside(handle: Any) -> None:
        thread = threading.Thread(target=lambda: texts.append(fork_and_run(ask)))
        thread.start()
        thread.join()

    comm = jetstream.init()
    comm._endpoint.on_handle.append(fork_beside)
    comm.close()
    assert texts == [""]


def test_fork_while_another_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, forked = threading.Event(), threading.Event()
    compile_plan = plans.compile_plan

    def compile_slowly(*arguments: Any, **options: Any) -> bytes:
        compiling.set()
        assert forked.wait(60)
        return compile_plan(*arguments, **options)

    def call() -> None:
        with pytest.raises(ForkedError):
            comm.all_reduce(np.ones(5))

    with jetstream.init() as comm:
        monkeypatch.setattr(plans, "compile_plan", compile_slowly)
        thread = threading.Thread(target=comm.all_reduce, args=(np.ones(4),))
        thread.start()
        assert compiling.wait(60)
        text = fork_and_run(call)
        forked.set()
        thread.join()
        assert text == ""


LIST_DESCRIPTORS = """
from pathlib import Path
print([str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()])
"""


def run_fds_of_programs(comm: Communicator) -> None:
    """A program that the rank starts inherits none of our descriptors."""
    command = [sys.executable, "-c", LIST_DESCRIPTORS]
    listed = subprocess.run(
        command, capture_output=True, text=True, check=True, close_fds=False
    ).stdout
    assert "pipe:" in listed
    assert "jetstream" not in listed and "pidfd" not in listed, listed


def test_programs_inherit_nothing(rank_pools: Pools) -> None:
    rank_pools(2).run(run_fds_of_programs)


def run_death_of_a_parent(comm: Communicator) -> str:
    """A rank dies while its child, which has the segment mapped, lives on."""
    comm.barrier()
    if comm.rank == 1:
        if os.fork() == 0:
            time.sleep(120)  # unless it is killed with the rank's session
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerDiedError) as caught:
        comm.barrier()
    return str(caught.value)


def test_death_of_a_rank_with_a_child(no_leaks: Any) -> None:
    with RankPool(2, timeout_s=60) as pool:
        outcomes = pool.collect(run_death_of_a_parent)
    assert outcomes[0].is_ok and "rank 1" in outcomes[0].value
