"""The communicator: collectives and messages between the ranks of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from jetstream._core.endpoint import Endpoint
from jetstream._core.native import check, ffi, lib, text_of
from jetstream.array_calls import byte_pointer
from jetstream.arrays import Array, share_writable
from jetstream.call_parts import NOTHING
from jetstream.capture import Capture
from jetstream.collective_calls import CollectiveCalls
from jetstream.config import Config
from jetstream.device_host import DeviceHost
from jetstream.dtypes import Kind, RedOp
from jetstream.errors import ArgumentError
from jetstream.groups import Exchange, open_group, split
from jetstream.launcher import Launcher
from jetstream.messages import MessageCalls
from jetstream.persistent import Persistent, prepare
from jetstream.progress import start_thread
from jetstream.records import OperationRecord, from_native, view_ring
from jetstream.shapes import check_rank
from jetstream.symmetric import HeapUsage, heap_usage, new_array

__all__ = ["Communicator"]


def _names(name_of: Callable[[int], Any]) -> list[str]:
    names: list[str] = []
    while (name := name_of(len(names))) != ffi.NULL:
        names.append(text_of(name).removeprefix("JS_COUNTER_").lower())
    return names


class Communicator(CollectiveCalls, MessageCalls):
    """An ordered group of ranks. Made by :func:`jetstream.init`, ``split`` and ``dup``.

    All ranks must call the same collectives with the same arguments in the same order; each call
    is checked, and a difference raises MismatchError on every rank with both calls in its text.
    A failed collective makes the communicator unusable on all ranks, and no other. Several threads
    may use it: they take turns, also while they wait, and their collectives are in the order of
    their turns (``docs/communicators.md``).

    ``timeout`` is the default for every wait, in seconds. Errors that any operation may raise:
    ArgumentError (nothing was sent), MismatchError, PeerDiedError, PeerClosedError,
    CommunicatorAbortedError, TimedOutError, BusyError, ClosedError, ForkedError.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        rank: int,
        size: int,
        *,
        local_rank: int,
        hosts: tuple[str, ...],
        config: Config,
    ) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.hosts = hosts
        #: Number of the host of each rank; hosts of one name may still be several.
        self.host_index = endpoint.hosts
        self._endpoint = endpoint
        self._config = config
        self._launcher = Launcher(endpoint, rank, size, config)

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.size}>"

    @property
    def timeout(self) -> float:
        """Default timeout of every wait in seconds; may be set."""
        return self._launcher.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._launcher.timeout = seconds

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:  # the peers must not wait for what will not come
            self.abort()
        self.close()

    # --- persistent calls -------------------------------------------------------------------------

    def persistent(self, kind: str, /, *arguments: Any, **options: Any) -> Persistent:
        """Prepare a collective: ``step = comm.persistent("all_reduce", x)``, then ``step()``.

        ``kind`` is the name of a collective; the rest is what its method takes, except ``async_op``
        and ``scale``. Nothing is sent, and nobody waits. Every ``step()`` works on what the arrays
        contain then and returns what the method returns, always the same arrays; ``step.start()``
        does not wait and returns a Work. With the arrays checked and the plan found beforehand, a
        launch costs a fraction of an ordinary call (as MPI_Allreduce_init and MPI_Start).

        Raises ArgumentError where the call itself would, and for an ``x`` that is not contiguous.
        """
        self._launcher.require_live("persistent")
        return prepare(self._launcher, self.rank, self.size, kind, arguments, options)

    def device_host(self) -> DeviceHost:
        """What :class:`jetstream.transport.QueuePair` needs of this communicator."""
        return DeviceHost(self._endpoint, self._launcher, self.rank, self.size)

    def capture(self, *, timeout: float | None = None) -> Capture:
        """Record what is called on this communicator: ``with comm.capture() as graph: ...``.

        Within the block collectives and messages are checked and remembered with their arrays,
        and ``graph.call`` adds functions of C; nothing is sent, no array changes. Then ``graph()``
        carries all of it out, as ``graph.launch()`` does without waiting, each time with what the
        arrays contain: one call instead of many. ``timeout`` is that of ``graph()``, in seconds.
        ``docs/graphs.md`` has the rules.

        Raises ArgumentError within another capture, QueueFullError where there are 1024 graphs
        already, and what the communicator has failed with.
        """
        return Capture(self._launcher, self._use, timeout)

    def owns(self, owner: object) -> bool:
        """Whether ``owner`` is what posts this communicator's operations."""
        return owner is self._launcher

    def _use(self, launcher: Any) -> None:
        """From now on calls go there."""
        self._launcher = launcher

    def start_progress(self, core: int | None = None) -> None:
        """From now on operations in flight get on by themselves, also while no call is made.

        Starts the engine thread of this process, as ``jetstream.init(progress="thread")`` does, for
        all its communicators, on ``core`` (``JETSTREAM_PROGRESS_CORE``, default: any). It sleeps
        while nothing is in flight. Without effect where it is running; it ends with the last
        communicator. The other ranks need not do the same.

        Raises ArgumentError, ConfigurationError, ClosedError, SystemCallError.
        """
        self._launcher.handle()
        start_thread(self._endpoint.engine, self._config, core)

    # --- symmetric memory ----------------------------------------------------------------------

    def empty(self, shape: int | Sequence[int], dtype: Any = "float32") -> Array:
        """Make an array in memory that all ranks of the host share; its values are undefined.

        It is a NumPy array like any other, and operations read it without a copy into the segment.
        ``dtype``: any that collectives take, also its name ("bfloat16") or torch's. Each rank
        makes its own, in any order; nobody waits. The memory is this rank's alone to hand out
        (JETSTREAM_HEAP_BYTES), is touched here, page by page, and goes back when the array and all
        its views are gone, which may be after ``close``. Any thread may call it at any time.

        Raises ArgumentError, OutOfMemoryError (a MemoryError; nothing is lost).
        """
        return new_array(self._launcher.handle(), shape, dtype, zeroed=False)

    def zeros(self, shape: int | Sequence[int], dtype: Any = "float32") -> Array:
        """Make an array as ``empty`` does, filled with zeros."""
        return new_array(self._launcher.handle(), shape, dtype, zeroed=True)

    @property
    def heap(self) -> HeapUsage:
        """How much of this rank's symmetric memory is used, and how much is left."""
        with self._launcher.held() as handle:
            return heap_usage(handle)

    # --- groups --------------------------------------------------------------------------------

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Make a communicator of the ranks that give the same ``color``; all ranks must call it.

        Its ranks are in the order of ``key``, then of the rank here. A rank with a ``color`` of
        None or below zero joins none, and gets None. The new communicator is independent: it may
        be used by another thread, fails alone, and may be closed before or after this one. The
        timeout is taken over. Its memory comes from the heap of its rank 0.

        Raises ArgumentError, and on all ranks of a group OutOfMemoryError where there is no room.
        """
        self._launcher.require_live("split")
        self._launcher.handle()
        endpoint = split(self, self._endpoint, color, key)
        return None if endpoint is None else self._child(endpoint)

    def dup(self) -> Communicator:
        """Make a communicator of the same ranks; all ranks must call it.

        Messages and collectives of the two never meet. Raises what ``split`` raises.
        """
        child = self.split(0, self.rank)
        assert child is not None
        return child

    def open_group(self, members: Sequence[int], exchange: Exchange) -> Communicator:
        """Make a communicator of ``members``, ranks of this one, in this order.

        As MPI_Comm_create_group: only they call it, in any order with what others do here. They
        hear of each other through ``exchange(*values)``, which returns the integers of all members,
        by rank, and is called twice. Raises what ``split`` raises, and what ``exchange`` raises.
        """
        self._launcher.require_live("open_group")
        self._launcher.handle()
        if self.rank not in members:
            raise ArgumentError(f"open_group: rank {self.rank} is not in members {list(members)}")
        endpoint = open_group(self._endpoint, self.rank, members, exchange)
        assert endpoint is not None
        return self._child(endpoint)

    def _child(self, endpoint: Endpoint) -> Communicator:
        """The communicator of an endpoint whose members are ranks of this one."""
        members = [self._endpoint.members.index(job_rank) for job_rank in endpoint.members]
        hosts = tuple(self.hosts[member] for member in members)
        rank = members.index(self.rank)
        child = Communicator(
            endpoint,
            rank,
            len(members),
            local_rank=hosts[:rank].count(hosts[rank]),
            hosts=hosts,
            config=self._config,
        )
        child.timeout = self.timeout
        return child

    # --- watching ------------------------------------------------------------------------------

    @property
    def last_op(self) -> OperationRecord | None:
        """The record of this rank's last finished collective; None before the first.

        While another thread is inside, such as the ticker, it may be the record before that.
        """
        record = ffi.new("js_record *")
        with self._launcher.held() as handle:
            status = lib.js_comm_last_record(handle, record)
        return from_native(record) if status == lib.JS_OK else None

    def records(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """The last collectives of this rank, oldest first: ``jetstream.records.RECORD_DTYPE``."""
        with self._launcher.held() as handle:
            return view_ring(lib.js_comm_records(handle), lib.js_comm_record_slots(handle))

    def counters(self, rank: int | None = None) -> dict[str, int]:
        """Counters of a rank (default: this one) by name; ``docs/data-plane.md`` lists them."""
        names = _names(lib.js_counter_name)
        values = ffi.new("uint64_t[]", len(names))
        chosen = self.rank if rank is None else check_rank(rank, self.size, "rank")
        with self._launcher.held() as handle:
            check(lib.js_comm_counters(handle, chosen, values, len(names)))
        return dict(zip(names, values, strict=True))

    def peer_counters(self, rank: int) -> dict[str, int]:
        """What the connection with a rank on another host has counted, by name.

        Frames, bytes, repeats, duplicates, refused frames by reason, and round-trip times in ns;
        ``docs/reliability.md`` lists them. Raises ArgumentError for a rank of this host.
        """
        names = _names(lib.js_peer_counter_name)
        values = ffi.new("uint64_t[]", len(names))
        chosen = check_rank(rank, self.size, "rank")
        with self._launcher.held() as handle:
            check(lib.js_comm_peer_counters(handle, chosen, values, len(names)))
        return dict(zip(names, values, strict=True))

    def link_counters(self) -> dict[str, int]:
        """What the link to other hosts has counted, by name; empty where there is none.

        ``refused_...`` are frames that were damaged or meant for nobody here, by reason.
        """
        if len(set(self.host_index)) == 1:
            return {}
        stats = ffi.new("js_link_stats *")
        refused = ffi.new("uint64_t[]", lib.JS_WIRE_REASONS)
        with self._launcher.held() as handle:
            check(lib.js_comm_link_stats(handle, stats))
            check(lib.js_comm_refused(handle, refused, len(refused)))
        fields = ffi.typeof("js_link_stats").fields
        reasons = {
            f"refused_{text_of(lib.js_wire_reason_name(reason))}": int(refused[reason])
            for reason in range(lib.JS_WIRE_OK + 1, lib.JS_WIRE_KEY)
        }
        return {name: int(getattr(stats, name)) for name, _ in fields} | reasons

    def rail_counters(self) -> dict[str, dict[str, int]]:
        """What each of several links to other hosts has counted, by its name and by counter.

        Empty where there is none. Names are such as "udp 10.0.0.1:40001 on eth0".
        """
        if len(set(self.host_index)) == 1:
            return {}
        stats = ffi.new("js_link_stats *")
        fields = ffi.typeof("js_link_stats").fields
        name = ffi.new("char **")
        found = {}
        with self._launcher.held() as handle:
            for rail in range(lib.js_comm_rails(handle)):
                check(lib.js_comm_rail_stats(handle, rail, stats, name))
                found[text_of(name[0])] = {field: int(getattr(stats, field)) for field, _ in fields}
        return found

    def time_launches(
        self,
        kind: str,
        x: Any,
        iterations: int,
        *,
        op: str | RedOp = "sum",
        algo: str | None = None,
    ) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Run a collective ``iterations`` times from C; returns the latency of each in ns.

        ``kind``: all_reduce (in place on ``x``, ``op`` and ``algo`` as there) or barrier. All
        ranks must call it alike.
        """
        self._launcher.require_live("time_launches")
        array = share_writable(x, name="x")
        if kind == "all_reduce":
            plan = self._launcher.plan(Kind.ALL_REDUCE, array.dtype, array.size, op=op, algo=algo)
        elif kind == "barrier":
            plan = self._launcher.plan(Kind.BARRIER, NOTHING.dtype, 0)
        else:
            raise ArgumentError(f"time_launches: kind {kind!r} is not all_reduce or barrier")
        latency_ns = np.zeros(iterations, dtype=np.uint64)
        pointer = byte_pointer(array)
        times = ffi.from_buffer("uint64_t[]", latency_ns)
        handle = self._launcher.handle()
        status = lib.js_comm_repeat(handle, plan.id, pointer, pointer, iterations, times)
        if status < 0:
            self._launcher.fail(status)
        return latency_ns

    # --- ending --------------------------------------------------------------------------------

    def abort(self) -> None:
        """Make all present and later operations of every rank fail with an error."""
        self._launcher.abort()

    def close(self) -> None:
        """Leave the communicator, after sends in flight have gone out. Idempotent.

        Raises TimedOutError when they do not go out in time; the communicator is closed all the
        same. Raises BusyError while another thread is inside a call: nothing is closed then. Peers
        that still wait for this rank get PeerClosedError.
        """
        self._launcher.close()
