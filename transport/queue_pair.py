"""Queue pairs: what a device posts to, and what it takes completions from."""

from __future__ import annotations

import os
import time
import weakref
from types import TracebackType
from typing import Any

import numpy as np

from jetstream._core.native import ffi, lib
from jetstream._core.timeouts import timeout_to_ns
from jetstream.arrays import Array
from jetstream.errors import ArgumentError, BusyError, JetstreamError
from jetstream.transport.completion import QPState
from jetstream.transport.host import Communicator
from jetstream.transport.launches import Launch
from jetstream.transport.parts import SLICE_NS, integer
from jetstream.transport.posting import Posting
from jetstream.transport.queues import Rings
from jetstream.transport.regions import Region, RegionTable, Window, access_bits, contiguous
from jetstream.transport.waiting import Waiting

__all__ = ["QueuePair"]

#: Memory of queue pairs that could not be closed when they were collected.
_stuck: list[RegionTable] = []


class QueuePair(Posting, Waiting):
    """Send queue, receive queue and completion queue of a device. All ranks of ``comm`` make it.

    It serves a communicator of its own, ``qp.comm``, a duplicate of ``comm``: of that, only the
    queue pair posts; its operations raise BusyError. What one thread does on one queue pair never
    waits for another queue pair. ``depth``: entries of send and receive queue, a power of two from
    4 to 16384 (default 64); the completion queue has four times as many. With ``threads="one"``
    a single thread posts and polls, which saves locked instructions; that is the first one which
    does so from Python, another one gets BusyError, and what a second thread of foreign code
    does is undefined. ``docs/queue-pairs.md`` explains all of it.

    Entries of the send queue complete in order. The first that fails has its own status, all later
    ones have JS_ERR_FLUSHED, on all ranks, and nothing raises: ``check`` tells the story.
    Every method may raise ClosedError and ForkedError.
    """

    def __init__(
        self, comm: Communicator, *, depth: int | None = None, threads: str = "many"
    ) -> None:
        if threads not in ("many", "one"):
            raise ArgumentError(f"threads is {threads!r}: 'many' or 'one' is needed")
        slots = 0 if depth is None else integer(depth, 2**15, "depth")
        if depth is not None and (slots & (slots - 1) or not 4 <= slots <= 2**14):
            raise ArgumentError(f"depth is {depth!r}: a power of two from 4 to 16384 is needed")
        self._parent = comm
        #: The communicator that it serves; prepares plans and graphs.
        self.comm = comm.dup()
        self._host = self.comm.device_host()
        self._endpoint = self._host.endpoint
        self._is_single = threads == "one"
        self._thread: int | None = None
        self._event_fd = -1
        self._close_event_fd: Any = None
        error = self._open(slots)
        rows = comm.all_gather(np.array([error is not None], np.int64))
        if error is not None or rows.any():
            self.comm.close()
            raise error or JetstreamError(
                f"rank {int(rows.argmax())} could not make its end of the queue pair; its own "
                "error says more"
            )
        self._address = int(ffi.cast("uintptr_t", self._native))
        self._regions = RegionTable(self._host)
        self._rings = Rings(self._native, self._endpoint)

    def _open(self, slots: int) -> Exception | None:
        config = ffi.new("js_qp_config *")
        config.depth_slots, config.is_single, config.event_fd = slots, self._is_single, -1
        try:
            if self._endpoint.engine.has_thread:
                self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._close_event_fd = weakref.finalize(self, os.close, self._event_fd)
                self._close_event_fd.atexit = False
                config.event_fd = self._event_fd
            self._native = self._endpoint.serve(config)
        except (JetstreamError, OSError) as error:
            return error
        return None

    def __repr__(self) -> str:
        place = f"rank {self.comm.rank} of {self.comm.size}"
        return f"<QueuePair {place}, {self.state.name.lower()}>"

    def __enter__(self) -> QueuePair:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self.state != QPState.CLOSED:
            self.comm.abort()  # the peers must not wait for what will not come
        self.close()

    # --- raw handles -----------------------------------------------------------------------------

    @property
    def address(self) -> int:
        """Address of the ``js_qp``, for foreign code. It and the rings stay as long as this object,
        also after ``close``.
        """
        return self._address

    @property
    def pointer(self) -> Any:
        """The cffi pointer ``js_qp *``."""
        return self._native

    @property
    def sq(self) -> Array:
        """The send queue, live: ``SQE_DTYPE``, shape (depth,)."""
        return self._rings.sq

    @property
    def rq(self) -> Array:
        """The receive queue, live: ``RQE_DTYPE``, shape (depth,)."""
        return self._rings.rq

    @property
    def cq(self) -> Array:
        """The completion queue, live: ``CQE_DTYPE``, shape (4 * depth,)."""
        return self._rings.cq

    @property
    def signals(self) -> Array:
        """The signals of this rank, live: uint64, shape (64,), strided, read-only.

        A peer's put with ``signal=``, and this rank's own launches, change them. They are this
        queue pair's until it is closed.
        """
        return self._rings.signals

    def prepare(self, kind: str, /, *arguments: Any, **options: Any) -> Launch:
        """Prepare a collective for ``post_launch``, as ``Communicator.persistent`` does.

        Arrays that no region covers are registered as long as the Launch lives. All ranks launch
        the same collectives in the same order. Raises ArgumentError.
        """
        self._check_open()
        return Launch(self._host, self._regions, kind, arguments, options)

    def capture(self, *, timeout: float | None = None) -> Any:
        """Record a graph for ``post_graph``: ``with qp.capture() as graph: qp.comm.all_reduce(x)``.

        As ``Communicator.capture``.
        """
        return self.comm.capture(timeout=timeout)

    def register(self, array: Any, access: str = "read|write") -> Region:
        """Let descriptors name the memory of ``array``, which has to be C-contiguous.

        ``access``: ``read`` (to send, to put, input of collectives), ``write`` (to receive, output
        of collectives), ``remote_write`` (peers put into it, by ``region.key``: arrays of
        ``comm.empty``), or several with | between. Up to 256 regions, 64 of them for peers.
        Raises ArgumentError, AccessError, QueueFullError.
        """
        self._check_open()
        bits = access_bits(access)
        return self._regions.add(
            contiguous(array, "array", is_written=bits != lib.JS_ACCESS_READ), bits
        )

    def window(self, array: Any = None) -> Window:
        """Let all ranks put into ``array``, made by ``comm.empty``; all ranks must call it.

        A rank that gives no array only puts. The keys are exchanged through the communicator that
        the queue pair was made of. Raises ArgumentError, AccessError, QueueFullError on the rank at
        fault, JetstreamError on the others.
        """
        self._check_open()
        region, error = None, None
        try:
            if array is not None:
                region = self.register(array, "remote_write")
        except JetstreamError as one:
            error = one
        size = 0 if region is None else region.nbytes
        own = np.array([region.key if region else 0, size, error is not None], np.int64)
        rows = self._parent.all_gather(own).reshape(-1, 3).tolist()
        failed = [rank for rank, row in enumerate(rows) if row[2]]
        if failed:
            if region is not None:
                region.close()
            raise error or JetstreamError(
                f"rank {failed[0]} could not open its memory; its own error says more"
            )
        return Window(self, region, [row[:2] for row in rows])

    # --- ending ----------------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> None:
        """Refuse further posts and wait until everything posted is complete, also receives.

        Afterwards completions can be taken, and the queue pair closed. Raises TimedOutError, after
        which posts are taken again, or what the queue pair has failed with.
        """
        self._check_open()
        limit_ns = timeout_to_ns(timeout, self.comm.timeout)
        end_ns = time.monotonic_ns() + limit_ns
        while True:
            left_ns = max(end_ns - time.monotonic_ns(), 0)
            status = lib.js_qp_drain(self._endpoint.queue, min(left_ns, SLICE_NS))
            if status == lib.JS_OK:
                return
            if status != lib.JS_ERR_TIMEOUT:
                self._raise(status)
            if left_ns == 0:
                count = lib.js_qp_outstanding(self._endpoint.queue)
                self._time_out(f"end of {count} entries that are posted", limit_ns)

    def close(self) -> None:
        """Leave: nothing more is taken or completed; who waits here gets ClosedError. Idempotent.

        Peers that still wait for this rank get PeerClosedError; ``drain`` first where they do.
        The memory that ``address`` names stays as long as this object. Raises BusyError when a
        thread, or a peer that writes here, does not get on: call again.
        """
        if self._endpoint.is_forked:
            return
        self._endpoint.close()
        self._regions.close()
        if self._close_event_fd is not None:
            self._close_event_fd()
            self._event_fd = -1

    def __del__(self) -> None:
        try:
            self.close()
        except BusyError:
            _stuck.append(self._regions)  # somebody may still write to the arrays
        except AttributeError:
            pass  # it was never made
