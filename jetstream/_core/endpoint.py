"""One rank's native handles: the engine of the process and its communicators."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jetstream._core.link import ADDRESS_BYTES, Link, LinkSettings
from jetstream._core.native import check, ffi, lib
from jetstream._core.segment import Segment
from jetstream.errors import BusyError, ClosedError, ConfigurationError

__all__ = ["Endpoint", "Engine"]

_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


class Engine:
    """What this process is in a job. It leaves the job with the last of its communicators.

    ``handle`` is the cffi pointer ``js_engine *``, NULL once it has left; the memory behind it
    stays as long as this object.
    """

    def __init__(
        self,
        segment: Segment,
        rank: int,
        *,
        pidfds: Sequence[int],
        oversubscribed: bool,
        is_crowded: bool,
        spin_us: int,
    ) -> None:
        config = ffi.new("js_wait_config *")
        config.spin_us = spin_us
        config.oversubscribed = int(oversubscribed)
        config.is_crowded = int(is_crowded)
        out = ffi.new("js_engine **")
        check(lib.js_engine_new(segment.handle, rank, ffi.new("int32_t[]", pidfds), config, out))
        self.handle: Any = out[0]
        self._memory = self.handle
        self.segment = segment
        #: Whether a thread of its own makes rounds.
        self.has_thread = False
        #: Number of the host of each rank of the job.
        self.hosts = (0,) * segment.world
        #: What links to other hosts are opened with; None where there are none.
        self.links: LinkSettings | None = None
        self._users = 0
        self._is_dropped = False
        self._lock = threading.RLock()  # an endpoint may be collected anywhere

    def start_thread(self, core: int) -> None:
        """Start the thread that makes rounds for all communicators, on ``core`` (-1: anywhere).

        Without effect where it is running. Raises ArgumentError, ClosedError, SystemCallError.
        """
        with self._lock:
            if self.handle == ffi.NULL:
                raise ClosedError("the communicator is closed", status="JS_ERR_CLOSED")
            if not self.has_thread:
                check(lib.js_engine_start_thread(self.handle, core))
                self.has_thread = True

    def retain(self) -> None:
        """One communicator more."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """One communicator less; with the last one the rank has left, and the segment goes."""
        with self._lock:
            self._users -= 1
            if self._users > 0 or self.handle == ffi.NULL:
                return
            lib.js_engine_leave(self.handle)
            self.handle = ffi.NULL
        self.segment.close()
        if self._is_dropped:
            lib.js_engine_free(self._memory)

    def __del__(self) -> None:
        if getattr(self, "handle", None) == ffi.NULL:
            lib.js_engine_free(self._memory)
        else:  # a communicator in the same cycle of references is collected after it
            self._is_dropped = True


class Endpoint:
    """One communicator, as this rank holds it.

    ``handle`` is the cffi pointer ``js_comm *``, NULL once closed. ``queue`` is the
    ``js_queue *`` of the queue pair that it serves. The memory of both stays as long as this
    object: who has read ``handle`` just before another thread closes gets JS_ERR_CLOSED.
    """

    def __init__(self, engine: Engine, handle: Any, size: int) -> None:
        self.engine = engine
        self.handle = handle
        self._memory = handle
        self.queue: Any = ffi.NULL
        self._lock = threading.RLock()
        #: Ranks in the job, by rank in this communicator.
        self.members = tuple(lib.js_comm_member(handle, rank) for rank in range(size))
        #: Numbers of their hosts.
        self.hosts = tuple(engine.hosts[member] for member in self.members)
        self.is_forked = False
        #: Called with the handle when it has changed.
        self.on_handle: list[Callable[[Any], None]] = []
        engine.retain()
        _open.add(self)

    @classmethod
    def world(
        cls,
        segment: Segment,
        rank: int,
        *,
        pidfds: Sequence[int],
        oversubscribed: bool = False,
        is_crowded: bool = False,
        spin_us: int = 0,
        thread_core: int | None = None,
        hosts: Sequence[int] = (),
    ) -> Endpoint:
        """Join the job of a segment and open the communicator of all its ranks.

        ``pidfds[i]`` watches rank i (-1: nothing does); the engine keeps duplicates.
        ``oversubscribed``: there are fewer cores than threads that want one, ``is_crowded``: there
        would be with an engine thread in each rank.
        ``thread_core``: core of the engine thread, -1 for any, None for no such thread.
        ``hosts[i]`` is the number of the host of rank i; none: all are on this one. With several
        the next thing to do is ``connect``.
        """
        engine = Engine(
            segment,
            rank,
            pidfds=pidfds,
            oversubscribed=oversubscribed,
            is_crowded=is_crowded,
            spin_us=spin_us,
        )
        out = ffi.new("js_comm **")
        try:
            if hosts:
                engine.hosts = tuple(hosts)
                check(lib.js_engine_set_hosts(engine.handle, ffi.new("uint16_t[]", engine.hosts)))
            if thread_core is not None:
                engine.start_thread(thread_core)
            check(lib.js_comm_open(engine.handle, out))
        except BaseException:
            lib.js_engine_free(engine.handle)
            raise
        return cls(engine, out[0], segment.world)

    def connect(self, link: Link, addresses: Sequence[bytes], settings: LinkSettings) -> None:
        """Connect with the ranks of other hosts, through ``link``, which belongs to the endpoint.

        ``addresses[i]`` is that of rank i's link; all ranks call it. Raises UnreachableError when
        a rank does not answer within ``settings.connect_s``. Afterwards a rank that is awaited and
        gives no sign for ``settings.silence_s`` counts as dead.
        """
        self.engine.links = settings
        native = ffi.from_buffer("js_link_address[]", b"".join(addresses))
        limits = (int(1e9 * settings.connect_s), int(1e9 * settings.silence_s))
        own = link.address
        for rank, address in enumerate(addresses):
            if len(address) != len(own):
                raise ConfigurationError(
                    f"rank {rank} has {len(address) // ADDRESS_BYTES} links to other hosts, this "
                    f"one {len(own) // ADDRESS_BYTES}: JETSTREAM_INTERFACE, or "
                    "JETSTREAM_LINK_ADDRESS, must name as many on every rank"
                )
        check(lib.js_comm_connect(self.handle, link.release(), native, *limits))
        sizes = [lib.js_comm_frame_bytes(self.handle, rank) for rank in range(len(addresses))]
        settings.tell_paths(own, addresses, sizes)

    def offer(self, group: Any) -> None:
        """Take memory for the communicator of a ``js_group *`` and fill in where it is.

        For its first member alone. Raises ClosedError, SystemCallError where the heap has no room.
        """
        with self.held():
            check(lib.js_group_create(self.engine.handle, group))

    def join(self, group: Any) -> Endpoint:
        """Open the communicator of a ``js_group *`` that its first member has offered.

        Raises ClosedError, SegmentError, SystemCallError.
        """
        out = ffi.new("js_comm **")
        with self.held():
            check(lib.js_comm_open_group(self.engine.handle, group, out))
            return Endpoint(self.engine, out[0], group.size)

    def serve(self, config: Any) -> Any:
        """Give the communicator to a device; returns its ``js_qp *``.

        ``config`` is a ``js_qp_config *``. From now on only the queue pair posts. Raises
        ArgumentError, BusyError, ClosedError, OutOfMemoryError, SystemCallError, or what it has
        failed with.
        """
        out = ffi.new("js_queue **")
        with self.held() as handle:
            check(lib.js_qp_open(handle, config, out))
        self.queue = out[0]
        return lib.js_qp_view(self.queue)

    def close(self) -> None:
        """Leave: peers that still wait for this rank get an error. Idempotent.

        Raises BusyError while another thread is inside a call: then nothing is closed. Threads
        that wait in a queue pair come out first.
        """
        if self.is_forked:
            return
        with self._lock:
            handle = self.handle
            if handle == ffi.NULL:
                return
            self._set_handle(ffi.NULL)  # other threads see it closed from here on
            has_queue = self.queue != ffi.NULL
            status = lib.js_qp_close(self.queue) if has_queue else lib.js_comm_close(handle)
            if status != lib.JS_OK:
                self._set_handle(handle)
                check(status)
        _open.discard(self)
        self.engine.release()

    @contextlib.contextmanager
    def held(self) -> Iterator[Any]:
        """``handle``, for what may not be closed in the middle; waits for who closes.

        Not for what can last. Raises ClosedError.
        """
        with self._lock:
            if self.handle == ffi.NULL:
                raise ClosedError("the communicator is closed", status="JS_ERR_CLOSED")
            yield self.handle

    def abort(self, status: int) -> None:
        """Make all present and later operations of every rank fail, also while others close."""
        lib.js_comm_abort(self._memory, status)

    def settled_handle(self) -> Any:
        """``handle``, when a close that another thread has begun has succeeded or failed."""
        with self._lock:
            return self.handle

    def tell(self) -> None:
        """Call what is to be called when the handle has changed."""
        with self._lock:
            self._set_handle(self.handle)

    def check_told(self, handle: Any) -> None:
        """What to call with a handle that has been written where ``on_handle`` finds it.

        Another thread may have closed just before, and nobody has changed it then.
        """
        if self.handle != handle:
            self.tell()

    def _set_handle(self, handle: Any) -> None:
        self.handle = handle
        for update in self.on_handle:
            update(handle)

    def __del__(self) -> None:
        if getattr(self, "handle", ffi.NULL) != ffi.NULL:
            self.close()  # nobody can be inside
        # A device that is still running when the interpreter ends finds its memory in place.
        if not getattr(self, "is_forked", True) and not sys.is_finalizing():
            lib.js_comm_free(self._memory)

    def forget(self) -> None:
        """In the child of a fork: never touch the parent's segment again."""
        self.is_forked = True
        self._lock = threading.RLock()  # a thread may have had it that is not in the child
        lib.js_comm_forked(self._memory)  # another thread may have been about to close it


def _close_all() -> None:
    for endpoint in list(_open):
        try:
            endpoint.close()
        except BusyError:  # a daemon thread is still inside: its memory must stay
            endpoint.abort(lib.JS_ERR_PEER_CLOSED)


def _forget_all() -> None:
    for endpoint in list(_open):
        endpoint.forget()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
