"""Devices without the header: the functions of js_device.h as calls, and memory alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream import transport
from jetstream._native import ffi, lib
from jetstream.communicator import Communicator
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools
from jetstream.transport.queues import RQE_DTYPE, SQE_DTYPE, cq_commit, sq_commit

THREAD = {"JETSTREAM_PROGRESS": "thread"}
PATIENCE_S = 30.0


def address_of(x: Any) -> int:
    address: int = x.__array_interface__["data"][0]
    return address


def wait(qp: int) -> Any:
    """The next completion. On the queue pair at this address nothing else takes any."""
    cqe = ffi.new("js_cqe *")
    out = int(ffi.cast("uintptr_t", cqe))
    deadline_s = time.monotonic() + PATIENCE_S
    status = lib.JS_ERR_AGAIN
    while status == lib.JS_ERR_AGAIN and time.monotonic() < deadline_s:
        status = lib.js_device_wait(qp, out)
    assert status == lib.JS_OK, status
    return cqe


def run_posts(comm: Communicator) -> None:
    peer = (comm.rank + 1) % comm.size
    before = (comm.rank - 1) % comm.size
    with transport.QueuePair(comm) as qp:
        x = comm.empty(100)
        x[:] = comm.rank
        launch = qp.prepare("all_reduce", x)
        at = launch.source_addr
        assert lib.js_device_launch(qp.address, 7, launch.key, at, at) == lib.JS_OK
        cqe = wait(qp.address)
        assert (cqe.wr_id, cqe.status, cqe.opcode) == (7, 0, lib.JS_SQ_LAUNCH)
        assert cqe.bytes == x.nbytes and (x == sum(range(comm.size))).all()

        y = comm.empty(10)
        y[:] = comm.rank + 1
        with qp.capture() as graph:
            qp.comm.all_reduce(y)
        assert lib.js_device_graph(qp.address, 8, graph.key) == lib.JS_OK
        cqe = wait(qp.address)
        assert (cqe.wr_id, cqe.status, cqe.opcode) == (8, 0, lib.JS_SQ_GRAPH)
        assert (y == sum(range(1, comm.size + 1))).all()

        inbox, outbox = np.zeros(4), np.full(4, float(comm.rank))
        regions = [qp.register(inbox), qp.register(outbox)]
        target, source = (region.address for region in regions)
        assert lib.js_device_receive(qp.address, 9, target, 32, before, 5) == lib.JS_OK
        assert lib.js_device_send(qp.address, 10, source, 32, peer, 5) == lib.JS_OK
        by_id = {cqe.wr_id: cqe for cqe in (wait(qp.address), wait(qp.address))}
        assert by_id[9].status == by_id[10].status == 0
        assert (by_id[9].peer, by_id[9].bytes, by_id[9].sq_head_or_tag) == (before, 32, 5)
        assert (inbox == before).all()
        qp.drain()
        comm.barrier()


def run_entries(comm: Communicator) -> None:
    """Whole entries as NumPy has them; puts and signals."""
    peer = (comm.rank + 1) % comm.size
    before = (comm.rank - 1) % comm.size
    with transport.QueuePair(comm) as qp:
        target = comm.zeros(4, "uint64")
        window = qp.window(target)
        source = np.array([10 + comm.rank], np.uint64)
        place = qp.register(source).address
        name = peer << 32 | window.key(peer)
        assert lib.js_device_put(qp.address, 1, place, 8, name, 8) == lib.JS_OK
        sqe = np.zeros(1, SQE_DTYPE)
        sqe["opcode"], sqe["flags"] = lib.JS_SQ_PUT, lib.JS_SQ_INLINE | lib.JS_SQ_UNSIGNALLED
        sqe["peer"], sqe["key"] = peer, window.key(peer)
        sqe["source_addr"], sqe["bytes"], sqe["target_addr"] = 77, 8, 24
        sqe["signal"], sqe["signal_op"], sqe["signal_value"] = 63, lib.JS_SIGNAL_ADD, 5
        assert lib.js_device_post(qp.address, address_of(sqe)) == lib.JS_OK
        assert wait(qp.address).wr_id == 1
        status = lib.JS_ERR_AGAIN
        while status == lib.JS_ERR_AGAIN:
            status = lib.js_device_wait_signal(qp.address, 63, 5)
        assert status == lib.JS_OK and lib.js_device_read_signal(qp.address, 63) == 5
        assert target.tolist() == [0, 10 + before, 0, 77], "bytes, then signal"
        assert lib.js_device_read_signal(qp.address, 64) == 0
        assert lib.js_device_wait_signal(qp.address, 64, 1) == lib.JS_ERR_INVALID

        inbox = np.zeros(1, np.uint64)
        rqe = np.zeros(1, RQE_DTYPE)
        rqe["wr_id"], rqe["target_addr"] = 3, qp.register(inbox).address
        rqe["bytes"], rqe["peer"] = 8 | lib.JS_RQ_TAG_ANY, lib.JS_PEER_ANY
        assert lib.js_device_post_receive(qp.address, address_of(rqe)) == lib.JS_OK
        assert lib.js_device_send(qp.address, 4, place, 8, peer, 9) == lib.JS_OK
        assert {wait(qp.address).wr_id for _ in range(2)} == {3, 4}
        assert inbox[0] == 10 + before
        out = int(ffi.cast("uintptr_t", ffi.new("js_cqe *")))
        assert lib.js_device_poll(qp.address, out) == 0
        qp.drain()
        comm.barrier()


def run_full_and_closed(comm: Communicator) -> None:
    qp = transport.QueuePair(comm, depth=4)
    nop = np.zeros(1, SQE_DTYPE)
    nop["opcode"] = lib.JS_SQ_NOP
    for wr_id in range(4):
        nop["wr_id"] = wr_id
        assert lib.js_device_post(qp.address, address_of(nop)) == lib.JS_OK
    assert lib.js_device_post(qp.address, address_of(nop)) == lib.JS_ERR_FULL
    assert [wait(qp.address).wr_id for _ in range(4)] == [0, 1, 2, 3]
    assert lib.js_device_post(qp.address, address_of(nop)) == lib.JS_OK
    qp.close()
    assert lib.js_device_post(qp.address, address_of(nop)) == lib.JS_ERR_CLOSED
    assert lib.js_device_launch(qp.address, 0, 0, 0, 0) == lib.JS_ERR_CLOSED
    assert lib.js_device_receive(qp.address, 0, 0, 0, 0, 0) == lib.JS_ERR_CLOSED
    out = int(ffi.cast("uintptr_t", ffi.new("js_cqe *")))
    assert lib.js_device_poll(qp.address, out) == 0
    assert lib.js_device_wait(qp.address, out) == lib.JS_ERR_CLOSED
    assert lib.js_device_wait_signal(qp.address, 0, 1) == lib.JS_ERR_CLOSED


def run_failure(comm: Communicator) -> list[tuple[int, int]]:
    """One rank posts what is wrong, and goes on; what all of them post afterwards is flushed."""
    qp = transport.QueuePair(comm)
    entry = np.zeros(1, SQE_DTYPE)
    entry["opcode"] = 99 if comm.rank == 0 else lib.JS_SQ_NOP
    found = []
    if comm.rank == 0:
        assert lib.js_device_post(qp.address, address_of(entry)) == lib.JS_OK
        cqe = wait(qp.address)
        found.append((cqe.wr_id, cqe.status))
    out = int(ffi.cast("uintptr_t", ffi.new("js_cqe *")))
    deadline_s = time.monotonic() + PATIENCE_S
    while qp.state != transport.QPState.ERROR and time.monotonic() < deadline_s:
        assert lib.js_device_poll(qp.address, out) == 0
    entry["opcode"] = lib.JS_SQ_NOP
    for wr_id in range(1, 1000):  # more than the rings hold
        entry["wr_id"] = wr_id
        assert lib.js_device_post(qp.address, address_of(entry)) == lib.JS_OK
        cqe = wait(qp.address)
        found.append((cqe.wr_id, cqe.status))
    comm.barrier()
    qp.close()
    return found


def run_memory_alone(comm: Communicator) -> None:
    """As on a GPU: no function of the host to call, loads and stores alone (docs/device.md)."""
    with transport.QueuePair(comm, depth=4, threads="one") as qp:
        device = ffi.new("js_qp *", qp.pointer[0])
        device.progress = device.wait = device.wake = ffi.NULL
        bare = int(ffi.cast("uintptr_t", device))
        x = comm.empty(1000)
        launch = qp.prepare("all_reduce", x)
        at = launch.source_addr
        for step in range(20):  # through the header, whose waits can only spin
            x[:] = comm.rank + step
            assert lib.js_device_launch(bare, step, launch.key, at, at) == lib.JS_OK
            cqe = wait(bare)
            assert (cqe.wr_id, cqe.status) == (step, lib.JS_OK)
            assert (x == sum(range(comm.size)) + comm.size * step).all()
        control, deadline_s = device.control, time.monotonic() + PATIENCE_S
        for step in range(20, 40):  # by hand
            x[:] = comm.rank + step
            index = control.sq_reserved.index
            assert (index - control.sq_consumed.index) % 2**32 < device.sq_depth_slots
            control.sq_reserved.index = (index + 1) % 2**32
            entry = device.sq[index % device.sq_depth_slots]
            entry.opcode, entry.flags, entry.key, entry.wr_id = 2, 0, launch.key, step
            entry.source_addr = entry.target_addr = at
            entry.signal = entry.signal_op = 0
            entry.commit = sq_commit(index, device.sq_depth_slots)
            taken = control.cq_consumed.index
            cqe = device.cq[taken % device.cq_depth_slots]
            while cqe.commit != cq_commit(taken, device.cq_depth_slots):
                assert time.monotonic() < deadline_s
                time.sleep(0)
            assert (cqe.wr_id, cqe.status) == (step, lib.JS_OK)
            control.cq_consumed.index = (taken + 1) % 2**32
            assert (x == sum(range(comm.size)) + comm.size * step).all()
        comm.barrier()


def run_polling(comm: Communicator, posted: Path) -> int:
    """A device that never waits: it polls until it is told how the launch went."""
    qp = transport.QueuePair(comm)
    launch = qp.prepare("all_reduce", np.ones(8))
    comm.barrier()
    if comm.rank == 1:
        while not posted.exists():  # what is posted after a death is only flushed
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    at = launch.source_addr
    assert lib.js_device_launch(qp.address, 0, launch.key, at, at) == lib.JS_OK
    posted.touch()
    cqe = ffi.new("js_cqe *")
    deadline_s = time.monotonic() + PATIENCE_S
    while not lib.js_device_poll(qp.address, int(ffi.cast("uintptr_t", cqe))):
        assert time.monotonic() < deadline_s
    qp.close()
    return int(cqe.status)


@pytest.mark.parametrize("env", [{}, THREAD], ids=["inline", "thread"])
@pytest.mark.parametrize("run", [run_posts, run_entries])
def test_calls(rank_pools: Pools, run: Any, env: dict[str, str]) -> None:
    rank_pools(2, env=env).run(run)


@pytest.mark.parametrize("size", [1, 2])
def test_full_and_closed(rank_pools: Pools, size: int) -> None:
    rank_pools(size).run(run_full_and_closed)


@pytest.mark.parametrize("env", [{}, THREAD], ids=["inline", "thread"])
def test_posts_after_a_failure_are_flushed(rank_pools: Pools, env: dict[str, str]) -> None:
    first, second = rank_pools(2, env=env).run(run_failure)
    flushed = [(wr_id, lib.JS_ERR_FLUSHED) for wr_id in range(1, 1000)]
    assert first == [(0, lib.JS_ERR_OPCODE), *flushed]
    assert second == flushed


def test_memory_alone(rank_pools: Pools) -> None:
    rank_pools(2, env=THREAD).run(run_memory_alone)


@pytest.mark.parametrize("env", [{}, THREAD], ids=["inline", "thread"])
def test_death_of_a_peer_is_noticed_by_polling(
    env: dict[str, str], no_leaks: Any, tmp_path: Path
) -> None:
    with RankPool(2, timeout_s=2 * PATIENCE_S, env=env, fresh=True) as pool:
        pool.start(run_polling, tmp_path / "posted")
        first, second = pool.wait()
    assert second.has_died
    assert first.is_ok and first.value == lib.JS_ERR_PEER_DEAD, first
    no_leaks.expect_nothing()
