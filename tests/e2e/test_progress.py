"""The engine thread: operations get on while Python computes; event descriptors; how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, ClosedError, ConfigurationError
from jetstream.testing import RankError, run_ranks
from jetstream.testing.plugin import Pools
from jetstream.transport import QueuePair

THREAD = {"JETSTREAM_PROGRESS": "thread"}
WAIT_S = 20.0


def engine_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


def expect_engine_threads(count: int) -> None:
    """In a moment: a thread that has been joined is in the kernel a little longer."""
    end_s = time.monotonic() + WAIT_S
    while engine_threads() != count:
        assert time.monotonic() < end_s, f"{engine_threads()} engine threads, not {count}"
        time.sleep(0.01)


def run_while_computing(comm: Communicator, marks: Path, count: int) -> None:
    """Rank 0 posts and turns away; the others are through before it comes back."""
    x = np.full(count, comm.rank + 1.0)
    y, out = np.ones(count), np.zeros(count)
    comm.barrier()
    if comm.rank == 0:
        work = comm.all_reduce(x, async_op=True)
        sends = [comm.isend(y, peer, 3) for peer in range(1, comm.size)]
        receives = [comm.irecv(out, 1, 4)]
        end_s = time.monotonic() + 20
        while len(list(marks.iterdir())) < comm.size - 1 and time.monotonic() < end_s:
            sum(range(1000))  # no call of jetstream
        assert time.monotonic() < end_s, "the others have not got on"
        for one in (work, *sends, *receives):
            one.wait(WAIT_S)
    else:
        comm.all_reduce(x)
        comm.recv(out, 0, 3)
        if comm.rank == 1:
            comm.send(y, 0, 4)
        (marks / str(comm.rank)).touch()
    assert (x == sum(range(1, comm.size + 1))).all() and (out == 1).all()
    comm.barrier()


@pytest.mark.parametrize("count", [8, 300_000])
@pytest.mark.parametrize("world", [2, 3])
def test_others_get_on(rank_pools: Pools, tmp_path: Path, world: int, count: int) -> None:
    rank_pools(world, env=THREAD).run(run_while_computing, tmp_path, count)


def run_start_later(comm: Communicator, marks: Path) -> None:
    """In a program that began without the thread; a second start has no effect."""
    expect_engine_threads(0)
    later = comm.irecv(np.zeros(1), 1 - comm.rank, 9)  # what is in flight before is seen, too
    comm.start_progress()
    child = comm.dup()
    child.start_progress(max(os.sched_getaffinity(0)))
    expect_engine_threads(1)
    with pytest.raises(ArgumentError, match="core is 5000, but this process may use cores"):
        comm.start_progress(5000)
    run_while_computing(child, marks, 8)
    comm.isend(np.ones(1), 1 - comm.rank, 9).wait(WAIT_S)
    later.wait(WAIT_S)
    child.close()
    comm.close()
    expect_engine_threads(0)
    with pytest.raises(ClosedError):
        comm.start_progress()


def test_start_later(tmp_path: Path) -> None:
    run_ranks(run_start_later, 2, tmp_path)


def run_ordinary_calls(comm: Communicator) -> None:
    """Threads with communicators of their own, beside the engine thread."""
    children = [comm.dup() for _ in range(3)]

    def work(child: Communicator) -> None:
        for n in range(100):
            later = child.all_reduce(np.array([n]), async_op=True)
            assert child.all_reduce(np.array([n]))[0] == n * child.size
            assert later.wait(WAIT_S)[0] == n * child.size

    threads = [threading.Thread(target=work, args=(child,)) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        child.close()
    assert engine_threads() >= 1


def test_ordinary_calls(rank_pools: Pools) -> None:
    rank_pools(2, env=THREAD).run(run_ordinary_calls)


def run_sleeps(comm: Communicator) -> float:
    """Returns the share of a core that a rank uses while nothing happens."""
    qp = QueuePair(comm)
    qp.post_receive(np.empty(0), comm.rank)
    comm.barrier()
    time.sleep(0.2)
    before, began_s = time.process_time(), time.monotonic()
    time.sleep(1)
    share = (time.process_time() - before) / (time.monotonic() - began_s)
    comm.barrier()
    qp.close()
    return share


def test_sleeps_when_idle(rank_pools: Pools) -> None:
    assert max(rank_pools(2, env=THREAD).run(run_sleeps)) < 0.5


def run_selectors(comm: Communicator) -> None:
    """A program that sleeps in select is woken by completions, and by nothing else."""
    qp = QueuePair(comm)
    x, selector = np.ones(4), selectors.DefaultSelector()
    launch = qp.prepare("all_reduce", x)
    selector.register(qp, selectors.EVENT_READ)
    for n in range(30):
        assert qp.arm() == 0
        assert selector.select(0) == []
        if comm.rank == n % 2:
            time.sleep(0.002 * (n % 3))
        qp.post_launch(launch, n)
        assert len(selector.select(WAIT_S)) == 1
        one = qp.poll()
        assert one is not None and qp.check(one).wr_id == n
    qp.post_nop(1)
    assert qp.wait(WAIT_S).wr_id == 1, "not asked for: nothing is told"
    qp.arm()
    assert selector.select(0.05) == []
    qp.post_nop(2)
    while qp.arm() == 0:
        pass
    assert qp.poll() is not None
    selector.close()
    assert qp.event_fd == qp.fileno() and not os.get_inheritable(qp.fileno())
    qp.drain(WAIT_S)
    comm.barrier()
    qp.close()


def test_selectors(rank_pools: Pools) -> None:
    rank_pools(2, env=THREAD).run(run_selectors)


async def launch_and_await(qp: QueuePair, launch: Any, count: int) -> list[int]:
    loop, seen = asyncio.get_running_loop(), []
    for n in range(count):
        ready = asyncio.Event()
        loop.add_reader(qp, ready.set)
        qp.arm()
        qp.post_launch(launch, n)
        while (one := qp.poll()) is None:
            await asyncio.wait_for(ready.wait(), WAIT_S)
            ready.clear()
            if qp.arm():
                continue
        seen.append(qp.check(one).wr_id)
        loop.remove_reader(qp)
    return seen


def run_asyncio(comm: Communicator) -> None:
    qp = QueuePair(comm)
    x = np.ones(2, np.int64)
    launch = qp.prepare("all_reduce", x, "max")
    assert asyncio.run(launch_and_await(qp, launch, 20)) == list(range(20))
    comm.barrier()
    qp.close()


def test_asyncio(rank_pools: Pools) -> None:
    rank_pools(2, env=THREAD).run(run_asyncio)


def run_core(comm: Communicator) -> set[int]:
    """Returns the cores of the threads that are not Python's."""
    own = {thread.native_id for thread in threading.enumerate()}
    pinned = []
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) not in own:
            with contextlib.suppress(ProcessLookupError):  # one of the rendezvous, just ended
                pinned.append(os.sched_getaffinity(int(task.name)))
    return set().union(*(cores for cores in pinned if len(cores) == 1))


def test_core() -> None:
    core = max(os.sched_getaffinity(0))
    env = {**THREAD, "JETSTREAM_PROGRESS_CORE": str(core)}
    assert run_ranks(run_core, 2, env=env) == [{core}] * 2
    env["JETSTREAM_PROGRESS_CORE"] = f"{core},{min(os.sched_getaffinity(0))}"
    assert run_ranks(run_core, 2, env=env) == [{core}, {min(os.sched_getaffinity(0))}]


def test_core_that_is_not_ours() -> None:
    env = {**THREAD, "JETSTREAM_PROGRESS_CORE": "1000"}
    with pytest.raises(RankError, match=r"JETSTREAM_PROGRESS_CORE is 1000, but .* may use cores"):
        run_ranks(run_core, 1, env=env)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"progress": "fast"}, "progress is 'fast': one of inline, thread"),
        ({"core": 0}, "core is 0, but it is of progress='thread' alone"),
        ({"progress": "inline", "core": 0}, "of progress='thread' alone"),
        ({"progress": "thread", "core": 5000}, "core is 5000, but this process may use cores"),
        ({"progress": "thread", "core": -1}, "core is -1"),
        ({"progress": "thread", "core": "a"}, "core is 'a'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        jetstream.init(**options)


@pytest.mark.parametrize("value", ["0,", "-1", "x", "99999", "1;2"])
def test_bad_core(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JETSTREAM_PROGRESS_CORE", value)
    with pytest.raises(ConfigurationError, match="JETSTREAM_PROGRESS_CORE"):
        jetstream.init()


def test_bad_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETSTREAM_PROGRESS", "sometimes")
    with pytest.raises(ConfigurationError, match="JETSTREAM_PROGRESS is 'sometimes'"):
        jetstream.init()


ENDINGS = {
    "nothing is closed": "",
    "closed": "qp.close(); comm.close()",
    "the communicator first": "comm.close()",
    "a thread waits": """
import contextlib, threading
def wait():
    with contextlib.suppress(jetstream.errors.ClosedError):
        qp.wait(20)
threading.Thread(target=wait, daemon=True).start()
__import__("time").sleep(0.2)
""",
    "something is in flight": "qp.post_receive(x, 0); keep = comm.irecv(x, 0)",
    "a child exits": """
import os
if os.fork() == 0:
    raise SystemExit
os.wait()
""",
    "an exception": "raise SystemExit(0)",
}


@pytest.mark.parametrize("progress", ["inline", "thread"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_interpreter_ends(ending: str, progress: str) -> None:
    """Quickly and in silence, whatever is left open."""
    program = f"""
import jetstream, numpy as np
from jetstream import transport
comm = jetstream.init(progress={progress!r})
qp = transport.QueuePair(comm)
x = np.ones(10)
region = qp.register(x)
qp.post_nop(1)
assert qp.wait(20).wr_id == 1
{ENDINGS[ending]}
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended


def test_include() -> None:
    assert (Path(jetstream.get_include()) / "jetstream" / "js_device.h").is_file()
