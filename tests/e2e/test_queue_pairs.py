"""Queue pairs in good order: launches, messages, puts, signals; many of them, many threads."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream import transport
from jetstream._core.native import ffi, lib
from jetstream.communicator import Communicator
from jetstream.errors import BusyError, QueueFullError, TimedOutError
from jetstream.testing.plugin import Pools
from jetstream.transport import QPState, QueuePair
from jetstream.transport.queues import sq_commit

WAIT_S = 20.0
#: How the data plane gets on: in the waiting thread, or in one of its own.
PROGRESS = ({}, {"JETSTREAM_PROGRESS": "thread"})
progress = pytest.mark.parametrize("env", PROGRESS, ids=("inline", "thread"))


def take(qp: QueuePair, count: int) -> list[transport.Completion]:
    """The next completions, all of which are fine."""
    return [qp.check(qp.wait(WAIT_S)) for _ in range(count)]


def end(comm: Communicator, qp: QueuePair) -> None:
    """Nobody leaves while others wait."""
    qp.drain(WAIT_S)
    comm.barrier()
    qp.close()
    assert qp.state == QPState.CLOSED


def run_launches(comm: Communicator) -> None:
    size, rank = comm.size, comm.rank
    with QueuePair(comm) as qp:
        x, part = np.empty(100, np.float32), np.arange(3) + rank
        total = qp.prepare("all_reduce", x)
        gather = qp.prepare("all_gather", part)
        barrier = qp.prepare("barrier")
        for n in range(5):
            x[:] = n + rank
            qp.post_launch(total, 10 * n)
            qp.post_launch(gather, 10 * n + 1, signalled=False)
            qp.post_launch(barrier, 10 * n + 2, signal=7, value=3)
            first, last = take(qp, 2)
            assert (first.wr_id, first.opcode, first.bytes) == (10 * n, "launch", 400)
            assert last.wr_id == 10 * n + 2, "in order, and what is not signalled says nothing"
            assert qp.wait_signal(7, 3 * (n + 1), WAIT_S) == 3 * (n + 1) == qp.signals[7]
            assert (x == sum(range(size)) + n * size).all()
            assert (gather.result.reshape(size, 3) == np.arange(3) + np.arange(size)[:, None]).all()
        qp.post_nop(99, signal=7, value=0, signal_op="set")
        assert take(qp, 1)[0][:5] == (99, "JS_OK", 0, 0, "nop")
        assert qp.signals[7] == 0 and qp.signals.shape == (64,)
        assert qp.poll() is None and qp.state == QPState.READY
        with pytest.raises(TimedOutError, match=r"no completion after 0\.01 s"):
            qp.wait(0.01)
        with pytest.raises(TimedOutError, match="no signal 7 of at least 1"):
            qp.wait_signal(7, 1, 0)
        with pytest.raises(BusyError, match="queue pair"):
            qp.comm.barrier()
        end(comm, qp)


@progress
@pytest.mark.parametrize("world", [1, 2, 4])
def test_launches(rank_pools: Pools, world: int, env: dict[str, str]) -> None:
    rank_pools(world, env=env).run(run_launches)


def run_graph(comm: Communicator) -> None:
    qp = QueuePair(comm)
    x = np.ones(4)
    with qp.capture() as graph:
        qp.comm.all_reduce(x)
        qp.comm.all_reduce(x, "max")
    for n in range(3):
        qp.post_graph(graph, n, signal=1)
        assert take(qp, 1)[0].opcode == "graph"
    assert (x == comm.size**3).all() and qp.signals[1] == 3
    end(comm, qp)


def test_graph(rank_pools: Pools) -> None:
    rank_pools(2).run(run_graph)


def run_messages(comm: Communicator) -> None:
    """Long and short ones, to all and from any; some before their receives are posted."""
    size, rank = comm.size, comm.rank
    qp = QueuePair(comm)
    long, outs = np.arange(50_000) + rank, np.zeros((size, 50_000), np.int64)
    regions = qp.register(long, "read"), qp.register(outs, "write")
    for peer in range(size):
        qp.post_send(long, peer, tag=rank, wr_id=100 + peer)
    for source in range(size):
        qp.post_receive(outs[source], source, source, wr_id=source)
    found = {one.wr_id: one for one in take(qp, 2 * size)}
    for peer in range(size):
        assert found[peer] == (peer, "JS_OK", long.nbytes, peer, "receive", peer)
        assert found[100 + peer][:5] == (100 + peer, "JS_OK", long.nbytes, peer, "send")
        assert (outs[peer] == np.arange(50_000) + peer).all()
    short = np.zeros((size, 3), np.int64)
    regions += (qp.register(short, "write"),)
    for peer in range(size):
        qp.post_receive(short[peer])
    for peer in range(size):
        qp.post_send(np.full(3, rank + 1), peer, 2**32 - 1, signalled=False)  # in the entry
    heard = take(qp, size)
    assert sorted(one.peer for one in heard) == list(range(size))
    assert {one.tag for one in heard} == {2**32 - 1} and {one.bytes for one in heard} == {24}
    assert sorted(short[:, 0].tolist()) == list(range(1, size + 1))
    qp.post_receive(np.empty(0), wr_id=5)
    qp.post_send(np.empty(0), rank)
    assert {one.bytes for one in take(qp, 2)} == {0}
    for region in regions:
        region.close()
        region.close()
    end(comm, qp)


@progress
@pytest.mark.parametrize("world", [1, 2, 3])
def test_messages(rank_pools: Pools, world: int, env: dict[str, str]) -> None:
    rank_pools(world, env=env).run(run_messages)


def run_puts(comm: Communicator) -> None:
    """All ranks write to all; who sees the signal sees the bytes."""
    size, rank = comm.size, comm.rank
    qp = QueuePair(comm)
    inbox = comm.zeros((size, 40_000), np.int32)
    window = qp.window(inbox)
    assert [window.nbytes(peer) for peer in range(size)] == [inbox.nbytes] * size
    assert len({window.key(peer) for peer in range(size)}) == size
    row = np.empty(40_000, np.int32)
    with qp.register(row, "read"):
        for n in range(1, 4):
            row[:] = n * 10 + rank
            for peer in range(size):
                qp.post_put(row, peer, window, rank * row.nbytes, signal=rank, wr_id=peer)
            assert [one[:5] for one in take(qp, size)] == [
                (peer, "JS_OK", row.nbytes, peer, "put") for peer in range(size)
            ]
            for source in range(size):
                assert qp.wait_signal(source, n, WAIT_S) == n
                assert (inbox[source] == n * 10 + source).all()
            comm.barrier()
    # In the entry; without bytes; a value of 64 bits.
    qp.post_put(np.array([2**40 + rank]), (rank + 1) % size, window, 8)
    qp.post_put(np.empty(0), (rank + 1) % size, window, signal=63, value=2**63, signal_op="set")
    take(qp, 2)
    assert qp.wait_signal(63, 2**63, WAIT_S) == 2**63
    assert inbox.reshape(-1).view(np.int64)[1] == 2**40 + (rank - 1) % size
    comm.barrier()
    window.close()
    window.close()
    end(comm, qp)


@progress
@pytest.mark.parametrize("world", [1, 2, 4])
def test_puts(rank_pools: Pools, world: int, env: dict[str, str]) -> None:
    rank_pools(world, env=env).run(run_puts)


def run_window_of_one(comm: Communicator) -> None:
    """A rank may give no memory and put all the same."""
    qp = QueuePair(comm)
    inbox = comm.zeros(4, "float64") if comm.rank == 0 else None
    window = qp.window(inbox)
    qp.post_put(np.array([1.5]), 0, window, 8 * comm.rank, signal=0)
    take(qp, 1)
    if inbox is not None:
        qp.wait_signal(0, comm.size, WAIT_S)
        assert inbox[: comm.size].tolist() == [1.5] * comm.size
    end(comm, qp)


def test_window_of_one(rank_pools: Pools) -> None:
    rank_pools(3).run(run_window_of_one)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Runs ``work(n)`` in several threads; raises what the first of them raises."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def run_several_at_once(comm: Communicator) -> None:
    """Each thread has its own queue pair; the main thread goes on with the communicator."""
    pairs = [QueuePair(comm, depth=8, threads="one" if n else "many") for n in range(3)]

    def work(number: int) -> None:
        if number == len(pairs):
            for n in range(50):
                assert comm.all_reduce(np.array([n]))[0] == n * comm.size
            return
        qp, x = pairs[number], np.empty(64 << number)
        launch = qp.prepare("all_reduce", x)
        for n in range(50):
            x[:] = n + number
            qp.post_launch(launch, n)
            assert take(qp, 1)[0].wr_id == n
            assert (x == (n + number) * comm.size).all()

    in_threads(len(pairs) + 1, work)
    for qp in pairs:
        end(comm, qp)


@progress
def test_several_at_once(rank_pools: Pools, env: dict[str, str]) -> None:
    rank_pools(2, env=env).run(run_several_at_once)


def run_many_threads_on_one(comm: Communicator) -> None:
    """Three threads post, two take completions: each message and completion is there once."""
    qp = QueuePair(comm, depth=16)
    peer, count = (comm.rank + 1) % comm.size, 150
    inbox = np.zeros((3 * count, 1), np.int64)
    region = qp.register(inbox, "write")
    taken: list[transport.Completion] = []

    def post(number: int) -> None:
        for n in range(count):
            wr_id = number * count + n
            retry(lambda: qp.post_receive(inbox[wr_id], wr_id=wr_id))  # noqa: B023
            retry(lambda: qp.post_send(np.array([wr_id]), peer, wr_id=1000 + wr_id))  # noqa: B023

    def retry(call: Callable[[], None]) -> None:
        while True:
            try:
                return call()
            except QueueFullError:
                time.sleep(1e-4)  # the others take completions

    def work(number: int) -> None:
        if number < 3:
            post(number)
        while number >= 3 and len(taken) < 6 * count:
            one = qp.poll()
            if one is not None:
                taken.append(qp.check(one))

    in_threads(5, work)
    assert sorted(one.wr_id for one in taken) == [
        *range(3 * count),
        *range(1000, 1000 + 3 * count),
    ]
    assert sorted(inbox[:, 0].tolist()) == list(range(3 * count))
    region.close()
    end(comm, qp)


@progress
def test_many_threads_on_one(rank_pools: Pools, env: dict[str, str]) -> None:
    rank_pools(2, env=env).run(run_many_threads_on_one)


def run_handles(comm: Communicator) -> None:
    """What foreign code is given, used from here by hand."""
    qp = QueuePair(comm, depth=4)
    assert (len(qp.sq), len(qp.rq), len(qp.cq)) == (4, 4, 16)
    assert (qp.sq.dtype, qp.rq.dtype, qp.cq.dtype) == (
        transport.SQE_DTYPE,
        transport.RQE_DTYPE,
        transport.CQE_DTYPE,
    )
    assert qp.pointer.sq_depth_slots == 4 and int(ffi.cast("uintptr_t", qp.pointer)) == qp.address
    x = np.full(2, comm.rank + 1.0)
    launch = qp.prepare("all_reduce", x)
    start = int(qp.pointer.control.sq_reserved.index)
    for n in range(10):  # through the laps of the ring
        index = start + n
        entry = np.zeros(1, transport.SQE_DTYPE)
        entry["opcode"], entry["wr_id"], entry["key"] = lib.JS_SQ_LAUNCH, 50 + n, launch.key
        entry["source_addr"], entry["target_addr"] = launch.source_addr, launch.target_addr
        qp.pointer.control.sq_reserved.index = (index + 1) % 2**32
        qp.sq[index % 4] = entry[0]
        qp.sq["commit"][index % 4] = sq_commit(index, 4)
        assert take(qp, 1)[0].wr_id == 50 + n
        assert 50 + n in qp.cq["wr_id"]
    assert (x == sum(range(1, comm.size + 1)) * float(comm.size) ** 9).all()
    assert not qp.signals.flags.writeable
    views: tuple[Any, ...] = qp.sq, qp.cq, qp.signals
    end(comm, qp)
    del qp
    assert [len(view) for view in views] == [4, 16, 64], "the memory stays with its views"
    assert views[0]["wr_id"].max() == 59


def test_handles(rank_pools: Pools) -> None:
    rank_pools(2).run(run_handles)


def run_prepared(comm: Communicator) -> None:
    """Arrays are registered as long as the launch lives, unless they are already."""
    qp = QueuePair(comm)
    x = np.ones(1000)
    with qp.register(x):
        count = len(qp._regions._regions)
        inside = qp.prepare("all_reduce", x[10:20])
        assert len(qp._regions._regions) == count == 1
    for n in range(300):  # more than there is room for at once
        launch = qp.prepare("all_reduce", x[n : n + 2])
        if n % 100 == 0:
            qp.post_launch(launch)
            take(qp, 1)
    with pytest.raises(QueueFullError, match="256 regions"):
        kept = [qp.prepare("all_reduce", x[n : n + 2]) for n in range(300)]
    assert "plan" in repr(inside) and inside.result.size == 10
    kept = []
    assert not kept and qp.prepare("all_reduce", x) is not None
    end(comm, qp)


def test_prepared(rank_pools: Pools) -> None:
    rank_pools(2).run(run_prepared)


def run_use_and_drop(comm: Communicator, count: int) -> tuple[int, int]:
    x, inbox = np.ones(4), comm.zeros(8)

    def once() -> None:
        qp = QueuePair(comm, depth=8)
        window = qp.window(inbox)
        launch = qp.prepare("all_reduce", x)
        qp.post_launch(launch)
        take(qp, 1)
        comm.barrier()
        if comm.rank == 0:
            window.close()
            qp.close()

    def usage() -> tuple[int, int]:
        gc.collect()
        child = comm.dup()
        for rank in (1, 0):  # who has made it sees then what has been left by all
            comm.barrier()
            if comm.rank == rank:
                child.close()
        return comm.heap.used_bytes, len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(3):
        once()
    before = usage()
    for _ in range(count):
        once()
    after = usage()
    return after[0] - before[0], after[1] - before[1]


@progress
def test_nothing_leaks(rank_pools: Pools, env: dict[str, str]) -> None:
    """Whether they are closed, as on rank 0, or only dropped."""
    grown = rank_pools(2, env=env).run(run_use_and_drop, 200)
    assert max(max(one) for one in grown) <= 0, grown  # what was left from before may have gone


def run_let_go(comm: Communicator) -> None:
    peer = (comm.rank + 1) % comm.size
    x, y = np.full(1000, 1.0 + comm.rank, np.float32), np.zeros(1000, np.float32)
    with QueuePair(comm) as qp:
        with qp.capture() as graph:
            qp.comm.all_reduce(x)
        qp.post_graph(graph, 1)
        with contextlib.suppress(BusyError):  # an engine thread may have got to its end
            graph.close()
        with qp.capture() as other:  # does not take the place of the first
            qp.comm.all_reduce(x, op="max")
        (done,) = take(qp, 1)
        assert done.opcode == "graph"
        assert (x == sum(range(1, comm.size + 1))).all()
        source, target = qp.register(x), qp.register(y)
        qp.post_send(x, peer, 5)
        qp.post_receive(y, (comm.rank - 1) % comm.size, 5)
        source.close()
        target.close()
        assert {c.opcode for c in take(qp, 2)} == {"send", "receive"}
        assert (y == x).all()
        launch = qp.prepare("all_reduce", y)
        qp.post_launch(launch, 2)
        del launch
        qp.register(np.ones(5))  # lets go of what is dropped
        take(qp, 1)
        assert (y == x * comm.size).all()
        other.close()
        end(comm, qp)


@progress
def test_what_is_posted_may_be_let_go(rank_pools: Pools, env: dict[str, str]) -> None:
    """Graphs, regions and launches that go once they are posted: it still works, or says busy."""
    rank_pools(2, env=env).run(run_let_go)
