"""What all parts of a queue pair share: handles, and the checks that stand before every call."""

from __future__ import annotations

import operator
import threading
from typing import Any, NoReturn

from jetstream._core.endpoint import Endpoint
from jetstream._core.native import ffi
from jetstream.errors import ArgumentError, BusyError, ClosedError, ForkedError, TimedOutError
from jetstream.transport.completion import QPState
from jetstream.transport.host import Host
from jetstream.transport.queues import Rings
from jetstream.transport.regions import RegionTable

__all__ = ["SLICE_NS", "QueuePairParts", "integer"]

#: How long one call into the data plane waits at most; Ctrl-C is seen after it.
SLICE_NS = 100_000_000


def integer(value: Any, limit: int, name: str) -> int:
    """``value`` as an int from 0 to limit - 1. Raises ArgumentError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < limit:
        raise ArgumentError(f"{name} is {value!r}: an integer from 0 to {limit - 1} is needed")
    return number


class QueuePairParts:
    """A queue pair's handles."""

    comm: Any
    _host: Host
    _endpoint: Endpoint
    _native: Any  # js_qp *
    _address: int
    _regions: RegionTable
    _rings: Rings
    _is_single: bool
    _thread: int | None

    @property
    def state(self) -> QPState:
        """READY, DRAINING, ERROR or CLOSED."""
        if self._endpoint.settled_handle() == ffi.NULL:
            return QPState.CLOSED
        return QPState(self._native.control.status.state)

    def _check_open(self) -> None:
        if self._endpoint.is_forked:
            raise ForkedError(
                "this queue pair was made before a fork and belongs to the parent process",
                status="JS_ERR_FORKED",
            )
        if self._endpoint.handle == ffi.NULL and self._endpoint.settled_handle() == ffi.NULL:
            raise ClosedError("the queue pair is closed: make a new one", status="JS_ERR_CLOSED")

    def _check_use(self) -> None:
        self._check_open()
        if self._is_single and self._thread != threading.get_ident():
            if self._thread is not None:
                raise BusyError(
                    "this queue pair was made with threads='one' and is another thread's: make "
                    "one for each thread, or one with threads='many'"
                )
            self._thread = threading.get_ident()

    def _raise(self, status: int) -> None:
        self._check_open()
        self._host.fail(status)

    def _time_out(self, what: str, limit_ns: int) -> NoReturn:
        self._check_open()
        raise TimedOutError(
            f"no {what} after {limit_ns / 1e9:g} s, {self._host.waiting_text()}",
            status="JS_ERR_TIMEOUT",
        )
