"""What another thread may do between two steps of a call: unload plans, post and collect.

Where it can be, the other thread's deed is put in its place by hand, so that it happens every time.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream import launcher, plans
from jetstream._core.native import AGAIN, FULL, ffi, lib
from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, TimedOutError
from jetstream.testing.plugin import Pools
from jetstream.work import Work
from tests.e2e.beside import WAIT_S, Lib, running

# --- plans ---------------------------------------------------------------------------------------


def call_all(comm: Communicator) -> None:
    """Every way from a call to a plan."""
    size, rank = comm.size, comm.rank
    for _ in range(3):
        assert (comm.all_reduce(np.ones(8)) == size).all()
        assert (comm.all_reduce(np.ones(8), timeout=WAIT_S) == size).all()
        assert (comm.all_reduce(np.ones(8), async_op=True).wait(WAIT_S) == size).all()
        assert comm.all_gather(np.full(1, rank)).tolist() == list(range(size))
        counts = [r + 2 for r in range(size)]
        gathered = comm.all_gather(np.full(counts[rank], rank), counts=counts)
        assert gathered.tolist() == np.repeat(np.arange(size), counts).tolist()
        sent = [2] * size
        x = np.full(2 * size, rank)
        exchanged = comm.all_to_all(x, input_splits=sent, output_splits=sent)
        assert exchanged.tolist() == np.repeat(np.arange(size), 2).tolist()
        comm.barrier()
    step = comm.persistent("all_reduce", np.ones(4))
    with comm.capture() as graph:
        comm.all_reduce(x := np.ones(5))
    for n in range(1, 4):
        assert (step() == size**n).all()
        graph()
        assert (x == size**n).all()
    assert (step.start().wait(WAIT_S) == size**4).all()


def run_pushed_out_at_once(comm: Communicator) -> None:
    launcher = comm._launcher
    find = launcher.plan

    def find_and_push(*arguments: Any, **options: Any) -> plans.Plan:
        found = find(*arguments, **options)
        launcher.plans.make_room()  # as another thread would
        return found

    launcher.plan = find_and_push  # type: ignore[method-assign]
    try:
        call_all(comm)
    finally:
        del launcher.plan  # type: ignore[method-assign]
    gc.collect()
    launcher.plans.make_room()
    held = 1  # that of the barrier
    assert len(launcher.plans._equal) == held and not launcher.plans._unequal


def run_pushed_out_all_the_time(comm: Communicator) -> None:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with running(comm._launcher.plans.make_room):
            for _ in range(20):
                call_all(comm)
    finally:
        sys.setswitchinterval(interval_s)


@pytest.mark.parametrize("run", [run_pushed_out_at_once, run_pushed_out_all_the_time])
def test_plans_unloaded_by_another_thread(rank_pools: Pools, run: Any) -> None:
    rank_pools(2).run(run, timeout_s=120)


def test_memory_of_plans_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with jetstream.init() as comm:
        cache = comm._launcher.plans
        monkeypatch.setattr(plans, "scratch_bytes", lambda code: plans.SCRATCH_BYTES_MAX // 4)
        for count in range(1, 40):
            comm.all_reduce(np.ones(count))
            assert cache._scratch_bytes <= plans.SCRATCH_BYTES_MAX
            assert len(cache._equal) <= 4 and len(cache.found) <= 4
        steps = [comm.persistent("all_reduce", np.ones(count)) for count in range(1, 9)]
        for step in steps:  # more than that, but all of it in use
            step()


# --- the table of what is in flight --------------------------------------------------------------


def run_old_receive(comm: Communicator) -> None:
    """A rank that has closed, though a receive names it, disturbs nobody who posts."""
    others = comm.dup()
    if comm.rank == 2:
        others.close()
    comm.barrier()
    if comm.rank == 2:
        return
    peer = 1 - comm.rank
    old = others.irecv(np.empty(1), 2)
    end_s = time.monotonic() + 0.2
    is_over = False
    while not is_over:
        is_over = comm.rank == 0 and time.monotonic() > end_s
        sent = others.isend(np.full(1, is_over), peer)
        others.recv(flag := np.empty(1, bool), peer)
        sent.wait(WAIT_S)
        is_over = bool(flag[0]) if comm.rank == 1 else is_over
    assert not old.is_done


def test_posting_asks_after_no_peer(rank_pools: Pools) -> None:
    rank_pools(3).run(run_old_receive)


def test_completion_is_kept_when_a_signal_comes() -> None:
    with jetstream.init() as comm:
        comm.isend(np.full(1, 5), 0)
        work = comm.irecv(y := np.zeros(1, np.int64), 0)

        def interrupted(*arguments: Any) -> int:
            while lib.js_comm_wait(*arguments) != lib.JS_OK:
                pass
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work.settle(10**9, interrupted)
        assert work.is_done and work.wait() is y and y[0] == 5 and work.nbytes == 8
        assert work.wr_id not in comm._launcher._outstanding


def test_lost_completion_fails_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with jetstream.init() as comm:
        lost = [comm.all_reduce(np.ones(1), async_op=True)]
        lost += [comm.irecv(np.empty(1), 0) for _ in range(30)]
        cqe = ffi.new("js_cqe *")
        for _ in lost[1:]:
            comm.send(np.ones(1), 0)
        for work in lost:
            status = lib.js_comm_wait(comm._launcher.handle(), work.wr_id, 0, cqe)
            assert work.is_done or status == lib.JS_OK
        monkeypatch.setattr(Work, "_is_completed_elsewhere", lambda _work: 1 / 0)
        assert comm.all_reduce(np.ones(2), async_op=True).wait(WAIT_S).tolist() == [1, 1]
        comm.isend(np.ones(1), 0)
        comm.recv(np.empty(1), 0)
        assert not {work.wr_id for work in lost} & set(comm._launcher._outstanding)
        monkeypatch.setattr(Work, "_is_completed_elsewhere", lambda _work: False)
        with pytest.raises(ArgumentError, match="not outstanding"):
            lost[-1].wait()


class Changing(dict[int, Work]):
    """A table that another thread changes whenever this one has begun to look at it."""

    changes = 3

    def values(self) -> Any:
        iterator = iter(list(super().values())) if self.changes == 0 else iter(super().values())
        if self.changes > 0:
            self.changes -= 1
            self[-self.changes - 1] = self[min(self)]
        return iterator


def test_table_that_changes_while_it_is_looked_at() -> None:
    with jetstream.init() as comm:
        pending = comm.irecv(np.empty(1), 0, 7)
        table = comm._launcher._outstanding = Changing({pending.wr_id: pending})
        comm.isend(np.ones(1), 0)
        assert table.changes == 0
        comm.recv(np.empty(1), 0)


def test_waits_end_though_their_begin_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data plane forgets when a wait began if nobody goes on with it for long."""
    comm = jetstream.init()
    pending = comm.irecv(np.empty(1), 0, 7)
    begun = itertools.count()

    def forget(*_call: Any) -> int:
        assert next(begun) < 100
        return AGAIN

    assert not pending.advance(1, forget)

    class Forgetful(Lib):
        js_comm_wait = staticmethod(forget)

    monkeypatch.setattr(launcher, "lib", Forgetful())
    with pytest.raises(TimedOutError):
        comm._launcher.run_on(AGAIN, 1)
    comm.close()


def test_queue_that_was_full_for_a_moment() -> None:
    """Another thread has collected all that there was."""
    with jetstream.init() as comm:
        launcher = comm._launcher
        answers = iter((FULL, lib.JS_OK))
        assert launcher.post(lambda _comm, _out: next(answers)) == 0
        with pytest.raises(ArgumentError, match="other code"):
            launcher.post(lambda _comm, _out: FULL)


def run_crowd(comm: Communicator) -> None:
    """Threads that post more than there is room for, and wait for none of it."""
    peer, tags = (comm.rank + 1) % comm.size, itertools.count()

    def flood() -> None:
        tag = next(tags)
        for n in range(700):
            comm.isend(np.full(2, n), peer, tag)

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(700):
        for tag in range(3):
            y = comm.recv(np.empty(2, np.int64), (comm.rank - 1) % comm.size, tag)
            assert y.tolist() == [n, n]
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    comm.barrier()


def test_crowd(rank_pools: Pools) -> None:
    rank_pools(2).run(run_crowd, timeout_s=120)


def test_arrays_of_dropped_operations_go() -> None:
    """Nobody asks after an operation that is complete: the next one has its array freed."""
    with jetstream.init() as comm:
        posts: list[Callable[[Any], Any]] = [
            lambda x: comm.all_reduce(x, async_op=True),  # the long way, then the short one
            lambda x: comm.all_reduce(x, async_op=True),
            lambda x: comm.isend(x, 0),
            lambda x: comm.all_gather(x, async_op=True),
        ]
        for post in posts:
            x = np.ones(3)
            gone = weakref.ref(x)
            post(x)
            del x
            if comm.iprobe() is not None:
                comm.recv(np.empty(3))
            comm.barrier(async_op=True)
            assert gone() is None, post
        comm.irecv(np.empty(3), 0, 9)  # behind what nobody answers
        arrays = [np.ones(3) for _ in range(200)]
        left = [weakref.ref(x) for x in arrays]
        while arrays:
            comm.all_reduce(arrays.pop(), async_op=True)
        assert sum(x() is not None for x in left) < 64
        assert len(comm._launcher._outstanding) < 64
