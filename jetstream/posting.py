"""Posting to the queues of a communicator, and keeping what is under way: the base of Launcher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jetstream._core.endpoint import Endpoint
from jetstream._core.native import FULL, check, ffi, lib
from jetstream._core.timeouts import timeout_to_ns
from jetstream.diagnosis import describe_wait, raise_failure
from jetstream.errors import ArgumentError, BusyError, ClosedError
from jetstream.work import Work

__all__ = ["Poster"]

#: Statuses that are about one call and leave the communicator intact.
_CALLER_ERRORS = frozenset(
    (lib.JS_ERR_BUSY, lib.JS_ERR_INVALID, lib.JS_ERR_FULL, lib.JS_ERR_OPCODE)
)
_CROWD_MIN = 16


class Poster:
    """Posts descriptors, keeps the buffers of what is in flight, says what went wrong.

    ``timeout``: default of every wait in seconds, ``_timeout_ns`` the same for the data plane.
    """

    _timeout_ns: int

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self.is_captured = False  # a graph is being made of the communicator's calls
        self._endpoint = endpoint
        self._outstanding: dict[int, Work] = {}
        self._crowd = _CROWD_MIN  # when there are so many, all are looked at
        self.timeout = timeout_s

    @property
    def timeout(self) -> float:
        """Default timeout of every wait in seconds."""
        return self._timeout_s

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._timeout_ns = timeout_to_ns(seconds, seconds)
        self._timeout_s = seconds
        self._set_timeout(self._timeout_ns)

    def _set_timeout(self, timeout_ns: int) -> None:
        """Called with every new timeout."""

    # --- what Work needs -----------------------------------------------------------------------

    def handle(self) -> Any:
        """The cffi pointer ``js_comm *``; raises ClosedError, ForkedError."""
        handle = self._endpoint.handle
        if handle == ffi.NULL and (handle := self._endpoint.settled_handle()) == ffi.NULL:
            raise ClosedError("the communicator is closed", status="JS_ERR_CLOSED")
        if self._endpoint.is_forked:
            raise_failure(handle, lib.JS_ERR_FORKED)
        return handle

    @contextlib.contextmanager
    def held(self) -> Iterator[Any]:
        """``handle()``, which no other thread closes meanwhile: for what only looks."""
        with self._endpoint.held():
            yield self.handle()

    def require_live(self, what: str) -> None:
        """Raise ArgumentError while calls are captured: ``what`` cannot be."""
        if self.is_captured:
            raise ArgumentError(f"{what} cannot be captured: move it out of the block")

    def fail(self, status: int) -> None:
        """Raise what a negative status of an operation means."""
        if status in _CALLER_ERRORS:
            check(status)
        with self.held() as handle:
            raise_failure(handle, status)

    def forget(self, wr_id: int) -> None:
        """An operation is complete: its buffers need not be kept alive any more."""
        self._outstanding.pop(wr_id, None)

    def waiting_text(self) -> str:
        """What this rank waits for at this moment."""
        fault = ffi.new("js_fault *")
        lib.js_comm_fault(self.handle(), fault)
        return describe_wait(fault)

    def abort(self, status: int = lib.JS_ERR_ABORTED) -> None:
        """Make all present and later operations of every rank fail."""
        if not self._endpoint.is_forked:
            self._endpoint.abort(status)

    # --- internals -----------------------------------------------------------------------------

    def post(self, function: Callable[..., int], *arguments: Any) -> int:
        """Post a descriptor and return its number; makes room when the queue is full."""
        self.require_live("what was prepared before")
        self.let_go()
        out = ffi.new("uint64_t *")
        status = function(self.handle(), *arguments, out)
        if status == FULL:
            status = self.insist(
                status, lambda: function(self.handle(), *arguments, out), self._timeout_ns
            )
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

    def let_go(self) -> None:
        """Have operations that are complete let go of their arrays, though nobody asks after them.

        Those behind one that is not complete come to it when they are many.
        """
        outstanding = self._outstanding
        if not outstanding:
            return
        if len(outstanding) >= self._crowd:
            for work in list(outstanding.values()):
                self._collect(work)
            self._crowd = max(2 * len(outstanding), _CROWD_MIN)
        oldest = self._oldest()
        while oldest is not None and self._collect(oldest):
            oldest = self._oldest()

    def _collect(self, work: Work) -> bool:
        """``Work.collect`` what is over; nobody has asked after what is not, nor after its peers.

        So a rank that has closed, though an old receive still names it, disturbs nobody here.
        """
        return lib.js_comm_is_over(self.handle(), work.wr_id) != 0 and work.collect()

    def _oldest(self) -> Work | None:
        """What has been outstanding longest."""
        while True:
            try:
                return next(iter(self._outstanding.values()), None)
            except RuntimeError:  # another thread has posted or collected just now
                continue

    def was_turned_away(self, status: int) -> bool:
        """Whether a call was not carried out that can be made again.

        The queue was full, or another thread tried to close the communicator and could not. Raises
        ClosedError, and BusyError while another thread captures.
        """
        if status == lib.JS_ERR_CLOSED:
            if self.is_captured:
                raise BusyError("another thread captures the calls of this communicator")
            self.handle()
            return True
        return status == FULL

    def insist(self, status: int, call: Callable[[], int], timeout_ns: int) -> int:
        """Make a call until it is not turned away; returns its status. ``status``: the first."""
        while self.was_turned_away(status):
            has_room = status != FULL or self._make_room(timeout_ns)
            status = call()
            if status == FULL and not has_room and not self._outstanding:
                raise ArgumentError("the queue is full of operations that other code has posted")
        return status

    def _make_room(self, timeout_ns: int) -> bool:
        """Collect what has completed; if nothing has, wait for the oldest operation.

        False: nothing is outstanding, which may be the work of another thread.
        """
        works = list(self._outstanding.values())
        if works and sum(self._collect(work) for work in works) == 0:
            for work in works:
                lib.js_comm_progress(self.handle())
                if self._collect(work):
                    return True
            works[0].settle(timeout_ns)
        return bool(works)
