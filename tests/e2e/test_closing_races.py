"""Closing a communicator while other threads call: nothing, or ClosedError; nothing in between.

Where it can be, the other thread's deed is put in its place by hand, so that it happens every time.
"""

from __future__ import annotations

import functools
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import jetstream
from jetstream import array_calls, plans, progress
from jetstream._core import endpoint
from jetstream._core.native import ffi, lib
from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError, BusyError, ClosedError
from jetstream.transport import QPState, QueuePair
from jetstream.work import Work
from tests.e2e.beside import WAIT_S, BusyLib, Lib, running


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


def test_noted_down_while_another_thread_tries_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied while nothing has a handle gets it back with everything else."""
    with jetstream.init() as comm:
        calls, handle = comm._launcher._array_calls, comm._endpoint.handle
        remember = calls.remember

        class FailedLib(Lib):
            def js_array_remember(self, *arguments: Any) -> int:
                calls.set_handle(handle)
                return int(lib.js_array_remember(*arguments))

        def remember_meanwhile(*arguments: Any, **options: Any) -> None:
            calls.set_handle(ffi.NULL)
            remember(*arguments, **options)

        comm.all_reduce(np.ones(4))
        with monkeypatch.context() as patch:
            patch.setattr(calls, "remember", remember_meanwhile)
            patch.setattr(array_calls, "lib", FailedLib())
            comm.all_reduce(np.ones(8))
        assert [table.comm for table in calls.tables.values()] == [handle] * len(calls.tables)


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


class NoLib(Lib):
    """A data plane without the communicator, which is gone with its memory."""

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


class SlowBusyLib(Lib):
    """One that takes its time to say that it cannot be."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def js_comm_close(self, comm: Any) -> int:
        self.has_begun.set()
        self.may_end.wait(WAIT_S)
        return int(lib.JS_ERR_BUSY)

    js_qp_close = js_comm_close


def test_who_closes_too_waits_for_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it may not be closed, nothing is given back, and nobody is told that it is."""
    comm = jetstream.init()
    qp = QueuePair(comm)
    regions = [qp.register(np.zeros(8)) for _ in range(2)]

    def run(*late: Callable[[], Any]) -> list[Exception | None]:
        slow = SlowBusyLib()
        with monkeypatch.context() as patch, ThreadPoolExecutor(1 + len(late)) as pool:
            patch.setattr(endpoint, "lib", slow)
            first = pool.submit(late[0])
            assert slow.has_begun.wait(WAIT_S)
            others = [pool.submit(one) for one in late[1:]]
            time.sleep(0.05)  # what does not wait would be done by then
            assert not any(one.done() for one in others)
            slow.may_end.set()
            return [one.exception(WAIT_S) for one in (first, *others)]

    errors = run(qp.close, qp.close, lambda: qp.state)
    assert [type(error) for error in errors] == [BusyError, BusyError, type(None)]
    assert qp.state == QPState.READY
    assert not any(region.is_closed for region in regions)
    errors = run(qp.close, regions[0].close)
    assert [type(error) for error in errors] == [BusyError, type(None)]
    assert lib.js_qp_deregister(qp._endpoint.queue, regions[0].native) != lib.JS_OK  # it was done
    assert run(comm.close, comm.close)[1] is not None
    qp.close()
    comm.close()


def test_closed_before_the_engine_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = jetstream.init()
    choose_core = progress.choose_core

    def close_and_choose(*arguments: Any) -> int:
        comm.close()
        return choose_core(*arguments)

    monkeypatch.setattr(progress, "choose_core", close_and_choose)
    with pytest.raises(ClosedError):
        comm.start_progress()


def test_failed_close_ends_no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = jetstream.init()
    step, x = comm.persistent("all_reduce", np.ones(4)), np.ones(8)
    comm.all_reduce(x)
    step()

    def refused(call: Callable[[], Any]) -> bool:
        with ThreadPoolExecutor(1) as pool:
            return isinstance(pool.submit(call).exception(WAIT_S), (ArgumentError, BusyError))

    with comm.capture(), monkeypatch.context() as patch:
        patch.setattr(endpoint, "lib", BusyLib())
        with pytest.raises(BusyError):
            comm._endpoint.close()
        assert refused(step)
    step()
    comm.all_reduce(x)
    comm.close()


def test_memory_goes_with_a_cycle_of_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the collector comes to the engine before it comes to its communicator."""
    freed: list[str] = []

    class CountingLib(Lib):
        def js_engine_free(self, engine: Any) -> None:
            freed.append("engine")
            lib.js_engine_free(engine)

        def js_comm_free(self, comm: Any) -> None:
            freed.append("communicator")
            lib.js_comm_free(comm)

    gc.collect()
    monkeypatch.setattr(endpoint, "lib", CountingLib())
    comm = jetstream.init()
    work = comm.irecv(np.empty(1), 0, 7)
    del comm, work
    gc.collect()
    assert sorted(freed) == ["communicator", "engine"]
