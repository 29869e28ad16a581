"""Graphs: what cannot be captured, and what goes wrong when they are launched."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream.communicator import Communicator
from jetstream.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    CommunicatorAbortedError,
    JetstreamError,
    MismatchError,
    PeerDiedError,
    QueueFullError,
    TimedOutError,
    TruncatedError,
)
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
LARGE = 300_000


# --- what is refused --------------------------------------------------------------------------


def test_what_cannot_be_captured() -> None:
    with jetstream.init() as comm:
        x, wide = np.ones((4, 4)), np.ones((4, 8))
        fixed = np.ones(4)
        fixed.flags.writeable = False
        step = comm.persistent("all_reduce", x)
        with comm.capture() as before:
            comm.barrier()
        with comm.capture() as graph:
            for kind, call in {
                "captured": lambda: comm.capture(),
                "split": lambda: comm.split(0),
                "persistent": lambda: comm.persistent("all_reduce", x),
                "time_launches": lambda: comm.time_launches("barrier", x, 1),
                "probe": comm.probe,
                "probe cannot": comm.iprobe,
                "close": comm.close,
                "prepared before": step,
                "prepared before.*cannot": step.start,
                "another graph": before,
                "prepared": before.launch,
                "timeout": lambda: comm.all_reduce(x, timeout=1),
                "timeout cannot": lambda: comm.send(x, 0, timeout=1),
                "premul_sum": lambda: comm.all_reduce(x, "premul_sum", scale=2),
                "scale": lambda: comm.all_reduce(x, scale=2),
                "not C-contiguous": lambda: comm.all_reduce(wide[:, ::2], out=x),
                "would be copied": lambda: comm.send(wide[:, ::2], 0),
                "copied now": lambda: comm.isend(x.T, 0),
                "strides": lambda: comm.all_gather(x.T),
                "is not C-contiguous": lambda: comm.recv(x.T, 0),
                "axis=0": lambda: comm.all_gather(x, axis=1),
                "needs axis": lambda: comm.reduce_scatter(x, axis=1),
                "arrays needs axis": lambda: comm.all_to_all(x, axis=1),
                "read-only": lambda: comm.all_reduce(fixed),
                "dst": lambda: comm.send(x, 1),
                "src": lambda: comm.irecv(x, -2),
                "tag": lambda: comm.isend(x, 0, -1),
                "op .* is not one of": lambda: comm.all_reduce(x, "median"),
                "only a launch can tell": lambda: comm.isend(x, 0).done(),
                "timeout .* pass it": lambda: comm.isend(x, 0).wait(1.0),
                "still being captured": graph,
                "being captured": graph.launch,
                "captured$": lambda: graph.key,
                "has not been launched": graph.wait,
            }.items():
                with pytest.raises(ArgumentError, match=kind):
                    call()
        assert len(graph) == 2, graph.nodes  # the two isends whose Work was asked
        assert (step() == 1).all()
        before()
        assert (comm.all_reduce(x) == 1).all()


def test_bad_functions() -> None:
    ffi: Any = jetstream._native.ffi  # type: ignore[attr-defined]
    two = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(lambda *_: None)
    one = KERNEL(lambda _: None)
    bad = (None, 0, -1, 2**64, True, "name", lambda: None, two, ffi.NULL, KERNEL())
    bad += (ffi.cast("int(*)(int)", 8), ffi.cast("void(*)(void)", 8), ffi.new("int[1]"))
    with jetstream.init() as comm, comm.capture() as graph:
        for function in bad:
            with pytest.raises(ArgumentError, match="function"):
                graph.call(function)
        for argument in ("text", 1.5, -1, 2**64, [1], ffi.cast("int", 3), np.float32(1), True):
            with pytest.raises(ArgumentError, match="argument"):
                graph.call(one, argument)
        with pytest.raises(TypeError):
            graph.call(one, 1, 2)  # type: ignore[misc]
        assert len(graph) == 0


def test_exception_in_the_block() -> None:
    """The communicator is as it was, and the graph says why it is none."""
    with jetstream.init() as comm:
        x = np.ones(3)
        capture = comm.capture()
        with pytest.raises(RuntimeError, match="half-way"), capture as graph:
            comm.all_reduce(x)
            raise RuntimeError("half-way")
        assert (comm.all_reduce(x) == 1).all()
        for use in (graph, graph.launch, lambda: graph.key):
            with pytest.raises(ArgumentError, match="RuntimeError: half-way"):
                use()
        assert "incomplete" in repr(graph)
        graph.close()
        with pytest.raises(ArgumentError, match="used"), capture:
            pass
        with comm.capture() as graph:
            work = comm.isend(x, 0)
            comm.recv(x, 0)
        for late in (work.wait, lambda: graph.call(1)):
            with pytest.raises(ArgumentError, match="has ended"):
                late()
        graph()
        graph.close()
        for use in (graph, graph.launch, lambda: graph.key):
            with pytest.raises(ArgumentError, match="is closed"):
                use()


def test_another_thread() -> None:
    with jetstream.init() as comm:
        x = np.ones(3)
        errors: list[BaseException] = []

        def call() -> None:
            for operation in (comm.all_reduce, lambda x: comm.send(x, 0), graph.call):
                try:
                    operation(x)
                except JetstreamError as error:
                    errors.append(error)

        with comm.capture() as graph:
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        assert [type(error) for error in errors] == [BusyError] * 3
        assert "another thread captures" in str(errors[0])
        assert len(graph) == 0


def test_closed_communicator() -> None:
    comm = jetstream.init()
    x = np.ones(3)
    with comm.capture() as graph:
        comm.all_reduce(x)
    capture = comm.capture()
    graph()
    comm.close()
    for use in (graph, graph.launch):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError), capture:
        pass
    graph.close()
    del graph
    gc.collect()


def test_too_many_graphs() -> None:
    with jetstream.init() as comm:
        graphs = []
        with pytest.raises(QueueFullError, match="1024 graphs exist"):
            while True:
                with comm.capture() as graph:
                    comm.barrier()
                graphs.append(graph)
        assert len(graphs) == 1024
        graphs.pop(5).close()
        with comm.capture() as graph:
            comm.barrier()
        graph()


def test_too_many_nodes() -> None:
    with jetstream.init() as comm:
        capture = comm.capture()
        kernel = KERNEL(lambda _: None)
        with pytest.raises(ArgumentError, match="up to 65536"), capture as graph:
            for _ in range(65537):
                graph.call(kernel)
        with pytest.raises(ArgumentError, match="could not be made"):
            graph()
        assert (comm.all_reduce(np.ones(2)) == 1).all()


# --- what goes wrong --------------------------------------------------------------------------


def run_different(comm: Communicator) -> str:
    x = np.ones(4)
    with comm.capture() as graph:
        comm.barrier()
        comm.all_reduce(x, "sum" if comm.rank else "max")
    with pytest.raises(MismatchError) as caught:
        graph()
    with pytest.raises(MismatchError):
        graph()
    with pytest.raises(MismatchError), comm.capture():
        pass
    return str(caught.value)


def test_mismatch(rank_pools: Pools) -> None:
    for text in rank_pools(2).run(run_different):
        assert "all_reduce(float64, sum" in text and "all_reduce(float64, max" in text


def run_late(comm: Communicator, what: str, seen: Path) -> str:
    x = np.ones(4)
    with comm.capture(timeout=0.5) as graph:
        comm.barrier()
        if what == "collective":
            comm.all_reduce(x)
        else:
            comm.recv(x, 1) if comm.rank == 0 else None
    if comm.rank == 1:
        comm.barrier(async_op=True)  # rank 0 need not wait for it
        comm.send(x, 0)
        while not seen.exists():
            time.sleep(0.01)
        with pytest.raises(CommunicatorAbortedError, match=r"at node \d of a graph of"):
            comm.barrier()
        return ""
    comm.recv(np.empty(4), 1)
    with pytest.raises(TimedOutError, match="graph of") as caught:
        graph()
    with pytest.raises(TimedOutError):
        graph()
    with pytest.raises(TimedOutError):
        graph.launch()
    seen.touch()
    return str(caught.value)


@pytest.mark.parametrize("what", ["collective", "message"])
def test_timeout(rank_pools: Pools, what: str, tmp_path: Path) -> None:
    text = rank_pools(2).run(run_late, what, tmp_path / "seen")[0]
    assert "0.5 s" in text and "waiting for rank 1" in text
    assert "at node 1 of" in text or "at node 2 of" in text


def run_patient(comm: Communicator, _: Path) -> None:
    """A launch that was waited for too briefly goes on."""
    x = np.ones(4)
    with comm.capture() as graph:
        comm.all_reduce(x)
    if comm.rank == 0:
        work = graph.launch()
        with pytest.raises(TimedOutError, match="waiting for rank 1"):
            graph.wait(0.2)
        comm.send(x, 1)
        work.wait()
    else:
        comm.recv(np.ones(4), 0)
        graph()
    assert (x == 2).all()


def run_interrupted(comm: Communicator, seen: Path) -> None:
    """Ctrl-C in a long wait: this rank stops, the other one is told."""
    x = np.ones(4)
    libc = ctypes.CDLL(None)
    begun = ctypes.create_string_buffer(64)  # a sem_t
    assert libc.sem_init(begun, 0, 0) == 0
    with comm.capture() as graph:
        graph.call(ctypes.cast(libc.sem_post, ctypes.c_void_p).value, ctypes.addressof(begun))
        comm.recv(x, 1 - comm.rank)
    comm.barrier()
    if comm.rank == 1:
        while not seen.exists():
            time.sleep(0.01)
        with pytest.raises(CommunicatorAbortedError):
            comm.barrier()
        return

    def interrupt() -> None:
        libc.sem_wait(begun)  # from here on no bytecode runs in the other thread
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        graph()
    seen.touch()
    thread.join()


def run_wrong_length(comm: Communicator, count: int) -> str:
    """A message that does not fit its receive ends the communicator, on all ranks."""
    x, y = np.ones(count), np.ones(4)
    with comm.capture() as graph:
        comm.barrier()
        comm.send(x, 1) if comm.rank == 0 else comm.recv(y, 0)
        comm.barrier()
    try:
        graph()
    except JetstreamError as error:
        with pytest.raises(CommunicatorAbortedError, match="node 1 of a graph of 4"):
            comm.recv(y, 0)
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("count", [3, 5])
def test_wrong_length(rank_pools: Pools, count: int) -> None:
    sender, receiver = rank_pools(2).run(run_wrong_length, count)
    assert receiver.startswith(TruncatedError.__name__), receiver
    assert "node 1 of a graph of 4" in receiver and "cannot be used any more" in receiver
    assert sender.startswith(CommunicatorAbortedError.__name__), sender
    assert "rank 1 gave up" in sender


@pytest.mark.parametrize("run", [run_patient, run_interrupted])
def test_waits(rank_pools: Pools, run: Any, tmp_path: Path) -> None:
    rank_pools(2).run(run, tmp_path / "seen")


def run_killed(comm: Communicator, what: str, how: str, folder: Path) -> str:
    """Rank 1 dies within the graph; returns what the others hear."""
    x = np.ones(LARGE)

    def pass_by(_: int) -> None:
        (folder / str(comm.rank)).touch()
        while comm.rank == 1 and len(list(folder.iterdir())) < comm.size:
            time.sleep(0.01)
        if comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    kernel = KERNEL(pass_by)
    with comm.capture() as graph:
        comm.all_reduce(x)
        graph.call(kernel)
        if what == "collective":
            comm.all_reduce(x)
        elif comm.rank != 1:
            comm.recv(x, 1)
    with pytest.raises(PeerDiedError) as caught:
        graph() if how == "called" else graph.launch().wait()
    return str(caught.value)


@pytest.mark.parametrize("how", ["called", "launched"])
@pytest.mark.parametrize("what", ["collective", "message"])
def test_killed(what: str, how: str, no_leaks: Any, tmp_path: Path) -> None:
    with RankPool(3, timeout_s=60) as pool:
        pool.start(run_killed, what, how, tmp_path)
        pids = pool.pids
        outcomes = pool.wait()
    assert outcomes[1].has_died
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.is_ok, outcome
        assert f"rank 1 (pid {pids[1]}) died" in outcome.value
        assert re.search(r"at node 2 of a graph of 3|at node [23] of a graph of 4", outcome.value)
    no_leaks.expect_nothing()
