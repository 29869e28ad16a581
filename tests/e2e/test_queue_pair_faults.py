"""Queue pairs when ranks die, stop, leave or write nonsense: bounded, and told with names."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetstream._core.native import lib
from jetstream.communicator import Communicator
from jetstream.errors import (
    ClosedError,
    JetstreamError,
    PeerClosedError,
    PeerDiedError,
    TimedOutError,
)
from jetstream.testing import RankPool
from jetstream.testing.plugin import Pools
from jetstream.transport import QPState, QueuePair
from jetstream.transport.queues import rq_commit, sq_commit

WAIT_S = 20.0
#: From the death of a rank to the completion in the others, and what a busy machine adds.
NOTICE_S = 10.0

progress = pytest.mark.parametrize(
    "env", [{}, {"JETSTREAM_PROGRESS": "thread"}], ids=("inline", "thread")
)


def wait_for_marks(folder: Path, count: int) -> None:
    end_s = time.monotonic() + WAIT_S
    while len(list(folder.iterdir())) < count:
        assert time.monotonic() < end_s
        time.sleep(0.01)


def run_death(comm: Communicator, what: str, marks: Path) -> tuple[list[Any], str]:
    """Rank 1 dies while the others wait for it; returns what they are told."""
    qp = QueuePair(comm)
    x, out = np.ones(30_000), np.zeros(30_000)
    launch, region = qp.prepare("all_reduce", x), qp.register(out)
    window = qp.window(comm.zeros(100))
    qp.post_launch(launch)
    qp.check(qp.wait(WAIT_S))
    comm.barrier()
    if comm.rank == 1:
        wait_for_marks(marks, 2)  # what is posted to a queue pair that has failed is flushed
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "launch":
        qp.post_launch(launch, 1)
    elif what == "receive":
        qp.post_receive(out, 1, wr_id=1)
    elif what == "receive from any":
        qp.post_receive(out, wr_id=1)
    elif what == "long send":
        for n in range(1, 64):  # more than there is room for on the way
            qp.post_send(out, 1, wr_id=n)
    (marks / str(comm.rank)).touch()
    if what == "signal":
        with pytest.raises(PeerDiedError, match="rank 1"):
            qp.wait_signal(0, 1, WAIT_S)
        qp.post_launch(launch, 1)
    first = qp.wait(WAIT_S)
    while first.is_ok:
        first = qp.wait(WAIT_S)
    with pytest.raises(PeerDiedError) as caught:
        qp.check(first)
    assert qp.state == QPState.ERROR and not window.is_closed
    region.close()
    qp.close()
    return list(first), str(caught.value)


@progress
@pytest.mark.parametrize("what", ["launch", "receive", "receive from any", "long send", "signal"])
def test_death(no_leaks: Any, tmp_path: Path, what: str, env: dict[str, str]) -> None:
    with RankPool(3, timeout_s=60, env=env) as pool:
        outcomes = pool.collect(run_death, what, tmp_path)
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.is_ok, outcome
        completion, text = outcome.value
        is_own = what in ("launch", "long send")  # receives are flushed, as in verbs
        assert completion[1] == ("JS_ERR_PEER_DEAD" if is_own else "JS_ERR_FLUSHED"), outcome.value
        assert "rank 1 (pid" in text and "died" in text


def run_notice(comm: Communicator, moments: Path) -> float:
    qp = QueuePair(comm)
    launch = qp.prepare("barrier")
    qp.post_launch(launch)
    qp.check(qp.wait(WAIT_S))
    if comm.rank == 1:
        wait_for_marks(moments, 1)
        time.sleep(0.3)
        (moments / "killed").write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGKILL)
    qp.post_launch(launch)
    (moments / "posted").touch()
    assert qp.wait(WAIT_S).status == "JS_ERR_PEER_DEAD"
    seen_s = time.monotonic()
    return seen_s - float((moments / "killed").read_text())


@progress
def test_notice(no_leaks: Any, tmp_path: Path, env: dict[str, str]) -> None:
    with RankPool(2, timeout_s=60, env=env) as pool:
        outcomes = pool.collect(run_notice, tmp_path)
    assert outcomes[0].is_ok, outcomes[0]
    assert outcomes[0].value < NOTICE_S


def is_stopped(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat[stat.rindex(")") + 2] == "T"


def run_stopped(comm: Communicator) -> None:
    """Rank 1 is stopped; the other waits, times out, waits on; then all goes on."""
    pids = comm.all_gather(np.array([os.getpid()]))
    qp = QueuePair(comm)
    x = np.ones(4)
    launch = qp.prepare("all_reduce", x)
    qp.post_launch(launch)
    qp.check(qp.wait(WAIT_S))
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        end_s = time.monotonic() + WAIT_S
        while not is_stopped(pids[1]):
            assert time.monotonic() < end_s
            time.sleep(0.01)
    x[:] = 1
    qp.post_launch(launch)
    if comm.rank == 0:
        with pytest.raises(TimedOutError, match=r"waiting for rank 1"):
            qp.wait(0.3)
        os.kill(pids[1], signal.SIGCONT)
    qp.check(qp.wait(WAIT_S))
    assert (x == 2).all()
    comm.barrier()
    qp.close()


@progress
def test_stopped(no_leaks: Any, env: dict[str, str]) -> None:
    with RankPool(2, timeout_s=60, env=env) as pool:
        pool.run(run_stopped)


def run_leave(comm: Communicator) -> str:
    """Who closes while others wait is named."""
    qp = QueuePair(comm)
    launch = qp.prepare("all_reduce", np.ones(3))
    qp.post_launch(launch)
    qp.check(qp.wait(WAIT_S))
    if comm.rank == 1:
        qp.close()
        comm.barrier()
        return ""
    qp.post_launch(launch)
    one = qp.wait(WAIT_S)
    with pytest.raises(PeerClosedError) as caught:
        qp.check(one)
    comm.barrier()
    qp.close()
    return str(caught.value)


@progress
def test_leave(rank_pools: Pools, env: dict[str, str]) -> None:
    assert "rank 1" in rank_pools(2, env=env).run(run_leave)[0]


def run_close_while_waiting(comm: Communicator) -> None:
    """Threads that wait, on completions and on signals, come out when it is closed."""
    qp = QueuePair(comm)
    told: list[str] = []

    def wait(number: int) -> None:
        try:
            if number:
                qp.wait_signal(number, 1, WAIT_S)
            else:
                qp.wait(WAIT_S)
        except ClosedError as error:
            told.append(str(error))

    threads = [threading.Thread(target=wait, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    began_s = time.monotonic()
    qp.close()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began_s < 10
    assert told == ["the queue pair is closed: make a new one"] * 3


@progress
def test_close_while_waiting(rank_pools: Pools, env: dict[str, str]) -> None:
    rank_pools(2, env=env).run(run_close_while_waiting)


def run_interrupt(comm: Communicator) -> None:
    """Ctrl-C ends a wait, and the queue pair goes on."""
    qp = QueuePair(comm)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            qp.wait(WAIT_S)
    finally:
        signal.signal(signal.SIGINT, before)
    qp.post_nop(3)
    assert qp.wait(WAIT_S).wr_id == 3
    comm.barrier()
    qp.close()


@progress
def test_interrupt(rank_pools: Pools, env: dict[str, str]) -> None:
    rank_pools(1, env=env).run(run_interrupt)


def run_nonsense(comm: Communicator, seed: int) -> None:
    """Random bytes in entries that are valid: an error at the most, no byte astray."""
    plan = random.Random(seed * 100 + comm.rank)
    guarded = np.zeros(4096, np.uint8)
    inbox = comm.zeros(4096, "uint8")
    for _ in range(15):
        qp = QueuePair(comm, depth=8)
        inner = guarded[1024:2048]
        region, window = qp.register(inner), qp.window(inbox[1024:2048])
        status = "JS_OK"
        for _ in range(40):
            control = qp.pointer.control
            ring, line, commit = qp.sq, control.sq_reserved, sq_commit
            if plan.random() < 0.2:
                ring, line, commit = qp.rq, control.rq_reserved, rq_commit
            index = int(line.index)
            entry = np.frombuffer(plan.randbytes(ring.itemsize), ring.dtype).copy()
            if ring is qp.sq:
                make_plausible(entry, plan, window.key(1 - comm.rank), inner.ctypes.data)
            line.index = (index + 1) % 2**32
            entry["commit"] = 0
            ring[index % 8] = entry[0]
            ring["commit"][index % 8] = commit(index, 8)
            one = qp.poll()
            status = one.status if one is not None else status
            if status != "JS_OK":
                break
        try:
            while True:
                qp.wait(0.05)
        except JetstreamError:
            pass
        comm.barrier()
        for memory in (guarded, inbox):
            assert not memory[:1024].any() and not memory[2048:].any()
        region.close()
        window.close()
        qp.close()


def make_plausible(
    entry: np.ndarray[Any, Any], plan: random.Random, key: int, address: int
) -> None:
    """Some fields hold what is right, or nearly."""
    for name, values in (
        ("opcode", [*range(8), lib.JS_SQ_PUT, lib.JS_SQ_SEND]),
        ("flags", [0, 1, 2, 3]),
        ("peer", [0, 1, 2]),
        ("key", [key, key ^ 1, 0, 1]),
        ("source_addr", [address, address + 1000, 0, 1]),
        ("target_addr", [0, 8, 1020, 2**64 - 8, address]),
        ("bytes", [0, 8, 24, 1024, 1025, 2**63]),
        ("signal", [0, 63, 64]),
        ("signal_op", [0, 1, 2, 3]),
    ):
        if plan.random() < 0.9:
            entry[name] = plan.choice(values)


@progress
@pytest.mark.parametrize("seed", range(3))
def test_nonsense(rank_pools: Pools, env: dict[str, str], seed: int) -> None:
    rank_pools(2, env=env).run(run_nonsense, seed)
