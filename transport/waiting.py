"""Completions and signals: looking at them, waiting for them, sleeping until they come."""

from __future__ import annotations

import contextlib
import os
import time

from jetstream._core.native import AGAIN, ffi, lib
from jetstream._core.timeouts import timeout_to_ns
from jetstream.errors import UnsupportedError
from jetstream.transport.completion import Completion, QPState, completion_of
from jetstream.transport.parts import SLICE_NS, QueuePairParts, integer

__all__ = ["Waiting"]

_SIGNALS: int = lib.JS_SIGNALS
_U64 = 2**64


class Waiting(QueuePairParts):
    """How a device learns what has become of it."""

    _event_fd: int

    def poll(self) -> Completion | None:
        """Take the next completion, if there is one; without an engine thread, a round is made."""
        self._check_use()
        cqe = ffi.new("js_cqe *")
        if not lib.js_device_poll(self._address, int(ffi.cast("uintptr_t", cqe))):
            self._check_open()
            return None
        return completion_of(cqe)

    def wait(self, timeout: float | None = None) -> Completion:
        """Take the next completion; ``timeout`` in seconds (None: the communicator's).

        A completion with a bad status is returned like any other. Raises TimedOutError, which
        changes nothing; and, with nothing left to complete, what the queue pair has failed with.
        """
        self._check_use()
        limit_ns = timeout_to_ns(timeout, self.comm.timeout)
        end_ns = time.monotonic_ns() + limit_ns
        cqe = ffi.new("js_cqe *")
        out = int(ffi.cast("uintptr_t", cqe))
        while True:
            left_ns = end_ns - time.monotonic_ns()
            wait = lib.js_device_wait if left_ns >= SLICE_NS else self._look
            status = wait(self._address, out)
            if status == lib.JS_OK:
                return completion_of(cqe)
            if status != AGAIN:
                self._raise(status)
            if left_ns <= 0:
                self._time_out("completion", limit_ns)

    def wait_signal(self, index: int, until: int, timeout: float | None = None) -> int:
        """Wait until the signal is at least ``until``, and return it. ``timeout``: as ``wait``.

        Counts as reached when it is less than 2**63 ahead. Raises TimedOutError, which changes
        nothing, and what the queue pair has failed with.
        """
        self._check_use()
        number, goal = integer(index, _SIGNALS, "index"), integer(until, _U64, "until")
        limit_ns = timeout_to_ns(timeout, self.comm.timeout)
        end_ns = time.monotonic_ns() + limit_ns
        while True:
            value: int = lib.js_device_read_signal(self._address, number)
            if (value - goal) % _U64 < _U64 // 2:
                return value
            left_ns = end_ns - time.monotonic_ns()
            if left_ns <= 0:
                self._time_out(f"signal {number} of at least {goal}", limit_ns)
            if left_ns >= SLICE_NS:
                status = lib.js_device_wait_signal(self._address, number, goal)
            else:
                status = self._make_round()
            if status not in (lib.JS_OK, AGAIN):
                self._raise(status)

    def check(self, completion: Completion) -> Completion:
        """Return a completion that has succeeded; raise what another one means.

        One that was flushed means what the queue pair has failed with. The text tells what happened
        on which rank. Raises AccessError, BoundsError, ArgumentError,
        TruncatedError, PeerDiedError, PeerClosedError, CommunicatorAbortedError, MismatchError.
        """
        if completion.is_ok:
            return completion
        self._check_open()
        first = int(self._native.control.status.status)
        is_flushed = completion.status == "JS_ERR_FLUSHED" and first != lib.JS_OK
        self._host.fail(first if is_flushed else getattr(lib, completion.status))
        raise AssertionError(completion)  # a bad status raises

    @property
    def event_fd(self) -> int:
        """A descriptor that is readable when a completion has come since ``arm()``.

        For select, selectors, asyncio. It needs the engine thread, since without it nothing happens
        while a program sleeps: raises UnsupportedError otherwise.
        """
        if self._event_fd < 0:
            raise UnsupportedError(
                "without an engine thread nothing would ever write to an event descriptor: call "
                "jetstream.init(progress='thread'), or wait with wait() or poll()"
            )
        self._check_open()
        return self._event_fd

    def fileno(self) -> int:
        """The same as ``event_fd``, so that a queue pair can be given to select."""
        return self.event_fd

    def arm(self) -> int:
        """Empty the event descriptor and have the next completion make it readable, once.

        Returns how many completions are there already: take these before sleeping.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.event_fd)
        return int(lib.js_qp_arm(self._endpoint.queue))

    def _make_round(self) -> int:
        """One round where this thread makes them. JS_OK, or why there is nothing to wait for."""
        if self._native.progress != ffi.NULL:
            self._native.progress(self._native.context)
        os.sched_yield()
        status = self._native.control.status
        if status.state == QPState.CLOSED:
            return int(lib.JS_ERR_CLOSED)
        return int(status.status) if status.state == QPState.ERROR else 0

    def _look(self, address: int, out: int) -> int:
        """As js_device_wait, but without waiting."""
        if lib.js_device_poll(address, out):
            return 0
        status = self._make_round()
        return 0 if lib.js_device_poll(address, out) else status or AGAIN
