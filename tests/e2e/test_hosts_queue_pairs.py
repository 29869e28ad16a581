"""Queue pairs between hosts: launches, one-sided puts of all sizes, keys that do not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jetstream import Communicator, transport
from jetstream.errors import CommunicatorAbortedError
from jetstream.testing.plugin import Pools

WAIT_S = 30.0
#: Elements and offset in bytes: with its head within a line and just not, within a chunk and just
#: not, several, more than the ring holds, none.
PUTS = ((1, 0), (2, 8), (3, 0), (11, 4), (8184, 0), (8185, 4), (20_000, 1000), (90_000, 0), (0, 0))


def run_puts(comm: Communicator) -> None:
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    with transport.QueuePair(comm) as qp:
        area = comm.zeros(100_000, "int32")
        window = qp.window(area)
        for number, (count, offset) in enumerate(PUTS, 1):
            sent = np.arange(count, dtype=np.int32) + 1000 * comm.rank + number
            if count:
                qp.register(sent, "read")
            qp.post_put(sent, target, window, offset=offset, signal=3, value=1, wr_id=number)
            completion = qp.wait(timeout=WAIT_S)
            assert (completion.wr_id, completion.status) == (number, "JS_OK")
            assert completion.bytes == sent.nbytes
            qp.wait_signal(3, number, timeout=WAIT_S)
            got = np.asarray(area)[offset // 4 : offset // 4 + count]
            assert np.array_equal(got, np.arange(count) + 1000 * source + number)
            comm.barrier()


def run_silent_puts(comm: Communicator) -> None:
    """Puts back and forth whose completion nobody waits for, more than the queue holds."""
    other = 1 - comm.rank
    with transport.QueuePair(comm, depth=4) as qp:
        area = comm.zeros(4, "int32")
        window = qp.window(area)
        sent = np.zeros(4, np.int32)
        qp.register(sent, "read")
        for step in range(1, 51):
            if comm.rank == 1:
                qp.wait_signal(5, step, timeout=WAIT_S)
                assert (np.asarray(area) == step).all()
            sent[:] = step
            qp.post_put(sent, other, window, signal=5, signalled=False)
            if comm.rank == 0:
                qp.wait_signal(5, step, timeout=WAIT_S)
                assert (np.asarray(area) == step).all()
        qp.post_put(sent, other, window, wr_id=9)
        assert qp.wait(timeout=WAIT_S).wr_id == 9
        comm.barrier()


def run_launches(comm: Communicator) -> None:
    with transport.QueuePair(comm) as qp:
        x = np.ones(1000, np.float32)
        qp.register(x, "read|write")
        launch = qp.prepare("all_reduce", x)
        for step in range(1, 20):
            x[:] = step
            qp.post_launch(launch, wr_id=step)
            assert qp.wait(timeout=WAIT_S).status == "JS_OK"
            assert (x == step * comm.size).all()


def run_closed_region(comm: Communicator) -> Any:
    """What becomes of a put into memory that its owner has taken back."""
    with transport.QueuePair(comm) as qp:
        window = qp.window(comm.zeros(100, "int32"))
        sent = np.ones(10, np.int32)
        qp.register(sent, "read")
        if comm.rank == 1:
            window.close()
        comm.barrier()
        if comm.rank == 0:
            qp.post_put(sent, 1, window, wr_id=7)
            completion = qp.wait(timeout=WAIT_S)
            assert completion.wr_id == 7
            return completion.status
        try:
            qp.wait_signal(0, 1, timeout=WAIT_S)
        except CommunicatorAbortedError as error:
            return str(error)
        return "nothing happened"


@pytest.mark.parametrize("faults", ["", "drop=0.03,dup=0.02,reorder=0.03,corrupt=0.02,seed=2"])
def test_puts(rank_pools: Pools, faults: str) -> None:
    rank_pools(3, hosts=2, link="udp", faults=faults).run(run_puts, timeout_s=120)


def test_silent_puts(rank_pools: Pools) -> None:
    rank_pools(2, hosts=2, link="udp").run(run_silent_puts, timeout_s=120)


def test_launches(rank_pools: Pools) -> None:
    rank_pools(2, hosts=2, link="udp").run(run_launches, timeout_s=120)


def test_a_region_taken_back(rank_pools: Pools) -> None:
    status, text = rank_pools(2, hosts=2, link="udp").run(run_closed_region, timeout_s=120)
    assert status == "JS_ERR_ABORTED"
    assert "foreign key: rank 0" in text
