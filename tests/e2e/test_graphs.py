"""Graphs: the calls of a block, captured and launched as one."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import jetstream
from jetstream.communicator import Communicator
from jetstream.errors import BusyError, JetstreamError
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools

ROUNDS = 5
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
LARGE = 300_000  # elements: more than a stream holds, and by reference in symmetric memory


def neighbours(comm: Communicator) -> tuple[int, int]:
    return (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size


# --- collectives ------------------------------------------------------------------------------


def run_all_kinds(comm: Communicator, dtype: Any) -> None:
    """Every kind in one graph, against the same calls one by one."""
    size, rank, root = comm.size, comm.rank, comm.size - 1
    rows = [n + 1 for n in range(size)]
    random = np.random.default_rng(rank)

    def arrays() -> dict[str, Any]:
        return {
            name: np.zeros(shape, dtype)
            for name, shape in {
                "a": (3, 5), "b": (3 * size, 5), "c": (3, 5), "d": (rows[rank], 2), "e": (4, 0),
                "f": (), "g": (3 * size, 5), "h": (sum(rows),),
                "k": (size * (rank + 1),), "l": (3, 2),
            }.items()
        }  # fmt: skip

    def calls(x: dict[str, Any]) -> list[Any]:
        sent, received = [rank + 1] * size, [n + 1 for n in range(size)]
        return [
            comm.all_reduce(x["a"]),
            comm.all_reduce(x["b"], "max", out=x["g"]),
            comm.all_reduce(x["e"]),
            comm.all_gather(x["a"]),
            comm.all_gather(x["d"], counts=rows),
            comm.reduce_scatter(x["g"], "min", out=x["c"]),
            comm.all_to_all(x["b"]),
            comm.all_to_all(x["k"], input_splits=sent, output_splits=received, out=x["h"]),
            comm.scan(x["c"]),
            comm.exscan(x["c"], out=x["a"]),
            comm.broadcast(x["l"], root),
            comm.reduce(x["b"], root),
            comm.gather(x["f"], root),
            comm.scatter(x["b"] if rank == root else None, root, out=x["c"]),
            comm.barrier(),
            comm.all_reduce(x["c"], algo="two_shot", chunk_bytes=64, async_op=True).wait(),
        ]  # fmt: skip

    fixed = arrays()
    with comm.capture() as graph:
        results = calls(fixed)
    assert len(graph) == len(graph.nodes) == 16
    assert all((value == 0).all() for value in fixed.values())
    for _ in range(ROUNDS):
        plain = arrays()
        for name, array in plain.items():
            array[...] = random.integers(0, 100, array.shape).astype(dtype)
            fixed[name][...] = array
        expected = calls(plain)
        graph()
        for index, (got, wanted) in enumerate(zip(results, expected, strict=True)):
            assert np.array_equal(got, wanted), graph.nodes[index]
        for name, array in plain.items():
            assert np.array_equal(fixed[name], array), name


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_all_kinds(rank_pools: Pools, size: int, dtype: Any) -> None:
    rank_pools(size).run(run_all_kinds, dtype)


def run_in_turn(comm: Communicator) -> None:
    """Launches and ordinary operations are carried out in the order of their start."""
    x = np.ones(7)
    with comm.capture() as graph:
        comm.all_reduce(x)
    step = comm.persistent("all_reduce", x)
    works = [
        graph.launch(),
        comm.all_reduce(x, async_op=True),
        graph.launch(),
        step.start(),
        graph.launch(),
    ]
    graph()
    works[-1].wait()
    assert all(work.done() for work in works)
    assert (x == comm.size**6).all()
    graph.launch()
    graph.wait()
    graph.wait()
    assert (x == comm.size**7).all()
    # On the other side there is no difference between a graph and the calls it is made of.
    if comm.rank:
        graph()
    else:
        comm.all_reduce(x)
    assert (x == comm.size**8).all()


def run_often(comm: Communicator) -> None:
    """More launches in flight than the queue holds, and more graphs one after another than fit."""
    x = np.ones(3, np.int64)
    with comm.capture() as graph:
        comm.all_reduce(x, "max")
    works = [graph.launch() for _ in range(3000)]
    for work in works:
        work.wait()
    for n in range(1100):
        with comm.capture() as other:
            comm.all_reduce(x)
        if n % 2:
            other.close()
            other.close()
        del other
    x[:] = comm.rank
    graph()
    assert (x == comm.size - 1).all()


def run_empty(comm: Communicator) -> None:
    with comm.capture() as graph:
        pass
    graph()
    graph.launch().wait()
    assert len(graph) == 0 and graph.nodes == ()


def run_groups(comm: Communicator) -> None:
    """Graphs of several communicators in flight at once; ranks are those of the group."""
    pair = comm.split(comm.rank // 2)
    assert pair is not None
    x, y, z = np.ones(5), np.zeros(5), np.ones(5)
    with pair.capture() as graph, comm.capture() as other:
        pair.send(x, 1 - pair.rank)
        comm.all_reduce(z)
        pair.recv(y, 1 - pair.rank)
        pair.all_reduce(y)
    assert [len(graph), len(other)] == [4, 1]
    for n in range(1, ROUNDS):
        x[:] = n
        order = (graph, other) if comm.rank % 2 else (other, graph)
        works = [launch.launch() for launch in order]
        for work in works:
            work.wait()
        assert (y == 2 * n).all() and (z == comm.size**n).all()
    pair.close()


@pytest.mark.parametrize("run", [run_in_turn, run_often, run_empty])
def test_launches(rank_pools: Pools, run: Any) -> None:
    rank_pools(2).run(run)


def test_groups(rank_pools: Pools) -> None:
    rank_pools(4).run(run_groups)


# --- messages ---------------------------------------------------------------------------------


def run_ring(comm: Communicator, count: int, symmetric: bool) -> None:
    """Send before receive on every rank, which ordinary calls must not do with long messages."""
    right, left = neighbours(comm)
    make = comm.zeros if symmetric else np.zeros
    x, y, z = (make(count, np.float32) for _ in range(3))
    with comm.capture() as graph:
        comm.send(x, right, 5)
        assert comm.recv(y, left, 5) is y
        first = comm.irecv(z, left, 6)
        comm.isend(y, right, 6).wait()
        assert first.wait() is z
        comm.all_reduce(z, "max")
    for n in range(ROUNDS):
        x[:] = 10 * n + comm.rank
        graph()
        assert (y == 10 * n + left).all()
        assert (z == 10 * n + comm.size - 1).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("count", [0, 1, 5000, LARGE])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ring(rank_pools: Pools, size: int, count: int, symmetric: bool) -> None:
    rank_pools(size).run(run_ring, count, symmetric)


def run_same_buffer(comm: Communicator) -> None:
    """A send has read its array before what comes next writes to it."""
    right, left = neighbours(comm)
    x = np.zeros(LARGE, np.float32)
    other = np.zeros(LARGE, np.float32)

    def overwrite(_address: int) -> None:
        x[:] = -1

    kernel = KERNEL(overwrite)
    with comm.capture() as graph:
        if comm.rank == 0:
            comm.send(x, right)
            comm.recv(x, left)
            comm.send(x[:10], right)
            graph.call(kernel)
        else:
            comm.recv(other, left)
            comm.send(other, right)
            if comm.rank == 1:
                comm.recv(other[:10], left)
    for n in range(ROUNDS):
        x[:] = n + 1
        graph()
        assert comm.rank == 0 or (other == n + 1).all()
    if comm.rank == 0:
        assert (x == -1).all()
        assert [node.split()[0] for node in graph.nodes] == [
            "send", "join", "receive", "join", "send", "join", "call",
        ]  # fmt: skip


def run_chain(comm: Communicator) -> None:
    """A receive waits for its own message, not for a send that others will take much later."""
    a, b, c, d = (np.zeros(LARGE, np.float32), *(np.zeros(4, np.float32) for _ in range(3)))
    with comm.capture() as graph:
        if comm.rank == 0:
            work = comm.isend(a, 1)
            comm.recv(b, 2)
            comm.send(c, 2)
            work.wait()
        elif comm.rank == 1:
            comm.recv(d, 2)
            comm.recv(a, 0)
        else:
            comm.send(b, 0)
            comm.recv(c, 0)
            comm.send(d, 1)
    for n in range(ROUNDS):
        if comm.rank == 0:
            a[:] = n
        graph()
        assert comm.rank == 2 or (a == n).all()


def run_any(comm: Communicator) -> None:
    """Any source, any tag, messages shorter than their room, and to the own rank."""
    x, mine = np.full(3, comm.rank + 1.0), np.zeros(3)
    rooms = [np.zeros(8) for _ in range(comm.size)]
    with comm.capture() as graph:
        comm.send(x, comm.rank, 2**32 - 1)
        comm.recv(mine, comm.rank)
        comm.send(x, 0, comm.rank)
        if comm.rank == 0:
            for room in rooms:
                comm.recv(room, exact=False)
        comm.barrier()
    for _ in range(ROUNDS):
        graph()
        assert (mine == x).all()
        if comm.rank == 0:
            assert sorted(room[0] for room in rooms) == [n + 1.0 for n in range(comm.size)]
            assert all((room[3:] == 0).all() for room in rooms)


def run_beside(comm: Communicator) -> None:
    """Messages of the host are matched in the order of posting, with those of graphs."""
    right, left = neighbours(comm)
    x, y, z = np.zeros(4), np.zeros(4), np.zeros(4)
    with comm.capture() as graph:
        comm.send(x, right)
        comm.recv(y, left)
    for n in range(ROUNDS):
        x[:] = n
        before = comm.irecv(z, left)
        comm.send(np.full(4, -1.0), right)
        graph()
        before.wait()
        assert (z == -1).all() and (y == n).all()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("run", [run_same_buffer, run_any, run_beside])
def test_messages(rank_pools: Pools, run: Any, size: int) -> None:
    rank_pools(size).run(run)


def test_chain(rank_pools: Pools) -> None:
    rank_pools(3).run(run_chain)


# --- functions --------------------------------------------------------------------------------


def run_functions(comm: Communicator) -> None:
    """A function sees what stands before it, and what stands behind it sees what it did."""
    x, log = np.zeros(5), []

    def double(address: int) -> None:
        values = np.ctypeslib.as_array((ctypes.c_double * 5).from_address(address))
        log.append(values.copy())
        values *= 2

    kernel = KERNEL(double)
    address = ctypes.cast(kernel, ctypes.c_void_p).value
    assert address is not None
    pointer = jetstream._native.ffi.cast("void (*)(void *)", address)  # type: ignore[attr-defined]
    with comm.capture() as graph:
        graph.call(kernel, x)
        comm.all_reduce(x)
        graph.call(address, x.ctypes.data)
        comm.all_reduce(x)
        graph.call(pointer, jetstream._native.ffi.from_buffer(x))  # type: ignore[attr-defined]
    for n in range(1, ROUNDS):
        x[:] = n
        log.clear()
        graph()
        assert (x == n * 8 * comm.size**2).all()
        assert [values[0] for values in log] == [n, 2 * n * comm.size, 4 * n * comm.size**2]


def run_function_calls_back(comm: Communicator) -> None:
    """A function that uses the communicator of its graph is told so; it must not hang."""
    errors: list[str] = []
    x = np.ones(3)

    def meddle(_address: int) -> None:
        for call in (comm.barrier, graph.close, lambda: comm.send(x, comm.rank)):
            try:
                call()
            except JetstreamError as error:
                errors.append(str(error))

    kernel = KERNEL(meddle)
    with comm.capture() as graph:
        comm.all_reduce(x)
        graph.call(kernel)
        comm.all_reduce(x)
    other = comm.dup()
    for launch in (graph, graph.launch):
        errors.clear()
        work = launch()
        if work is not None:  # whoever waits elsewhere, or an engine thread, carries it out
            other.barrier()
            work.wait()
        assert len(errors) == 3, errors
        assert all("must not use" in text or "carried out" in text for text in errors), errors
    other.close()
    assert (x == comm.size**4).all()


def run_by_itself(comm: Communicator) -> None:
    """With an engine thread a graph gets on while the host does something else."""
    right, left = neighbours(comm)
    x, y = np.ones(LARGE), np.ones(LARGE)
    done = threading.Event()
    kernel = KERNEL(lambda _: done.set())
    with comm.capture() as graph:
        for _ in range(3):
            comm.all_reduce(x)
            comm.send(x, right)
            comm.recv(y, left)
        graph.call(kernel)
    work = graph.launch()
    assert done.wait(30)
    work.wait()
    assert (y == comm.size**3).all()


@pytest.mark.parametrize("progress", ["inline", "thread"])
def test_who_carries_it_out(rank_pools: Pools, progress: str) -> None:
    pool = rank_pools(2, env={"JETSTREAM_PROGRESS": progress})
    pool.run(run_function_calls_back)
    if progress == "thread":
        pool.run(run_by_itself)


def run_numba(comm: Communicator) -> str:
    try:
        import numba
    except ImportError as error:
        return f"no numba: {error}"
    x = np.zeros(1000, np.float32)

    @numba.cfunc("void(voidptr)")  # type: ignore[untyped-decorator]
    def scale(pointer: Any) -> None:
        values = numba.carray(pointer, 1000, dtype=np.float32)
        for i in range(1000):
            values[i] = values[i] * 0.5 + i

    with comm.capture() as graph:
        graph.call(scale, x)
        comm.all_reduce(x)
        graph.call(scale, x)
    del scale
    gc.collect()
    for n in range(ROUNDS):
        x[:] = n
        graph()
        numbers = np.arange(1000, dtype=np.float32)
        expected = (np.float32(n) * np.float32(0.5) + numbers) * np.float32(comm.size)
        assert np.array_equal(x, expected * np.float32(0.5) + numbers)
    return ""


def test_functions(rank_pools: Pools) -> None:
    rank_pools(2).run(run_functions)


def test_numba(rank_pools: Pools) -> None:
    for why in rank_pools(2).run(run_numba):
        if why:
            pytest.skip(why)


# --- lives ------------------------------------------------------------------------------------


def run_lives(comm: Communicator) -> None:
    """A graph under way is not freed, nor are its arrays, whatever becomes of the handles."""
    right, left = neighbours(comm)
    x = np.ones(LARGE)
    with comm.capture() as graph:
        comm.all_reduce(x)
        comm.recv(np.ones(LARGE), left)
    if comm.rank == 0:
        work = graph.launch()
        with pytest.raises(BusyError, match="carried out"):
            graph.close()
        del graph
        gc.collect()
        comm.send(np.empty(0), right)  # only now may the other one begin
        comm.send(x, right)
        work.wait()
    else:
        comm.recv(np.empty(0), left)
        graph.launch()
        del graph
        gc.collect()
        comm.send(x, right)
    comm.barrier()
    with comm.capture() as other:
        comm.all_reduce(x)
    x[:] = comm.rank
    other()
    assert (x == sum(range(comm.size))).all()


def test_lives() -> None:
    with RankPool(2, timeout_s=60) as pool:
        pool.run(run_lives)


def run_device(comm: Communicator) -> None:
    """A device launches by the graph's key; the host of its communicator does not."""
    transport = pytest.importorskip("jetstream.transport")
    x = np.ones(9)
    with transport.QueuePair(comm) as qp:
        with qp.capture() as graph:
            qp.comm.all_reduce(x)
            qp.comm.barrier()
        with pytest.raises(BusyError):
            graph()
        for n in range(ROUNDS):
            qp.post_graph(graph, wr_id=n)
            done = qp.wait(timeout=20)
            assert (done.wr_id, done.status) == (n, "JS_OK")
        assert (x == comm.size**ROUNDS).all()


def test_device(rank_pools: Pools) -> None:
    transport = pytest.importorskip("jetstream.transport")
    if not hasattr(transport, "QueuePair"):
        pytest.skip("no queue pairs in Python")
    rank_pools(2).run(run_device)
