"""Queue pairs and wrong arguments: refused before anything is posted, or told by completions."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jetstream import transport
from jetstream._core.native import ffi, lib
from jetstream.communicator import Communicator
from jetstream.errors import (
    AccessError,
    ArgumentError,
    BoundsError,
    BusyError,
    ClosedError,
    ForkedError,
    JetstreamError,
    QueueFullError,
    TruncatedError,
    UnsupportedError,
)
from jetstream.testing.plugin import Pools
from jetstream.transport import QPState, QueuePair

WAIT_S = 20.0


def expect(kind: type[Exception], text: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=text) as caught:
        call()
    assert type(caught.value) is kind, caught.value


Cases = tuple[tuple[type[Exception], str, Callable[[], Any]], ...]


def about_memory(qp: Any, window: Any, peer: int) -> Cases:
    x, big, frozen = np.ones(8), np.ones(100), np.ones(8)
    frozen.flags.writeable = False
    return (
        (ArgumentError, "access is 'rw': read, write, remote_write", lambda: qp.register(x, "rw")),
        (ArgumentError, "access is 3", lambda: qp.register(x, 3)),
        (ArgumentError, "array is read-only", lambda: qp.register(frozen)),
        (ArgumentError, "not C-contiguous", lambda: qp.register(big[::2])),
        (ArgumentError, "has no memory to register", lambda: qp.register(np.empty((0, 3)))),
        (ArgumentError, "NumPy", lambda: qp.register(7)),
        (
            AccessError,
            "not in this rank's symmetric memory",
            lambda: qp.register(x, "remote_write"),
        ),
        (AccessError, r"register\(x, 'read'\)", lambda: qp.post_send(np.ones(8), peer)),
        (AccessError, "in no region", lambda: qp.post_put(np.ones(8), peer, window)),
        (AccessError, r"register\(out, 'write'\)", lambda: qp.post_receive(np.ones(8))),
        (ArgumentError, "out is read-only", lambda: qp.post_receive(frozen)),
        (ArgumentError, "x is not C-contiguous", lambda: qp.post_send(big[::3], 0)),
        (ArgumentError, "prepare: 'sum'", lambda: qp.prepare("sum", x)),
        (ArgumentError, "async_op", lambda: qp.prepare("all_reduce", x, async_op=True)),
        (ArgumentError, "not C-contiguous", lambda: qp.prepare("all_reduce", big[::2])),
    )


def about_numbers(qp: Any, big: Any) -> Cases:
    return (
        (ArgumentError, "dst is 9: an integer from 0", lambda: qp.post_send(big, 9)),
        (ArgumentError, "dst is None", lambda: qp.post_send(big, None)),
        (ArgumentError, "src is -1", lambda: qp.post_receive(big, -1)),
        (ArgumentError, "tag is 4294967296", lambda: qp.post_send(big, 0, 2**32)),
        (ArgumentError, "tag is 'a'", lambda: qp.post_receive(big, 0, "a")),
        (ArgumentError, "wr_id is -1", lambda: qp.post_send(big, 0, wr_id=-1)),
        (ArgumentError, "wr_id is 1.5", lambda: qp.post_nop(1.5)),
        (ArgumentError, "signal is 64: an integer from 0 to 63", lambda: qp.post_nop(signal=64)),
        (ArgumentError, "value is -1", lambda: qp.post_nop(signal=0, value=-1)),
        (ArgumentError, "'add' or 'set'", lambda: qp.post_nop(signal=0, signal_op="sub")),
        (ArgumentError, "index is 64", lambda: qp.wait_signal(64, 1)),
        (ArgumentError, "until is -1", lambda: qp.wait_signal(0, -1)),
        (ArgumentError, "timeout is 'now'", lambda: qp.wait("now")),
        (UnsupportedError, "progress='thread'", lambda: qp.event_fd),
        (UnsupportedError, "progress='thread'", qp.arm),
    )


def run_bad_arguments(comm: Communicator) -> None:
    """Nothing of this is posted, and the queue pair stays ready."""
    for options, text in (
        ({"depth": 3}, "depth is 3: a power of two from 4 to 16384"),
        ({"depth": 2**15}, "depth is 32768"),
        ({"depth": "8"}, "depth is '8'"),
        ({"threads": 1}, "threads is 1: 'many' or 'one'"),
    ):
        expect(ArgumentError, text, functools.partial(QueuePair, comm, **options))
    qp: Any = QueuePair(comm)
    other = QueuePair(comm)
    x, big = np.ones(8), np.ones(100)
    region = qp.register(big)
    inbox = comm.zeros(16)
    window, foreign = qp.window(inbox), other.window(inbox)
    launch, alien = qp.prepare("all_reduce", x), other.prepare("all_reduce", x)
    peer = (comm.rank + 1) % comm.size
    for kind, text, call in (
        *about_memory(qp, window, peer),
        *about_numbers(qp, big),
        (ArgumentError, "prepare", lambda: qp.post_launch(alien)),
        (ArgumentError, "prepare", lambda: qp.post_launch(3)),
        (ArgumentError, "capture", lambda: qp.post_graph(launch)),
        (ArgumentError, "window", lambda: qp.post_put(big[:1], peer, foreign)),
        (ArgumentError, "window", lambda: qp.post_put(big[:1], peer, region)),
        (BoundsError, "do not fit the 64 bytes", lambda: qp.post_put(big, peer, window)),
        (BoundsError, "offset 57", lambda: qp.post_put(big[:1], peer, window, 57)),
        (BoundsError, "offset -8", lambda: qp.post_put(big[:1], peer, window, -8)),
        (ArgumentError, "rank is 7", lambda: window.key(7)),
    ):
        expect(kind, text, call)
    window.close()
    expect(ClosedError, "window is closed", lambda: qp.post_put(big[:1], peer, window))
    region.close()
    expect(AccessError, "in no region", lambda: qp.post_send(big, peer))
    assert qp.state == QPState.READY and qp.poll() is None
    qp.post_launch(launch)
    assert qp.check(qp.wait(WAIT_S)).is_ok and (x == comm.size).all()
    comm.barrier()
    qp.close()
    other.close()


def test_bad_arguments(rank_pools: Pools) -> None:
    rank_pools(2).run(run_bad_arguments)


def run_closed(comm: Communicator) -> None:
    qp = QueuePair(comm)
    x = np.ones(8)
    region, launch = qp.register(x), qp.prepare("all_reduce", x)
    qp.drain(WAIT_S)
    assert qp.state == QPState.DRAINING
    expect(ClosedError, "draining and takes no more", lambda: qp.post_launch(launch))
    expect(ClosedError, "draining and takes no more", lambda: qp.post_receive(x))
    comm.barrier()
    qp.close()
    qp.close()
    for call in (
        lambda: qp.post_launch(launch),
        lambda: qp.post_nop(),
        lambda: qp.post_send(x, 0),
        lambda: qp.post_receive(x),
        lambda: qp.register(x),
        lambda: qp.window(x),
        lambda: qp.prepare("barrier"),
        lambda: qp.wait_signal(0, 1),
        lambda: qp.event_fd,
        qp.poll,
        qp.wait,
        qp.drain,
    ):
        with pytest.raises((ClosedError, UnsupportedError)):
            call()  # type: ignore[operator]
    region.close()
    assert "closed" in repr(qp) and qp.state == QPState.CLOSED
    # Foreign code that goes on finds its memory, and is refused.
    entry = ffi.new("js_sqe *", (lib.JS_SQ_NOP,))
    address = int(ffi.cast("uintptr_t", entry))
    assert lib.js_device_post(qp.address, address) == lib.JS_ERR_CLOSED
    assert lib.js_device_wait(qp.address, address) == lib.JS_ERR_CLOSED
    # The parent may be closed first; a queue pair that serves nobody any more is closed alone.
    with comm.dup() as parent:
        last = QueuePair(parent)
    last.post_nop(4)
    assert last.wait(WAIT_S).wr_id == 4
    last.drain(WAIT_S)
    comm.barrier()
    last.close()


def test_closed(rank_pools: Pools) -> None:
    rank_pools(2).run(run_closed)


def run_full(comm: Communicator) -> None:
    qp = QueuePair(comm, depth=4)
    out = np.zeros(1)
    with qp.register(out, "write"):
        for _ in range(4):
            qp.post_receive(out, comm.rank)
        expect(QueueFullError, "receive queue of 4 entries is full", lambda: qp.post_receive(out))
        for n in range(4):
            qp.post_send(np.ones(1), comm.rank, wr_id=n)
        expect(QueueFullError, "the send queue of 4 entries is full: take", lambda: qp.post_nop())
        assert len([qp.check(qp.wait(WAIT_S)) for _ in range(8)]) == 8
        qp.post_nop(7)
        assert qp.wait(WAIT_S).wr_id == 7
    qp.close()


def test_full(rank_pools: Pools) -> None:
    rank_pools(1).run(run_full)


def run_single_threaded(comm: Communicator) -> None:
    from tests.e2e.test_queue_pairs import in_threads

    qp = QueuePair(comm, threads="one")
    qp.post_nop()
    qp.wait(WAIT_S)
    with pytest.raises(BusyError, match="threads='one' and is another thread's"):
        in_threads(1, lambda _: qp.post_nop())
    qp.close()


def wrong_entry(qp: QueuePair, x: np.ndarray[Any, Any], window: transport.Window) -> dict[str, Any]:
    """By name, the fields of an entry that the data plane must refuse, and how."""
    key, address = window.key(1), x.ctypes.data
    put = {"opcode": lib.JS_SQ_PUT, "peer": 1, "source_addr": address, "bytes": 8, "key": key}
    send = {"opcode": lib.JS_SQ_SEND, "peer": 1, "source_addr": address, "bytes": 8}
    return {
        "opcode": ({"opcode": 77}, "JS_ERR_OPCODE"),
        "flags": ({**send, "flags": 128}, "JS_ERR_INVALID"),
        "peer": ({**send, "peer": 9}, "JS_ERR_INVALID"),
        "memory": ({**send, "source_addr": 4096}, "JS_ERR_ACCESS"),
        "end of memory": ({**send, "bytes": x.nbytes + 1}, "JS_ERR_ACCESS"),
        "wrapped length": ({**send, "bytes": 2**64 - 1}, "JS_ERR_ACCESS"),
        "key": ({**put, "key": key ^ 0x100}, "JS_ERR_ACCESS"),
        "offset": ({**put, "target_addr": window.nbytes(1) - 7}, "JS_ERR_BOUNDS"),
        "wrapped offset": ({**put, "target_addr": 2**64 - 4}, "JS_ERR_BOUNDS"),
        "long inline": ({**put, "flags": lib.JS_SQ_INLINE, "bytes": 9}, "JS_ERR_INVALID"),
        "signal": ({**put, "signal": 64, "signal_op": 1}, "JS_ERR_INVALID"),
        "plan": ({"opcode": lib.JS_SQ_LAUNCH, "key": 4000}, "JS_ERR_INVALID"),
        "graph": ({"opcode": lib.JS_SQ_GRAPH, "key": 4000}, "JS_ERR_INVALID"),
    }


#: What the status of the first failing entry is as an exception.
KINDS = {
    "JS_ERR_OPCODE": ArgumentError,
    "JS_ERR_INVALID": ArgumentError,
    "JS_ERR_ACCESS": AccessError,
    "JS_ERR_BOUNDS": BoundsError,
}


def post_by_hand(qp: QueuePair, fields: dict[str, int]) -> None:
    entry = ffi.new("js_sqe *", fields)
    assert lib.js_device_post(qp.address, int(ffi.cast("uintptr_t", entry))) == lib.JS_OK


def run_wrong_entries(comm: Communicator) -> None:
    """Rank 0 posts something wrong; both ends are told, in order, with the name of rank 0."""
    names = ("opcode", "flags", "peer", "memory", "end of memory", "wrapped length", "key")
    names += ("offset", "wrapped offset", "long inline", "signal", "plan", "graph")
    for name in names:
        qp = QueuePair(comm)
        x, y, inbox = np.ones(64), np.ones(4), comm.zeros(16)
        region, window = qp.register(x), qp.window(inbox)
        launch = qp.prepare("all_reduce", y)
        qp.post_launch(launch, 1)
        assert qp.check(qp.wait(WAIT_S)).wr_id == 1
        comm.barrier()
        qp.post_receive(x, wr_id=9)
        if comm.rank == 0:
            fields, status = wrong_entry(qp, x, window)[name]
            post_by_hand(qp, {"wr_id": 2, "commit": 0, **fields})
            qp.post_nop(3, signalled=False)
            qp.post_launch(launch, 4)
            found = [qp.wait(WAIT_S) for _ in range(4)]
            sent = [one[:2] for one in found if one.wr_id != 9]
            assert sent == [(2, status), (3, "JS_ERR_FLUSHED"), (4, "JS_ERR_FLUSHED")], name
            kind = KINDS[status]
        else:
            qp.post_launch(launch, 4)
            found = [qp.wait(WAIT_S) for _ in range(2)]
            status = next(one.status for one in found if one.wr_id == 4)
            # Flushed, if rank 0 had failed before the launch was taken.
            assert status in ("JS_ERR_ABORTED", "JS_ERR_FLUSHED", *KINDS), found
            kind = JetstreamError
        assert next(one for one in found if one.wr_id == 9).status == "JS_ERR_FLUSHED"
        first = next(one for one in found if one.status == status)
        with pytest.raises(kind, match="rank 0"):
            qp.check(first)
        with pytest.raises(kind, match="rank 0"):
            qp.check(next(one for one in found if one.status == "JS_ERR_FLUSHED"))
        assert qp.state == QPState.ERROR
        with pytest.raises(JetstreamError, match="rank 0"):
            qp.wait(WAIT_S)
        with pytest.raises(JetstreamError, match="rank 0"):
            qp.wait_signal(3, 1, WAIT_S)
        qp.post_nop(5)
        assert qp.wait(WAIT_S)[:2] == (5, "JS_ERR_FLUSHED")
        with pytest.raises(JetstreamError, match="rank 0"):
            qp.drain(WAIT_S)
        assert (inbox == 0).all() and (x == 1).all(), "nothing was written"
        region.close()
        comm.barrier()
        qp.close()


@pytest.mark.parametrize("env", [{}, {"JETSTREAM_PROGRESS": "thread"}], ids=("inline", "thread"))
def test_wrong_entries(rank_pools: Pools, env: dict[str, str]) -> None:
    rank_pools(2, env=env).run(run_wrong_entries)


def run_truncated(comm: Communicator) -> str:
    qp = QueuePair(comm)
    x = np.ones(10)
    with qp.register(x):
        if comm.rank == 0:
            qp.post_receive(x[:5], 1, wr_id=8)
            one = qp.wait(WAIT_S)
            assert one[:2] == (8, "JS_ERR_TRUNCATED")
            with pytest.raises(TruncatedError, match="rank 0") as caught:
                qp.check(one)
        else:
            qp.post_send(x, 0)
            qp.wait(WAIT_S)
            with pytest.raises(JetstreamError, match="rank 0") as told:
                qp.wait(WAIT_S)
    comm.barrier()
    qp.close()
    return str(caught.value if comm.rank == 0 else told.value)


def test_truncated(rank_pools: Pools) -> None:
    for text in rank_pools(2).run(run_truncated):
        assert "longer than the posted receive" in text


def run_closed_window(comm: Communicator) -> None:
    """Rank 1 takes its memory back; rank 0 puts on and learns it. Not a byte comes later."""
    qp = QueuePair(comm)
    inbox, x = comm.zeros(100_000), np.zeros(100_000, np.float32)
    window = qp.window(inbox)
    with qp.register(x):
        comm.barrier()
        if comm.rank == 0:
            status = "JS_OK"
            n = 0
            while status == "JS_OK":
                n += 1
                x[:] = n
                qp.post_put(x, 1, window)
                status = qp.wait(WAIT_S).status
            assert status == "JS_ERR_ACCESS" and n > 1
        else:
            while inbox[-1] == 0:
                pass
            window.close()
            inbox[:] = -1
            with pytest.raises(JetstreamError, match="rank 0"):
                while True:
                    qp.poll()
                    qp.wait_signal(0, 1, WAIT_S)
            assert (inbox == -1).all()
    comm.barrier()
    qp.close()


def test_closed_window(rank_pools: Pools) -> None:
    rank_pools(2).run(run_closed_window)


def run_one_that_fails(comm: Communicator) -> str:
    """What only one rank does wrong, all are told; the communicator goes on."""
    qp = QueuePair(comm)
    inbox = comm.zeros(4) if comm.rank == 0 else np.zeros(4)
    with pytest.raises(JetstreamError) as caught:
        qp.window(inbox)
    assert (comm.all_reduce(np.ones(1)) == comm.size).all()
    assert qp.window(comm.zeros(4)).nbytes(0) == 16
    comm.barrier()
    qp.close()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_one_that_fails(rank_pools: Pools) -> None:
    zero, one = rank_pools(2).run(run_one_that_fails)
    assert re.match("JetstreamError: rank 1 could not open its memory", zero)
    assert one.startswith("AccessError") and "symmetric memory" in one


def run_fork(comm: Communicator) -> None:
    """A child is refused; the parent does not notice."""
    qp = QueuePair(comm)
    x = np.ones(8)
    region, launch = qp.register(x), qp.prepare("all_reduce", x)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        refused = 0
        try:
            for call in (
                lambda: qp.post_launch(launch),
                lambda: qp.post_receive(x),
                lambda: qp.register(x),
                qp.poll,
                qp.wait,
                qp.drain,
            ):
                try:
                    call()  # type: ignore[no-untyped-call]
                except ForkedError:
                    refused += 1
            region.close()
            qp.close()
            del qp, region, launch
        finally:
            os.write(writer, bytes([refused]))
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1) == bytes([6])
    os.close(reader)
    os.close(writer)
    qp.post_launch(launch)
    assert qp.check(qp.wait(WAIT_S)).is_ok
    comm.barrier()
    qp.close()


@pytest.mark.parametrize("env", [{}, {"JETSTREAM_PROGRESS": "thread"}], ids=("inline", "thread"))
def test_fork(rank_pools: Pools, env: dict[str, str]) -> None:
    rank_pools(2, env=env).run(run_fork)
