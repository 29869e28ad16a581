"""Communicators over hosts: groups, messages, asynchronous and prepared calls, errors."""

from __future__ import annotations

import numpy as np
import pytest

from jetstream import Communicator
from jetstream.errors import (
    CommunicatorAbortedError,
    JetstreamError,
    MismatchError,
    PeerClosedError,
    TimedOutError,
)
from jetstream.testing import run_ranks
from jetstream.testing.plugin import Pools

FAULTS = "drop=0.02,dup=0.01,reorder=0.02,corrupt=0.01,seed=4"
LARGE = 300_000  # elements: more than a ring holds


def run_everything(comm: Communicator) -> None:
    ranks = np.arange(comm.size)
    for group in (comm.split(comm.rank % 2, -comm.rank), comm.dup()):
        assert group is not None
        with group:
            ones = group.all_reduce(np.ones(3, np.int32))
            assert ones.tolist() == [group.size] * 3
    works = [comm.all_reduce(np.full(LARGE, comm.rank, "int64"), async_op=True) for _ in range(3)]
    for work in works:
        assert (work.wait(timeout=60) == ranks.sum()).all()
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    sent = np.arange(LARGE) + comm.rank
    sending = comm.isend(sent, after, tag=5)
    got = np.zeros_like(sent)
    comm.recv(got, before, tag=5)
    sending.wait(timeout=60)
    assert np.array_equal(got, np.arange(LARGE) + before)
    x = np.zeros(1000, np.float32)
    step = comm.persistent("all_reduce", x)
    with comm.capture() as graph:
        comm.all_reduce(x)
        comm.broadcast(x, root=comm.size - 1)
    for number in range(20):
        x[:] = number
        step()
        graph()
        assert (x == number * comm.size**2).all()
    assert comm.all_gather(np.array([comm.rank])).tolist() == ranks.tolist()
    comm.barrier()
    others = [rank for rank in ranks if comm.host_index[rank] != comm.host_index[comm.rank]]
    counters = comm.peer_counters(int(others[0]))
    assert counters["chunks_sent"] > 0 and counters["chunks_received"] > 0
    assert comm.link_counters()["frames_sent"] > 0


@pytest.mark.parametrize(
    ("count", "hosts", "faults", "progress"),
    [(2, 2, "", "inline"), (3, 2, FAULTS, "inline"), (4, 4, "", "thread")],
)
def test_everything(
    count: int, hosts: int, faults: str, progress: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSTREAM_PROGRESS", progress)
    run_ranks(run_everything, count, hosts=hosts, link="udp", faults=faults, timeout_s=120)


def count_frames_of_groups(comm: Communicator) -> list[int]:
    counts = []
    for group in (comm.split(comm.rank % 2), comm.dup()):
        assert group is not None
        with group:
            for count in (3, 20_000):
                ones = group.all_reduce(np.ones(count, np.int32))
                assert (ones == group.size).all()
            counts.append(group.link_counters()["frames_received"])
    assert comm.all_reduce(np.ones(1))[0] == comm.size
    return counts


@pytest.mark.ranks(4, hosts=2, link="xdp")
def test_groups_beside_a_link_xdp(comm: Communicator) -> None:
    """The interface has one endpoint of xdp; the groups' are packet sockets beside it."""
    assert all(count > 0 for count in count_frames_of_groups(comm))
    assert comm.link_counters()["frames_received"] > 0


def run_damaged(comm: Communicator) -> dict[str, int]:
    for number in range(50):
        assert comm.all_reduce(np.full(2, number))[0] == number * comm.size
    return comm.link_counters()


def test_damaged_frames_are_counted() -> None:
    for link in run_ranks(run_damaged, 2, hosts=2, link="udp", faults="corrupt=0.3,seed=1"):
        assert link["faults"] > 0
        assert link["refused_crc"] > 0


def run_apart(comm: Communicator, what: str) -> str:
    """The last rank, on the last host, does something else than the others."""
    is_last = comm.rank == comm.size - 1
    try:
        comm.barrier()
        if is_last and what == "abort":
            comm.abort()
        elif is_last and what == "late":
            comm.recv(np.zeros(1), 0, timeout=60)
        if not (is_last and what in ("leave", "late")):
            comm.all_reduce(np.ones(10 + is_last), timeout=4 if what == "late" else 60)
    except JetstreamError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("what", "kind", "told"),
    [
        ("differ", MismatchError, ["count=10", "count=11", "rank 2"]),
        ("leave", PeerClosedError, ["rank 2", "last finished barrier() #1"]),
        ("abort", CommunicatorAbortedError, ["rank 2", "aborted"]),
        ("late", TimedOutError, ["rank 2"]),
    ],
)
def test_errors(rank_pools: Pools, what: str, kind: type[JetstreamError], told: list[str]) -> None:
    texts = rank_pools(3, hosts=2, link="udp").run(run_apart, what, timeout_s=120)
    for text in texts[:2]:
        assert text.startswith((kind.__name__, "CommunicatorAbortedError"))
        assert all(words in text for words in told), text
    assert any(text.startswith(kind.__name__) for text in texts)
