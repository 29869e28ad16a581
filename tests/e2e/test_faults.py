"""Ranks that are killed or stopped at random moments: the others say who it was, nothing is left.

``--fault-rounds=200 --fault-seed=N`` goes on for longer, with other moments; ``-rP`` prints the
figures.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import CommunicatorAbortedError, JetstreamError, PeerDiedError
from jetstream.testing import Outcome, RankPool
from jetstream.testing.plugin import Pools

#: From the death of a rank to the exception in each of the others. It takes milliseconds, and where
#: other programs have the cores some slices of theirs; nothing else ends a wait before 45 s.
NOTICE_S = 20.0


def work_forever(comm: Communicator, seed: int) -> None:
    """Collectives and messages of all sizes, until something goes wrong."""
    plan = random.Random(seed)  # the same on all ranks
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    while True:
        count = plan.choice((0, 1, 7, 500, 20_000, 1_000_000))
        x = np.ones(count, plan.choice((np.float32, np.int64)))
        if plan.random() < 0.5:
            x = comm.empty(x.shape, x.dtype)
            x[:] = 1
        match plan.randrange(7):
            case 0:
                comm.all_reduce(x)
            case 1:
                comm.all_gather(x)
            case 2:
                comm.broadcast(x, plan.randrange(comm.size))
            case 3:
                comm.barrier()
            case 4:
                work = comm.isend(x, right)
                comm.recv(np.empty_like(x), left)
                work.wait()
            case 5:
                works = [comm.all_reduce(x.copy(), async_op=True) for _ in range(5)]
                time.sleep(plan.random() * 0.003)
                for work in works:
                    work.wait()
            case _:
                time.sleep(plan.random() * 0.005)


def survive(comm: Communicator, seed: int, joined: Path | None = None) -> tuple[str, str, float]:
    """Returns what it was told about the death of the others, and when; says that it has begun."""
    if joined is not None:
        (joined / str(comm.rank)).touch()
    try:
        work_forever(comm, seed)
    except JetstreamError as error:
        return type(error).__name__, str(error), time.monotonic()
    raise AssertionError("unreachable")


def kill_some(pool: RankPool, plan: random.Random, delay_s: float) -> tuple[list[int], float]:
    """Kills a random set of ranks; returns them, and when the last one was killed."""
    time.sleep(delay_s)
    victims = sorted(plan.sample(range(pool.size), plan.randint(1, pool.size)))
    for rank in victims:
        os.kill(pool.pids[rank], signal.SIGKILL)
    return victims, time.monotonic()


def check_survivors(
    outcomes: list[Outcome], victims: list[int], killed_s: float, pids: tuple[int, ...]
) -> list[float]:
    """Returns how long each survivor took to notice.

    Who was to be killed after others may have heard of them first, and been done.
    """
    delays_s = []
    assert outcomes[victims[0]].has_died, outcomes
    for outcome in outcomes:
        if outcome.rank in victims and outcome.has_died:
            assert outcome.failure == "killed by SIGKILL", outcome
            continue
        assert outcome.is_ok, outcome
        name, text, raised_s = outcome.value
        assert name == PeerDiedError.__name__, text
        assert any(f"rank {rank} (pid {pids[rank]}) died" in text for rank in victims), text
        assert "cannot be used any more" in text
        delays_s.append(raised_s - killed_s)
    return delays_s


def test_kill(request: pytest.FixtureRequest, no_leaks: Any, tmp_path: Path) -> None:
    rounds = request.config.getoption("--fault-rounds")
    plan = random.Random(request.config.getoption("--fault-seed"))
    delays_s: list[float] = []
    for number in range(rounds):
        joined = tmp_path / str(number)
        joined.mkdir()
        with RankPool(plan.randint(2, 5), fresh=True) as pool:
            pool.run(warm_up)
            pool.start(survive, plan.randrange(10**6), joined)
            pids = pool.pids
            deadline_s = time.monotonic() + 30
            while len(list(joined.iterdir())) < pool.size and time.monotonic() < deadline_s:
                time.sleep(0.001)
            victims, killed_s = kill_some(pool, plan, plan.random() * 0.3)
            delays_s += check_survivors(pool.wait(), victims, killed_s, pids)
        no_leaks.expect_nothing()
    slowest = sorted(delays_s)[-3:]
    print(f"{rounds} rounds, {len(delays_s)} survivors, slowest {[f'{s:.3f} s' for s in slowest]}")
    assert max(delays_s, default=0.0) < NOTICE_S


def warm_up(comm: Communicator) -> None:
    comm.barrier()


def test_kill_while_joining(request: pytest.FixtureRequest, no_leaks: Any) -> None:
    """From the start of the processes on: whoever survives raises, in bounded time."""
    plan = random.Random(request.config.getoption("--fault-seed"))
    env = {"JETSTREAM_INIT_TIMEOUT": "1.5"}
    for _ in range(max(3, request.config.getoption("--fault-rounds") // 2)):
        with RankPool(plan.randint(2, 4), env=env, fresh=True) as pool:
            pool.start(survive, plan.randrange(10**6))
            victims, _ = kill_some(pool, plan, plan.random() * 0.8)
            for outcome in pool.wait():
                assert outcome.has_ended, outcome.details
                if outcome.rank not in victims and not outcome.is_ok:
                    assert "RendezvousError" in str(outcome.failure), outcome
                    assert "rank " in str(outcome.failure)
        no_leaks.expect_nothing()


def run_kill_yourself(comm: Communicator, how: str) -> str:
    """Returns what the others hear."""
    if comm.rank == 1:
        comm.barrier()
        if how == "exit":
            os._exit(7)
        os.kill(os.getpid(), getattr(signal, how))
    with pytest.raises(PeerDiedError) as caught:
        comm.barrier()
        while True:
            comm.all_reduce(np.ones(10))
    with pytest.raises(PeerDiedError, match="cannot be used any more"):
        comm.barrier()
    return str(caught.value)


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"])
def test_ways_to_die(no_leaks: Any, how: str) -> None:
    with RankPool(3) as pool:
        outcomes = pool.collect(run_kill_yourself, how)
    assert outcomes[1].has_died
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.is_ok, outcome
        assert "rank 1" in outcome.value and "died" in outcome.value


def run_receive_from_the_dead(comm: Communicator) -> str:
    if comm.rank == 1:
        comm.send(np.arange(3), 0, tag=1)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    if comm.rank == 2:  # has nothing to do with it, until it waits for all
        time.sleep(0.3)
        with pytest.raises(PeerDiedError, match="rank 1"):
            comm.barrier()
        return ""
    with pytest.raises(PeerDiedError) as caught:
        comm.recv(np.empty(5), 1, tag=2)
    return str(caught.value)


def test_receive_from_a_dead_rank(no_leaks: Any) -> None:
    with RankPool(3) as pool:
        outcomes = pool.collect(run_receive_from_the_dead)
    assert outcomes[0].is_ok and "rank 1" in outcomes[0].value
    assert outcomes[2].is_ok, outcomes[2]


def run_works_in_flight(comm: Communicator, posted: Path) -> int:
    """Everything in flight when a rank dies ends, with the story; nothing hangs."""
    comm.barrier()
    if comm.rank == 1:
        while len(list(posted.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    works = [comm.irecv(np.empty(4), 1, tag) for tag in range(3)]
    works += [comm.all_reduce(np.ones(100_000), async_op=True) for _ in range(100)]
    works += [comm.isend(np.ones(1 << 20), 1, tag=tag) for tag in range(1, 4)]
    (posted / str(comm.rank)).touch()
    for work in works:
        with pytest.raises(CommunicatorAbortedError, match=r"rank 1 \(pid \d+\) died"):
            work.wait()
        assert work.done()
        with pytest.raises(CommunicatorAbortedError):
            work.wait()
    return len(works)


def test_works_in_flight(no_leaks: Any, tmp_path: Path) -> None:
    with RankPool(3) as pool:
        outcomes = pool.collect(run_works_in_flight, tmp_path)
    assert outcomes[1].has_died
    assert outcomes[0].is_ok, outcomes[0]
    assert outcomes[2].is_ok, outcomes[2]


def run_new_communicator(comm: Communicator) -> float:
    return float(comm.all_reduce(np.ones(1))[0])


def test_a_pool_recovers(no_leaks: Any) -> None:
    with RankPool(3) as pool:
        assert pool.run(run_new_communicator) == [3.0] * 3
        pool.collect(run_kill_yourself, "SIGKILL")
        assert pool.run(run_new_communicator) == [3.0] * 3


def run_many_lives(comm: Communicator) -> None:
    """The same processes, again and again in a new communicator: see test_many_lives."""
    assert (comm.all_reduce(np.full(1000, comm.rank)) == sum(range(comm.size))).all()


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_many_lives(rank_pools: Pools, no_leaks: Any) -> None:
    """Joining and leaving many times leaves nothing behind in the processes either."""
    with RankPool(2, fresh=True) as pool:
        pool.run(run_many_lives)
        before = [open_files(pid) for pid in pool.pids]
        for _ in range(30):
            pool.run(run_many_lives)
        deadline_s = time.monotonic() + 30  # threads of a socket library may close some later
        while any(open_files(pid) > n for pid, n in zip(pool.pids, before, strict=True)):
            assert time.monotonic() < deadline_s, (before, [open_files(pid) for pid in pool.pids])
            time.sleep(0.05)
        for pid in pool.pids:
            assert "memfd:jetstream (" not in Path(f"/proc/{pid}/maps").read_text()
