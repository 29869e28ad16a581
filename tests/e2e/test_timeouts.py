"""Waiting: it ends in time, says for whom it waited, burns no core, and can be interrupted."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.errors import ClosedError, CommunicatorAbortedError, TimedOutError
from jetstream.testing.plugin import Pools

#: Generous: what a busy machine adds to any wait.
SLACK_S = 15.0


def exchange_pids(comm: Communicator) -> list[int]:
    return [int(pid) for pid in comm.all_gather(np.array([os.getpid()]))]


def expect_timeout(comm: Communicator, timeout_s: float, **options: Any) -> str:
    """Times out in a large all_reduce, in bounded time; returns the text."""
    start_s = time.monotonic()
    with pytest.raises(TimedOutError) as caught:
        comm.all_reduce(np.ones(1 << 20, np.float32), **options)
    waited_s = time.monotonic() - start_s
    assert timeout_s <= waited_s < timeout_s + SLACK_S
    return str(caught.value)


def stay_away(seen: Path) -> None:
    """Until another rank has seen what it is to see, and made the file that says so."""
    deadline_s = time.monotonic() + 30
    while not seen.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def run_stopped_rank(comm: Communicator, victim: int) -> str:
    """Rank 0 stops the victim; the others are told about it."""
    pids = exchange_pids(comm)
    comm.barrier()
    if comm.rank == victim:
        with pytest.raises(CommunicatorAbortedError, match="timed out"):
            comm.recv(np.empty(1), 0)  # it is stopped here
        return ""
    others = {*range(1, comm.size)} - {victim}
    if comm.rank == 0:
        time.sleep(0.2)
        os.kill(pids[victim], signal.SIGSTOP)
        for other in others:
            comm.send(np.empty(1), other)
    else:
        comm.recv(np.empty(1), 0)  # their time begins together
    try:
        with pytest.raises((TimedOutError, CommunicatorAbortedError)) as caught:
            comm.all_reduce(np.ones(1 << 20, np.float32), timeout=1.5)
        text = str(caught.value)
        with pytest.raises((TimedOutError, CommunicatorAbortedError), match="cannot be used any"):
            comm.barrier()
        return text
    finally:
        if comm.rank == 0:
            os.kill(pids[victim], signal.SIGCONT)


@pytest.mark.parametrize("world", [2, 3])
def test_stopped_rank(rank_pools: Pools, world: int) -> None:
    pool = rank_pools(world)
    texts = pool.run(run_stopped_rank, 1)
    pid = pool.pids[1]
    for rank in {0, world - 1} - {1}:
        text = texts[rank]
        assert f"rank 1 (pid {pid}) last finished barrier() #2" in text
        assert re.search(r"all_reduce\(float32, sum, count=1048576.*\) #3", text)
        assert re.search(r"operation \d+ of \d+ of its plan, \d+ of \d+ bytes done", text)
        done, total = map(int, re.findall(r"(\d+) of (\d+) bytes done", text)[0])
        assert 0 < done < total
    assert any("timed out after 1.5 s, waiting for rank" in text for text in texts)


def run_continued_rank(comm: Communicator) -> None:
    """A stop that is shorter than the timeout only costs time."""
    pids = exchange_pids(comm)
    if comm.rank == 0:

        def toggle() -> None:
            for _ in range(3):
                os.kill(pids[1], signal.SIGSTOP)
                time.sleep(0.3)
                os.kill(pids[1], signal.SIGCONT)
                time.sleep(0.05)

        thread = threading.Thread(target=toggle)
        thread.start()
        for _ in range(200):
            assert (comm.all_reduce(np.ones(50_000), timeout=30) == comm.size).all()
        thread.join()
    else:
        for _ in range(200):
            assert (comm.all_reduce(np.ones(50_000), timeout=30) == comm.size).all()


def test_continued_rank(rank_pools: Pools) -> None:
    rank_pools(2).run(run_continued_rank)


def run_late_rank(comm: Communicator, seen: Path) -> str:
    """Alive, but busy with something else."""
    comm.all_reduce(np.ones(7), "max")
    if comm.rank == 1:
        stay_away(seen)
        with pytest.raises(CommunicatorAbortedError, match="rank 0"):
            comm.barrier()
        return ""
    text = expect_timeout(comm, 0.3, timeout=0.3)
    for call in (comm.barrier, partial(comm.all_reduce, np.ones(1 << 20, np.float32))):
        with pytest.raises(TimedOutError, match=r"timed out: rank 1 .*cannot be used any more"):
            call()
    seen.touch()
    return text


def test_late_rank(rank_pools: Pools, tmp_path: Path) -> None:
    text = rank_pools(2).run(run_late_rank, tmp_path / "seen")[0]
    assert "timed out after 0.3 s" in text and "waiting for rank 1" in text
    assert "last finished all_reduce(float64, max, count=7" in text


def run_default_timeout(comm: Communicator, seen: Path) -> str:
    assert comm.timeout == 0.4
    if comm.rank == 1:
        stay_away(seen)
        return ""
    text = expect_timeout(comm, 0.4)
    seen.touch()
    comm.timeout = 7
    assert comm.timeout == 7
    return text


def test_default_from_the_environment(rank_pools: Pools, tmp_path: Path) -> None:
    pool = rank_pools(2, env={"JETSTREAM_TIMEOUT": "0.4"})
    text = pool.run(run_default_timeout, tmp_path / "seen")[0]
    assert "timed out after 0.4 s" in text


def run_timeout_attribute(comm: Communicator, seen: Path) -> None:
    comm.timeout = 0.3
    if comm.rank == 0:
        expect_timeout(comm, 0.3)
        seen.touch()
    else:
        stay_away(seen)


def test_default_of_the_communicator(rank_pools: Pools, tmp_path: Path) -> None:
    rank_pools(2).run(run_timeout_attribute, tmp_path / "seen")


def run_never_entered(comm: Communicator, seen: Path) -> str:
    if comm.rank == 0:
        text = expect_timeout(comm, 0.2, timeout=0.2)
        seen.touch()
        return text
    stay_away(seen)
    return ""


def test_rank_that_never_called_anything(rank_pools: Pools, tmp_path: Path) -> None:
    text = rank_pools(2).run(run_never_entered, tmp_path / "seen")[0]
    assert "has not entered any collective" in text


def run_close_times_out(comm: Communicator, seen: Path) -> None:
    """A send that does not go out cannot keep a rank from leaving."""
    comm.barrier()
    if comm.rank == 0:
        comm.timeout = 0.3
        comm.isend(np.ones(1 << 20), 1)
        with pytest.raises(TimedOutError, match=r"send of 8388608 bytes to rank 1 .* 0\.3 s"):
            comm.close()
        with pytest.raises(ClosedError):
            comm.barrier()
        seen.touch()
    else:
        stay_away(seen)


def test_close_times_out(rank_pools: Pools, tmp_path: Path) -> None:
    rank_pools(2).run(run_close_times_out, tmp_path / "seen")


# --- interrupts ----------------------------------------------------------------------------------


def run_interrupted(comm: Communicator, kind: str, seen: Path) -> float:
    """Returns how long it took from the signal to the exception."""
    comm.barrier()
    if comm.rank == 1:
        stay_away(seen)
        return 0.0
    sent_s = [0.0]

    def interrupt() -> None:
        time.sleep(0.3)
        sent_s[0] = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        if kind == "call":
            comm.all_reduce(np.ones(3))
        elif kind == "work":
            comm.all_reduce(np.ones(3), async_op=True).wait()
        else:
            comm.recv(np.ones(3), 1)
    raised_s = time.monotonic()
    seen.touch()
    thread.join()
    return raised_s - sent_s[0]


@pytest.mark.parametrize("kind", ["call", "work", "recv"])
def test_interrupt(rank_pools: Pools, kind: str, tmp_path: Path) -> None:
    delay_s = rank_pools(2).run(run_interrupted, kind, tmp_path / "seen")[0]
    print(f"Ctrl-C in {kind}: {delay_s:.3f} s")
    assert delay_s < 10  # 0.1 s, and what a busy machine adds


def run_interrupt_is_heard(comm: Communicator, seen: Path) -> None:
    """Rank 2 comes late; rank 0 is interrupted before; ranks 1 and 2 hear about it."""
    if comm.rank == 2:
        stay_away(seen)
    if comm.rank == 0:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    kind = KeyboardInterrupt if comm.rank == 0 else CommunicatorAbortedError
    with pytest.raises(kind):
        comm.all_reduce(np.ones(3))
    if comm.rank == 0:
        seen.touch()
    with pytest.raises(CommunicatorAbortedError, match="cannot be used any more"):
        comm.barrier()


def test_interrupt_is_heard_by_the_others(rank_pools: Pools, tmp_path: Path) -> None:
    rank_pools(3).run(run_interrupt_is_heard, tmp_path / "seen")


# --- what waiting costs --------------------------------------------------------------------------


def run_long_wait(comm: Communicator, kind: str, seconds: float) -> float:
    """Returns the share of a core that waiting for so long took."""
    comm.barrier()
    if comm.rank == comm.size - 1:
        time.sleep(seconds)
    cpu_s = time.process_time()
    if kind == "recv" and comm.size == 2:
        peer = 1 - comm.rank
        if comm.rank == 1:
            comm.send(np.ones(1), peer)
        else:
            comm.recv(np.empty(1), peer)
    else:
        comm.all_reduce(np.ones(100))
    return (time.process_time() - cpu_s) / seconds if comm.rank == 0 else 0.0


@pytest.mark.parametrize(("world", "kind"), [(2, "call"), (2, "recv"), (4, "call")])
def test_long_waits_burn_no_core(rank_pools: Pools, world: int, kind: str) -> None:
    share = rank_pools(world).run(run_long_wait, kind, 1.5)[0]
    print(f"waiting 1.5 s in {kind} at world {world}: {100 * share:.1f} % of a core")
    assert share < 0.05
