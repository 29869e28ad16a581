"""Communicators of some of the ranks: how they fail, live and end."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import (
    CommunicatorAbortedError,
    MismatchError,
    OutOfMemoryError,
    PeerClosedError,
    PeerDiedError,
    TimedOutError,
)
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools

MIB = 1 << 20


def check_sums(comm: Communicator, seed: int) -> None:
    """Collectives of which every rank knows the result."""
    for count in (1, 50 + 37 * seed):
        x = np.arange(count, dtype=np.int64) * (comm.rank + 1)
        comm.all_reduce(x)
        assert (x == np.arange(count) * (comm.size * (comm.size + 1) // 2)).all()
    parts = comm.all_gather(np.array([seed, comm.rank]))
    assert parts.tolist() == [v for rank in range(comm.size) for v in (seed, rank)]
    comm.barrier()


# --- failures ---------------------------------------------------------------------------------


def run_abort(comm: Communicator) -> None:
    doomed, healthy = comm.dup(), comm.dup()
    if comm.rank == 0:
        doomed.abort()
    with pytest.raises(CommunicatorAbortedError):
        doomed.barrier()
    check_sums(healthy, 1)
    wrong = comm.dup()
    with pytest.raises(MismatchError, match="rank"):
        wrong.all_reduce(np.ones(3 + wrong.rank))
    check_sums(healthy, 2)
    check_sums(comm, 3)
    early = comm.dup()
    if comm.rank == 0:
        early.close()
    else:
        with pytest.raises(PeerClosedError, match="rank 0"):
            early.barrier()
    check_sums(comm, 4)


@pytest.mark.ranks(3)
def test_a_failed_one_leaves_the_others_alone(comm: Communicator) -> None:
    run_abort(comm)


def run_timeout(comm: Communicator) -> str:
    """In the communicator of ranks 3, 2, 1 the last one comes too late."""
    others = comm.split(None if comm.rank == 0 else 1, key=-comm.rank)
    text = ""
    if others is not None and comm.rank != 1:
        comm.send(np.ones(1), 5 - comm.rank)  # ranks 2 and 3 begin together
        comm.recv(np.ones(1), 5 - comm.rank)
        with pytest.raises((TimedOutError, CommunicatorAbortedError)) as caught:
            others.all_reduce(np.ones(3), timeout=3.0)
        text = str(caught.value)
    comm.barrier()
    if comm.rank == 1 and others is not None:
        with pytest.raises(CommunicatorAbortedError, match=r"of the job"):
            others.barrier()
    check_sums(comm, 1)
    return text


@pytest.mark.parametrize("ranks", [4])
def test_a_timeout_names_ranks_of_the_job(ranks: int, rank_pools: Pools) -> None:
    texts = rank_pools(ranks).run(run_timeout)
    for text in texts[2:]:
        assert re.search(r": rank 2 \(rank 1 of the job, pid \d+\) has not entered", text), text
        assert re.search(r"rank [01] \(rank [23] of the job\) is in all_reduce", text), text


def run_dropped(comm: Communicator) -> None:
    """A communicator that nobody holds any more is closed, and its memory free."""
    for i in range(40):
        child = comm.dup()
        check_sums(child, i)
        work = child.irecv(np.zeros(10), 0)
        del child, work
        gc.collect()
    keep = comm.dup()
    other = comm.split(comm.rank)
    assert other is not None
    if comm.rank == 0:
        del keep
        gc.collect()
    else:
        with pytest.raises(PeerClosedError, match="rank 0"):
            keep.barrier()
    check_sums(other, 1)
    check_sums(comm, 1)


@pytest.mark.ranks(2)
def test_dropping_one_closes_it(comm: Communicator) -> None:
    run_dropped(comm)


def run_death(comm: Communicator) -> str:
    """Rank 3 dies: it is rank 0 of the odd ranks."""
    parity = comm.split(comm.rank % 2, key=-comm.rank)
    assert parity is not None
    if comm.rank == 3:
        parity.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    if comm.rank == 1:
        parity.barrier()
        with pytest.raises(PeerDiedError) as caught:
            parity.barrier()
        text = str(caught.value)
        parity.close()
    else:
        deadline = time.monotonic() + 1.5
        is_over = False
        while not is_over:  # both leave after the same round, whoever's clock is ahead
            check_sums(parity, 1)
            is_over = bool(parity.all_reduce(np.array([int(time.monotonic() > deadline)]))[0])
        text = ""
    with pytest.raises(PeerDiedError, match=r"rank 3 \(pid"):
        comm.barrier()
    if comm.rank != 1:
        check_sums(parity, 2)
    return text


def test_a_death_fails_those_it_belongs_to(no_leaks: None) -> None:
    with RankPool(4) as pool:
        outcomes = pool.collect(run_death)
    assert [outcome.has_died for outcome in outcomes] == [False, False, False, True]
    assert all(outcome.failure is None for outcome in outcomes[:3]), outcomes
    assert re.search(r"rank 0 \(rank 3 of the job, pid \d+\) died", str(outcomes[1].value))


def run_exhausted(comm: Communicator) -> str:
    kept: list[Communicator] = []
    try:
        while len(kept) < 100:
            kept.append(comm.dup())
    except OutOfMemoryError as error:
        for each in kept[:-1]:
            check_sums(each, 1)
            each.close()
        kept.append(comm.dup())  # what was closed can be had again
        check_sums(kept[-1], 2)
        return str(error)
    return ""


def test_no_room_is_an_error_of_the_group() -> None:
    with RankPool(2, env={"JETSTREAM_HEAP_BYTES": "100M"}) as pool:
        own, told = pool.run(run_exhausted)
        assert "JETSTREAM_HEAP_BYTES" in own
        assert told.startswith("rank 0 could not take part")


# --- how they end -----------------------------------------------------------------------------


def segment_bytes() -> int:
    """Memory that segments open in this process take at present."""
    fds = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    segments = [fd for fd in fds if "memfd:jetstream" in str(fd.readlink())]
    assert segments
    return sum(fd.stat().st_blocks for fd in segments) * 512


def private_bytes() -> int:
    """Memory of this process that is no part of a segment."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(n) for n in re.findall(r"^Anonymous:\s+(\d+)", text, re.M))


def run_many_times(comm: Communicator) -> tuple[int, int, int]:
    def cycle() -> None:
        child = comm.split(comm.rank % 2, comm.rank)
        twin = comm.dup()
        assert child is not None
        check_sums(child, 1)
        check_sums(twin, 2)
        first, second = (child, twin) if comm.rank % 2 else (twin, child)
        first.close()
        second.close()

    for _ in range(30):
        cycle()
    gc.collect()
    comm.barrier()
    before = comm.heap.used_bytes, segment_bytes(), private_bytes()
    for _ in range(200):
        cycle()
    gc.collect()
    comm.barrier()
    after = comm.heap.used_bytes, segment_bytes(), private_bytes()
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def test_made_and_closed_many_times_memory_is_flat(rank_pools: Pools) -> None:
    for heap, segment, private in rank_pools(3).run(run_many_times):
        assert heap <= 80 * MIB  # those of the last round may not have been freed yet
        assert segment < 64 * MIB
        assert private < 4 * MIB


def run_fifty(comm: Communicator) -> None:
    comms = [comm.dup() for _ in range(50)]
    for i, each in enumerate(comms):
        check_sums(each, i)
    for each in comms[::2] + comms[1::2]:
        each.close()


@pytest.mark.parametrize("ranks", [2, 6])
def test_fifty_at_once(ranks: int, rank_pools: Pools) -> None:
    rank_pools(ranks).run(run_fifty)


def run_parents_first(comm: Communicator) -> None:
    child = comm.dup()
    grandchild = child.split(0, -child.rank)
    assert grandchild is not None
    comm.close()
    check_sums(child, 1)
    child.close()
    check_sums(grandchild, 2)
    assert grandchild.rank == grandchild.size - 1 - comm.rank
    grandchild.close()


def test_parents_may_be_closed_first(no_leaks: None) -> None:
    with RankPool(3) as pool:
        pool.run(run_parents_first, timeout_s=30)
