"""From a checked call to the data plane and back: plans, descriptors, waits, failures."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from jetstream._core.endpoint import Endpoint
from jetstream._core.native import AGAIN, ffi, lib
from jetstream._core.timeouts import Limit, timeout_to_ns
from jetstream.array_calls import (
    MISS,
    ArrayCalls,
    array_call,
    array_launch,
    byte_pointer,
    persistent_call,
)
from jetstream.arrays import Array, share_contiguous
from jetstream.collectives import Splits
from jetstream.config import Config
from jetstream.diagnosis import describe_call, describe_wait
from jetstream.dtypes import Kind, RedOp, check_redop, dtype_of, redop_of
from jetstream.errors import JetstreamError, TimedOutError
from jetstream.message_launcher import MessageLauncher
from jetstream.plans import Plan, PlanCache
from jetstream.work import Work

__all__ = ["Launcher"]

_CLOSE_DRAIN_S = 10.0
_call = lib.js_comm_call
#: By a call that was remembered. INVALID: another thread has made room for other plans.
_UNKNOWN = (MISS, lib.JS_ERR_INVALID)


class Launcher(MessageLauncher):
    """Posts operations of one communicator and waits for them."""

    is_fixed = False  # calls happen at once: they may copy what they are given
    share_input = staticmethod(share_contiguous)

    def __init__(self, endpoint: Endpoint, rank: int, size: int, config: Config) -> None:
        self._array_calls = ArrayCalls()
        self.tables = self._array_calls.tables
        self.barrier_call: Any = None  # a js_persistent *, once there has been one
        self._barrier_plan: Plan | None = None
        self.undisposed: list[Any] = []  # graphs that nobody holds but a device may still run
        self.mail = self._array_calls.mail
        super().__init__(endpoint, config.timeout_s)
        self.mail.comm = endpoint.handle
        endpoint.on_handle.append(self._array_calls.set_handle)
        this = weakref.proxy(self)  # no cycle: it goes when it is dropped
        self.plans = PlanCache(
            partial(Launcher.handle, this),
            rank,
            size,
            config=config,
            fail=partial(Launcher.fail, this),
            hosts=endpoint.hosts,
        )
        self.plans.on_unload.append(self._array_calls.clear)
        self._found = self.plans.found

    def _set_timeout(self, timeout_ns: int) -> None:
        self._array_calls.set_timeout(timeout_ns)
        if self.barrier_call is not None:
            self.barrier_call.timeout_ns = timeout_ns

    def set_captured(self, is_captured: bool) -> None:
        """Meanwhile nothing that was prepared or remembered can be launched."""
        self.is_captured = is_captured
        self._array_calls.is_captured = is_captured
        self._endpoint.tell()

    # --- collectives ---------------------------------------------------------------------------

    def plan(
        self,
        kind: Kind,
        dtype: Any,
        count: int,
        *,
        op: str | RedOp = "sum",
        root: int = 0,
        algo: str | None = None,
        chunk_bytes: int | None = None,
        counts: tuple[int, ...] = (),
        splits: Splits | None = None,
    ) -> Plan:
        """The plan of a call; compiled and loaded at its first use.

        ``counts``, in elements, where the ranks' parts differ, ``splits`` where each rank has its
        own; ``count`` is then the sum of the counts, and zero.
        """
        is_unequal = counts != () or splits is not None
        key = (kind, dtype, count, op, root, algo, chunk_bytes)
        if not is_unequal:
            try:
                plan = self._found.get(key)
            except TypeError:  # an argument that is no key, and wrong: what follows says which
                plan = None
            if plan is not None:
                return plan
        self.handle()  # in the child of a fork that lock may be another thread's for ever
        with self.plans.lock:
            return self._load(key, counts, splits)

    def _load(self, key: Any, counts: tuple[int, ...], splits: Splits | None) -> Plan:
        """A plan that may not be loaded. The lock is held."""
        kind, dtype, count, op, root, algo, chunk_bytes = key
        is_unequal = counts != () or splits is not None
        full_key = (key, counts, splits)
        try:
            plan = self.plans.find_unequal(full_key) if is_unequal else self._found.get(key)
        except TypeError:
            plan = None
        if plan is None:
            self.handle()
            element, redop = dtype_of(dtype), redop_of(op)
            check_redop(element, redop)
            call = self.plans.call(
                kind,
                element,
                count,
                redop=redop,
                root=root,
                algo=algo,
                chunk_bytes=chunk_bytes,
                counts=counts,
                has_splits=splits is not None,
            )
            if is_unequal:
                plan = self.plans.load_unequal(full_key, call, splits)
            else:
                plan = self._found[key] = self.plans.load(call)
        return plan

    def repeat(self, key: Hashable, source: Any, target: Any) -> bool:
        """Carry out a call whose like has been remembered: the short path of most calls.

        False: nothing was done, and nothing is known about the arguments.
        """
        try:
            table = self.tables.get(key)
        except TypeError:  # no key: what is wrong with it, the long way finds
            return False
        if table is None:
            return False
        try:
            status = array_call(table, id(source), id(target))
            return status == 0 or self.resume(status)
        except BaseException as error:
            self.interrupt(error)
            raise

    def repeat_start(self, key: Hashable, source: Any, target: Any, what: str) -> Work | None:
        """``repeat`` without waiting; None: nothing was done."""
        try:
            table = self.tables.get(key)
        except TypeError:
            return None
        if table is None:
            return None
        self.let_go()
        out = ffi.new("uint64_t *")
        status = array_launch(table, id(source), id(target), out)
        if status in _UNKNOWN or self.was_turned_away(status):
            return None
        if status < 0:
            self.fail(status)
        return self.track(out[0], what, (source, target), target)

    def resume(self, status: int) -> bool:
        """What a remembered call still needs that was not complete at once.

        False: it was not carried out.
        """
        if status in _UNKNOWN or self.was_turned_away(status):
            return False
        self.run_on(status, self._timeout_ns)
        return True

    def remember(self, key: Hashable, source: Any, target: Any, plan: Plan, itemsize: int) -> None:
        """From now on ``repeat`` knows calls with what callers pass like these."""
        handle = self.handle()
        with self.plans.lock:  # nobody unloads the plan, and then forgets what was remembered
            self._array_calls.remember(
                key, source, target,
                plan=plan.id, itemsize=itemsize, handle=handle, timeout_ns=self._timeout_ns,
            )  # fmt: skip
        self._endpoint.check_told(handle)

    def prepare(
        self, plan: Plan, arrays: tuple[Array, Array], timeout: float | None
    ) -> tuple[Any, Any]:
        """A ``js_persistent *``, and buffers that must live as long, as must the plan."""
        call = ffi.new("js_persistent *")
        buffers = byte_pointer(arrays[0]), byte_pointer(arrays[1])
        call.comm = self.handle()
        call.input, call.output = buffers
        call.timeout_ns = timeout_to_ns(timeout, self.timeout)
        call.plan_id = plan.id
        self.watch(call)
        return call, buffers

    def watch(self, call: Any) -> None:
        """Have a ``js_persistent *`` with this communicator, which may close."""
        self._array_calls.watch(call)
        self._endpoint.check_told(call.comm)

    def prepare_barrier(self, plan: Plan, nothing: Array) -> None:
        """From now on a barrier needs no plan to be found."""
        with self.plans.lock:
            if self.barrier_call is None:
                self._barrier_plan = plan
                self.barrier_call, _ = self.prepare(plan, (nothing, nothing), None)

    def run(
        self, plan: Plan, source: Array, target: Array, result: Any, timeout: float | None
    ) -> Any:
        """Launch and wait. A timeout or an interrupt makes the communicator unusable."""
        timeout_ns = timeout_to_ns(timeout, self.timeout)
        inputs, outputs = byte_pointer(source), byte_pointer(target)
        arguments = plan.id, inputs, outputs, timeout_ns
        handle = self.handle()
        try:
            status = _call(handle, *arguments)
            if status != 0:
                status = self.insist(status, lambda: _call(self.handle(), *arguments), timeout_ns)
                self.run_on(status, timeout_ns)
        except BaseException as error:
            self.interrupt(error)
            raise
        return result

    def finish(self, call: Any, status: int) -> None:
        """What a launch of a ``js_persistent *`` still needs that was not complete at once."""
        self.require_live("what was prepared before")
        status = self.insist(status, lambda: persistent_call(call), call.timeout_ns)
        self.run_on(status, call.timeout_ns)

    def interrupt(self, error: BaseException) -> None:
        """After Ctrl-C in the middle of a call: the peers must not wait for this rank."""
        if isinstance(error, JetstreamError):  # the call has come to its end
            return
        handle = self._endpoint.handle
        if handle == ffi.NULL:
            return
        if lib.js_comm_wait(handle, 0, 0, ffi.new("js_cqe *")) == AGAIN:
            lib.js_comm_abort(handle, lib.JS_ERR_ABORTED)

    def run_on(self, status: int, timeout_ns: int, what: str = "") -> None:
        """The slow continuation of a call: long waits, signals, failures."""
        cqe, limit = ffi.new("js_cqe *"), Limit(timeout_ns)
        while status == AGAIN:  # meanwhile another thread may have closed what has failed
            if limit.is_over():
                status = lib.JS_ERR_TIMEOUT
                break
            status = lib.js_comm_wait(self.handle(), 0, timeout_ns, cqe)
            if status == lib.JS_OK:
                status = cqe.status
        if status == lib.JS_ERR_TIMEOUT:
            self._time_out(timeout_ns, what)
        if status < 0:
            self.fail(status)

    def _time_out(self, timeout_ns: int, what: str) -> None:
        handle = self.handle()
        fault = ffi.new("js_fault *")
        lib.js_comm_fault(handle, fault)
        if fault.status != lib.JS_OK:  # an earlier call has timed out
            self.fail(lib.JS_ERR_TIMEOUT)
        story = describe_wait(fault)
        what = what or f"{describe_call(fault.my_call)} #{fault.my_sequence}"
        lib.js_comm_abort(handle, lib.JS_ERR_TIMEOUT)
        raise TimedOutError(
            f"{what} timed out after {timeout_ns / 1e9:g} s, {story}. "
            "The communicator cannot be used any more: close it and make a new one.",
            status="JS_ERR_TIMEOUT",
        )

    def start(
        self,
        plan: Plan,
        source: Array,
        target: Array,
        result: Any,
        what: str,
        finish: Callable[[int], Any] | None = None,
    ) -> Work:
        """Launch without waiting; ``finish`` as a Work's."""
        inputs, outputs = byte_pointer(source), byte_pointer(target)
        wr_id = self.post(lib.js_comm_launch, plan.id, inputs, outputs)
        return self.track(wr_id, what, (source, target, inputs, outputs), result, finish)

    # --- ending --------------------------------------------------------------------------------

    def close(self) -> None:
        """Let sends in flight go out, then leave."""
        if self._endpoint.is_forked or self._endpoint.settled_handle() == ffi.NULL:
            return
        try:
            for work in list(self._outstanding.values()):
                if work.what.startswith("send"):
                    # What failed has been raised before, or will be where it is waited for.
                    work.settle(timeout_to_ns(min(self.timeout, _CLOSE_DRAIN_S), 0.0))
        finally:
            self._endpoint.close()
            self._outstanding.clear()  # not before nobody writes into its buffers any more
