"""From a checked call to the data plane and back: plans, descriptors, waits, failures."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from jetstream._core.endpoint import Endpoint
from jetstream._core.native import AGAIN, FULL, check, ffi, lib
from jetstream._core.timeouts import timeout_to_ns
from jetstream.array_calls import MISS, SHORT, ArrayCalls, array_call, array_launch, byte_pointer
from jetstream.arrays import Array, share_contiguous
from jetstream.collectives import Splits
from jetstream.config import Config
from jetstream.diagnosis import describe_call, describe_sender, describe_wait, raise_failure
from jetstream.dtypes import Kind, RedOp, check_redop, dtype_of, redop_of
from jetstream.errors import ArgumentError, ClosedError, JetstreamError, TimedOutError
from jetstream.plans import PlanCache
from jetstream.work import Arrival, Message, Work

__all__ = ["ANY_SOURCE", "Launcher"]

#: Statuses that are about one call and leave the communicator intact.
_CALLER_ERRORS = frozenset(
    (lib.JS_ERR_BUSY, lib.JS_ERR_INVALID, lib.JS_ERR_FULL, lib.JS_ERR_OPCODE)
)
_CLOSE_DRAIN_S = 10.0
_from_buffer = ffi.from_buffer
_call = lib.js_comm_call
_send_wait = lib.js_comm_send_wait
_receive_wait = lib.js_comm_receive_wait
_TAG_ANY: int = lib.JS_RQ_TAG_ANY
_PROBE: int = lib.JS_RQ_PROBE
_UNFINISHED = (AGAIN, lib.JS_ERR_TIMEOUT)
_RECEIVED = (lib.JS_OK, SHORT, lib.JS_ERR_TRUNCATED)
#: As a source: whoever sends.
ANY_SOURCE: int = lib.JS_PEER_ANY


class Launcher:
    """Posts operations of one communicator and waits for them."""

    is_fixed = False  # calls happen at once: they may copy what they are given
    share_input = staticmethod(share_contiguous)

    def __init__(self, endpoint: Endpoint, rank: int, size: int, config: Config) -> None:
        self._array_calls = ArrayCalls()
        self.tables = self._array_calls.tables
        self.barrier_call: Any = None  # a js_persistent *, once there has been one
        self.timeout = config.timeout_s
        self.is_captured = False  # a graph is being made of the communicator's calls
        self.undisposed: list[Any] = []  # graphs that nobody holds but a device may still run
        self._endpoint = endpoint
        self.mail = self._array_calls.mail
        self.mail.comm = endpoint.handle
        endpoint.on_handle.append(self._array_calls.set_handle)
        self.watch = self._array_calls.watch
        fail = partial(Launcher.fail, weakref.proxy(self))  # no cycle: it goes when it is dropped
        self.plans = PlanCache(endpoint.handle, rank, size, config=config, fail=fail)
        self._found: dict[Any, int] = {}
        self._outstanding: dict[int, Work] = {}
        self._cqe = ffi.addressof(self.mail, "cqe")  # of messages waited for at once

    @property
    def timeout(self) -> float:
        """Default timeout of every wait in seconds."""
        return self._timeout_s

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout_ns = timeout_to_ns(seconds, seconds)
        self._timeout_s = seconds
        self._array_calls.set_timeout(self._timeout_ns)
        if self.barrier_call is not None:
            self.barrier_call.timeout_ns = self._timeout_ns

    # --- what Work needs -----------------------------------------------------------------------

    def handle(self) -> Any:
        """The cffi pointer ``js_comm *``; raises ClosedError, ForkedError."""
        handle = self._endpoint.handle
        if handle == ffi.NULL:
            raise ClosedError("the communicator is closed", status="JS_ERR_CLOSED")
        if self._endpoint.is_forked:
            raise_failure(handle, lib.JS_ERR_FORKED)
        return handle

    def require_live(self, what: str) -> None:
        """Raise ArgumentError while calls are captured: ``what`` cannot be."""
        if self.is_captured:
            raise ArgumentError(f"{what} cannot be captured: move it out of the block")

    def set_captured(self, is_captured: bool) -> None:
        """Meanwhile nothing that was prepared or remembered can be launched."""
        self.is_captured = is_captured
        self._array_calls.set_handle(ffi.NULL if is_captured else self._endpoint.handle)

    def fail(self, status: int) -> None:
        """Raise what a negative status of an operation means."""
        if status in _CALLER_ERRORS:
            check(status)
        raise_failure(self.handle(), status)

    def forget(self, wr_id: int) -> None:
        """An operation is complete: its buffers need not be kept alive any more."""
        self._outstanding.pop(wr_id, None)

    def waiting_text(self) -> str:
        """What this rank waits for at this moment."""
        fault = ffi.new("js_fault *")
        lib.js_comm_fault(self.handle(), fault)
        return describe_wait(fault)

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
    ) -> int:
        """The id of the plan of a call; compiled and loaded at its first use.

        ``counts``, in elements, where the ranks' parts differ, ``splits`` where each rank has its
        own; ``count`` is then the sum of the counts, and zero.
        """
        is_unequal = counts != () or splits is not None
        key = (kind, dtype, count, op, root, algo, chunk_bytes)
        full_key = (key, counts, splits)
        try:
            plan_id = self.plans.find_unequal(full_key) if is_unequal else self._found.get(key)
        except TypeError:  # an argument that is no key, and wrong: what follows says which
            plan_id = None
        if plan_id is None:
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
                plan_id, evicted = self.plans.load_unequal(full_key, call, splits)
            else:
                plan_id, evicted = self.plans.load(call)
            if evicted:
                self._found.clear()
                self._array_calls.clear()
            if not is_unequal:
                self._found[key] = plan_id
        return plan_id

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
        out = ffi.new("uint64_t *")
        status = array_launch(table, id(source), id(target), out)
        if status in (MISS, FULL):
            return None
        if status < 0:
            self.fail(status)
        return self.track(out[0], what, (source, target), target)

    def resume(self, status: int) -> bool:
        """What a remembered call still needs that was not complete at once.

        False: it was not carried out.
        """
        if status in (MISS, FULL):
            return False
        self.run_on(self.handle(), status, self._timeout_ns)
        return True

    def remember(self, key: Hashable, source: Array, target: Array, plan: int) -> None:
        """From now on ``repeat`` knows calls with arrays like these."""
        self._array_calls.remember(
            key, source, target, plan=plan, handle=self.handle(), timeout_ns=self._timeout_ns
        )

    def prepare(
        self, owner: object, plan: int, arrays: tuple[Array, Array], timeout: float | None
    ) -> tuple[Any, Any]:
        """A ``js_persistent *``, and what must live as long. Its plan stays while owner lives."""
        call = ffi.new("js_persistent *")
        buffers = byte_pointer(arrays[0]), byte_pointer(arrays[1])
        call.comm = self.handle()
        call.input, call.output = buffers
        call.timeout_ns = timeout_to_ns(timeout, self.timeout)
        call.plan_id = plan
        self.watch(call)
        self.plans.pin(plan, owner)
        return call, buffers

    def prepare_barrier(self, plan: int, nothing: Array) -> None:
        """From now on a barrier needs no plan to be found."""
        if self.barrier_call is None:
            self.barrier_call, _ = self.prepare(self, plan, (nothing, nothing), None)

    def run(
        self, plan: int, source: Array, target: Array, result: Any, timeout: float | None
    ) -> Any:
        """Launch and wait. A timeout or an interrupt makes the communicator unusable."""
        timeout_ns = timeout_to_ns(timeout, self.timeout)
        inputs, outputs = byte_pointer(source), byte_pointer(target)
        handle = self.handle()
        try:
            status = _call(handle, plan, inputs, outputs, timeout_ns)
            if status != 0:
                self._finish(handle, plan, (inputs, outputs), status, timeout_ns)
        except BaseException as error:
            self.interrupt(error)
            raise
        return result

    def finish(self, call: Any, status: int) -> None:
        """What a launch of a ``js_persistent *`` still needs that was not complete at once."""
        self.require_live("what was prepared before")
        pointers = call.input, call.output
        self._finish(self.handle(), call.plan_id, pointers, status, call.timeout_ns)

    def _finish(
        self, handle: Any, plan: int, pointers: tuple[Any, Any], status: int, timeout_ns: int
    ) -> None:
        while status == FULL:
            self.make_room(timeout_ns)
            status = _call(handle, plan, *pointers, timeout_ns)
        self.run_on(handle, status, timeout_ns)

    def interrupt(self, error: BaseException) -> None:
        """After Ctrl-C in the middle of a call: the peers must not wait for this rank."""
        if isinstance(error, JetstreamError):  # the call has come to its end
            return
        handle = self._endpoint.handle
        if handle != ffi.NULL and lib.js_comm_wait(handle, 0, 0, self._cqe) == AGAIN:
            lib.js_comm_abort(handle, lib.JS_ERR_ABORTED)

    def run_on(self, handle: Any, status: int, timeout_ns: int, what: str = "") -> None:
        """The slow continuation of a call: long waits, signals, failures."""
        cqe = ffi.new("js_cqe *")
        while status == AGAIN:
            status = lib.js_comm_wait(handle, 0, timeout_ns, cqe)
            if status == lib.JS_OK:
                status = cqe.status
        if status == lib.JS_ERR_TIMEOUT:
            self._time_out(handle, timeout_ns, what)
        if status < 0:
            self.fail(status)

    def _time_out(self, handle: Any, timeout_ns: int, what: str) -> None:
        fault = ffi.new("js_fault *")
        lib.js_comm_fault(handle, fault)
        if fault.status != lib.JS_OK:  # an earlier call has timed out
            raise_failure(handle, lib.JS_ERR_TIMEOUT)
        story = describe_wait(fault)
        what = what or f"{describe_call(fault.my_call)} #{fault.my_sequence}"
        lib.js_comm_abort(handle, lib.JS_ERR_TIMEOUT)
        raise TimedOutError(
            f"{what} timed out after {timeout_ns / 1e9:g} s, {story}. "
            "The communicator cannot be used any more: close it and make a new one.",
            status="JS_ERR_TIMEOUT",
        )

    def start(self, plan: int, source: Array, target: Array, result: Any, what: str) -> Work:
        """Launch without waiting."""
        inputs, outputs = byte_pointer(source), byte_pointer(target)
        wr_id = self.post(lib.js_comm_launch, plan, inputs, outputs)
        return self.track(wr_id, what, (source, target, inputs, outputs), result)

    # --- messages ------------------------------------------------------------------------------

    def send(self, array: Array, target: int, tag: int) -> Work:
        """Post a send."""
        pointer = byte_pointer(array)
        wr_id = self.post(lib.js_comm_send, pointer, array.nbytes, target, tag)
        return self._track_send(wr_id, array, pointer, target)

    def send_now(self, array: Array, target: int, tag: int, timeout: float | None) -> None:
        """Send and wait."""
        timeout_ns = self._timeout_ns if timeout is None else timeout_to_ns(timeout, 0.0)
        cqe = self._cqe
        try:
            pointer = _from_buffer(array)
        except ValueError:
            pointer = byte_pointer(array)
        handle = self._endpoint.handle or self.handle()
        try:
            status = _send_wait(handle, pointer, array.nbytes, target << 32 | tag, timeout_ns, cqe)
            if status != 0:
                self.go_on_sending(status, array, target, tag, timeout)
        except BaseException as error:
            self.give_up(error)
            raise

    def go_on_sending(
        self, status: int, array: Array, target: int, tag: int, timeout: float | None
    ) -> None:
        """What a send that was waited for still needs that was not complete at once."""
        if status in _UNFINISHED:
            work = self._track_send(self._cqe.wr_id, array, byte_pointer(array), target)
        else:
            if status != FULL:
                self.fail(status)
            work = self.send(array, target, tag)
        self.finish_message(work, timeout)

    def receive(
        self, array: Array, source: int, tag: int | None, finish: Callable[[int], Any]
    ) -> Work:
        """Post a receive; ``finish`` gets the size of the message in bytes, as an Arrival does."""
        pointer = byte_pointer(array)
        room = array.nbytes if tag is not None else array.nbytes | _TAG_ANY
        wr_id = self.post(lib.js_comm_receive, pointer, room, source, tag or 0)
        return self._track_receive(wr_id, array, pointer, source, finish)

    def receive_now(
        self, arrival: Arrival, source: int, tag: int | None, timeout: float | None
    ) -> Any:
        """Receive and wait."""
        array = arrival.array
        timeout_ns = self._timeout_ns if timeout is None else timeout_to_ns(timeout, 0.0)
        cqe, room = self._cqe, array.nbytes
        try:
            pointer = _from_buffer(array)
        except ValueError:
            pointer = byte_pointer(array)
        if tag is None:
            room, address = room | _TAG_ANY, source << 32
        else:
            address = source << 32 | tag
        handle = self._endpoint.handle or self.handle()
        try:
            status = _receive_wait(handle, pointer, room, address, timeout_ns, cqe)
            nbytes = self.go_on_receiving(status, array, source, tag, timeout)
        except BaseException as error:
            self.give_up(error)
            raise
        return arrival(nbytes)

    def go_on_receiving(
        self, status: int, array: Array, source: int, tag: int | None, timeout: float | None
    ) -> int:
        """What a receive that was waited for still needs; returns the size of the message."""
        if status in _RECEIVED:
            return int(self._cqe.bytes)
        if status in _UNFINISHED:
            pointer = byte_pointer(array)
            work = self._track_receive(self._cqe.wr_id, array, pointer, source, int)
        else:
            if status != FULL:
                self.fail(status)
            work = self.receive(array, source, tag, int)
        return int(self.finish_message(work, timeout))

    def probe(
        self, source: int, tag: int | None, timeout: float | None, *, is_waiting: bool = True
    ) -> Message | None:
        """What a receive would get, which stays there; None only without waiting."""
        room = _PROBE if tag is not None else _PROBE | _TAG_ANY
        wr_id = self.post(lib.js_comm_receive, ffi.NULL, room, source, tag or 0)
        work = self.track(wr_id, f"probe of {describe_sender(source)}", ())
        if is_waiting or work.done() or not self._take_back(work):
            self.finish_message(work, timeout if is_waiting else None)
        return work.message

    def finish_message(self, work: Work, timeout: float | None) -> Any:
        """Wait for a message.

        A timeout takes the receive back if nothing of it has arrived; otherwise the communicator
        becomes unusable.
        """
        try:
            return work.wait(timeout)
        except (TimedOutError, KeyboardInterrupt):
            if not self._take_back(work) and not work.is_done:
                lib.js_comm_abort(self.handle(), lib.JS_ERR_TIMEOUT)
            raise

    def give_up(self, error: BaseException) -> None:
        """After Ctrl-C in the middle of a send or receive: nobody keeps its buffer any more."""
        handle, wr_id = self._endpoint.handle, self._cqe.wr_id
        if isinstance(error, JetstreamError) or handle == ffi.NULL or wr_id == 0:
            return
        is_gone = lib.js_comm_cancel_receive(handle, wr_id) == lib.JS_OK
        if not is_gone and lib.js_comm_wait(handle, wr_id, 0, self._cqe) == AGAIN:
            lib.js_comm_abort(handle, lib.JS_ERR_ABORTED)

    def _take_back(self, work: Work) -> bool:
        """Withdraw a receive or probe that no message has matched."""
        if lib.js_comm_cancel_receive(self.handle(), work.wr_id) != lib.JS_OK:
            return False
        self.forget(work.wr_id)
        return True

    def _track_send(self, wr_id: int, array: Array, pointer: Any, target: int) -> Work:
        what = f"send of {array.nbytes} bytes to rank {target}"
        return self.track(wr_id, what, (array, pointer))

    def _track_receive(
        self, wr_id: int, array: Array, pointer: Any, source: int, finish: Callable[[int], Any]
    ) -> Work:
        what = f"receive of {array.nbytes} bytes from {describe_sender(source)}"
        return self.track(wr_id, what, (array, pointer), finish=finish)

    # --- ending --------------------------------------------------------------------------------

    def abort(self) -> None:
        """Make all present and later operations of every rank fail."""
        if self._endpoint.handle != ffi.NULL and not self._endpoint.is_forked:
            lib.js_comm_abort(self._endpoint.handle, lib.JS_ERR_ABORTED)

    def close(self) -> None:
        """Let sends in flight go out, then leave."""
        if self._endpoint.handle == ffi.NULL or self._endpoint.is_forked:
            return
        try:
            for work in list(self._outstanding.values()):
                if work.what.startswith("send"):
                    # What failed has been raised before, or will be where it is waited for.
                    work.settle(timeout_to_ns(min(self.timeout, _CLOSE_DRAIN_S), 0.0))
        finally:
            self._outstanding.clear()
            self._endpoint.close()

    # --- internals -----------------------------------------------------------------------------

    def post(self, function: Callable[..., int], *arguments: Any) -> int:
        """Post a descriptor and return its number; makes room when the queue is full."""
        self.require_live("what was prepared before")
        out = ffi.new("uint64_t *")
        handle = self.handle()
        status = function(handle, *arguments, out)
        while status == FULL:
            self.make_room(timeout_to_ns(None, self.timeout))
            status = function(handle, *arguments, out)
        if status < 0:
            self.fail(status)
        return int(out[0])

    def track(
        self,
        wr_id: int,
        what: str,
        keep: tuple[Any, ...],
        result: Any = None,
        finish: Callable[[int], Any] | None = None,
    ) -> Work:
        """The Work of an operation posted; ``keep`` lives until it is complete."""
        work = Work(self, wr_id, what, keep=keep, result=result, finish=finish)
        self._outstanding[wr_id] = work
        return work

    def make_room(self, timeout_ns: int) -> None:
        """Collect what has completed; if nothing has, wait for the oldest operation."""
        before = len(self._outstanding)
        for work in list(self._outstanding.values()):
            work.done()
        if len(self._outstanding) == before and before:
            oldest = next(iter(self._outstanding.values()))
            oldest.settle(timeout_ns)
        elif not before:
            raise ArgumentError("the queue is full of operations that other code has posted")
