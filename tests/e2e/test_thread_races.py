"""What another thread may do between two steps of a call: unload plans, try to close.

Where it can be, the other thread's deed is put in its place by hand, so that it happens every time.
"""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream import launcher, plans
from jetstream._core import endpoint
from jetstream._core.native import AGAIN, FULL, ffi, lib
from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, BusyError, ClosedError, TimedOutError
from jetstream.testing.plugin import Pools
from jetstream.work import Work

WAIT_S = 30.0


@contextmanager
def running(*bodies: Callable[[], Any]) -> Iterator[None]:
    """Each of the bodies again and again, in a thread of its own; their exceptions are raised."""
    is_over = threading.Event()
    errors: list[BaseException] = []

    def repeat(body: Callable[[], Any]) -> None:
        try:
            while not is_over.is_set():
                body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(WAIT_S)
    frames = sys._current_frames()
    stuck = [
        "".join(traceback.format_stack(frames[thread.ident]))
        for thread in threads
        if thread.is_alive() and thread.ident in frames
    ]
    assert not stuck, "\n".join([*stuck, *map(repr, errors)])
    for error in errors:
        raise error


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


# --- closing -------------------------------------------------------------------------------------


class BusyLib:
    """A data plane in which another thread is always inside a call when one wants to close."""

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def js_comm_close(self, comm: Any) -> int:
        time.sleep(0.002)  # in which others may look at the handle
        return int(lib.JS_ERR_BUSY)


def test_close_that_cannot_be_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = jetstream.init()
    step, x = comm.persistent("all_reduce", np.ones(4)), np.ones(4)
    with comm.capture() as graph:
        comm.all_reduce(np.ones(4))
    pending = comm.irecv(np.empty(1), 0, 7)

    def talk() -> None:
        receive = comm.irecv(y := np.empty(2), 0, 1)
        comm.send(np.ones(2), 0, 1)
        receive.wait(WAIT_S)
        assert y.tolist() == [1, 1]
        comm.isend(y, 0, 2)
        comm.recv(y, 0, 2)

    bodies = (
        pending.done,
        lambda: comm.all_reduce(x),
        lambda: comm.all_reduce(x, timeout=WAIT_S),
        lambda: comm.all_reduce(x, async_op=True).wait(WAIT_S),
        *(step, graph, comm.barrier, talk, lambda: comm.counters()),
    )
    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "lib", BusyLib())
        with running(*bodies):
            for _ in range(60):
                with pytest.raises(BusyError):
                    comm.close()
    assert not pending.done()
    comm.close()
    for body in bodies:
        with pytest.raises(ClosedError):
            body()


@pytest.mark.parametrize("is_call", [True, False])
def test_closed_while_a_call_is_noted_down(is_call: bool) -> None:
    """What has been written down just afterwards does not lead to memory that is gone."""
    comm = jetstream.init()
    calls = comm._launcher._array_calls
    name = "remember" if is_call else "watch"
    note = getattr(calls, name)

    def close_and_note(*arguments: Any, **options: Any) -> None:
        comm.close()
        note(*arguments, **options)

    setattr(calls, name, close_and_note)
    x = np.ones(4)
    if is_call:
        for _ in range(3):
            with pytest.raises(ClosedError):
                comm.all_reduce(x)
        assert all(table.comm == ffi.NULL for table in calls.tables.values())
    else:
        step = comm.persistent("all_reduce", x)
        with pytest.raises(ClosedError):
            step()


def test_closed_while_a_plan_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = jetstream.init()
    comm.all_reduce(np.ones(3))
    compile_plan = plans.compile_plan

    def close_and_compile(*arguments: Any, **options: Any) -> bytes:
        comm.close()
        return compile_plan(*arguments, **options)

    monkeypatch.setattr(plans, "compile_plan", close_and_compile)
    monkeypatch.setattr(plans, "lib", NoLib())
    with pytest.raises(ClosedError):
        comm.all_reduce(np.ones(4))
    comm._launcher.plans.make_room()


class NoLib:
    """A data plane without the communicator, which is gone with its memory."""

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def js_comm_load_plan(self, *call: Any) -> int:
        raise AssertionError(call)

    js_comm_unload_plan = js_comm_load_plan


def test_closed_while_calls_are_prepared() -> None:
    class Crossed(weakref.WeakSet[Any]):
        """While one thread goes through it, another one wants to add something."""

        def __iter__(self) -> Iterator[Any]:
            late = ffi.new("js_persistent *")
            thread = threading.Thread(target=calls.watch, args=(late,), daemon=True)
            for n, call in enumerate(super().__iter__()):
                if n == 0:
                    thread.start()
                    thread.join(0.05)
                yield call
            self.thread = thread, late

    with jetstream.init() as comm:
        calls = comm._launcher._array_calls
        kept = [ffi.new("js_persistent *") for _ in range(3)]
        calls._persistent = crossed = Crossed(kept)
        calls.set_handle(comm._endpoint.handle)
        thread, late = crossed.thread
        thread.join(WAIT_S)
        assert not thread.is_alive() and late in crossed
        assert all(call.comm == comm._endpoint.handle for call in kept)
        calls._persistent = weakref.WeakSet(kept)


def test_closed_before_a_call_arrives() -> None:
    """A handle that a thread has in its hand leads to memory that is there, and says what is."""
    comm = jetstream.init()
    pending = comm.irecv(np.empty(1), 0, 7)
    plan = comm._launcher.plan(plans.Kind.ALL_REDUCE, np.dtype("f4"), 4)
    x, cqe, out = np.ones(4, "f4"), ffi.new("js_cqe *"), ffi.new("uint64_t *")
    pointer = ffi.from_buffer(x)
    end = comm._endpoint
    handle = end.handle
    comm.close()
    for late in (
        lambda: lib.js_comm_call(handle, plan.id, pointer, pointer, 1),
        lambda: lib.js_comm_launch(handle, plan.id, pointer, pointer, out),
        lambda: lib.js_comm_wait(handle, pending.wr_id, 0, cqe),
        lambda: lib.js_comm_wait(handle, pending.wr_id, 2**63, cqe),
        lambda: lib.js_comm_watch(handle, pending.wr_id, 2**63, cqe),
    ):
        assert late() == lib.JS_ERR_CLOSED
    for look in (comm.records, comm.counters, lambda: comm.last_op, lambda: comm.heap):
        with pytest.raises(ClosedError):
            look()
    with pytest.raises(ClosedError), end.held():
        pass


@pytest.mark.parametrize("name", ["all_reduce", "done", "counters", "empty", "dup", "abort"])
def test_closed_while_others_call(name: str) -> None:
    """Threads that call until they are told that it is closed; the last reference goes first."""

    def call_on(comm: Communicator, x: Any, pending: Work) -> None:
        with pytest.raises(ClosedError):
            body: Callable[[], Any] = {
                "all_reduce": lambda: comm.all_reduce(x, async_op=True).wait(WAIT_S),
                "done": pending.done,
                "counters": lambda: (comm.counters(), comm.records(), comm.last_op),
                "empty": lambda: comm.empty(100),
                "dup": lambda: comm.dup().close(),
                "abort": lambda: (comm.abort(), comm.counters()),
            }[name]
            for _ in itertools.repeat(None):
                body()

    for _ in range(15):
        comm = jetstream.init()
        receive = comm.irecv(np.empty(1), 0, 7)
        call = functools.partial(call_on, comm, np.ones(4), receive)
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(call) for _ in range(2)]
            del call, receive
            deadline_s = time.monotonic() + WAIT_S
            is_closed = False
            while not is_closed and time.monotonic() < deadline_s:
                with suppress(BusyError):
                    comm.close()
                    is_closed = True
            del comm
            for future in futures:
                future.result(WAIT_S)
        assert is_closed


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

    class Forgetful(BusyLib):
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
