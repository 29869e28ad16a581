"""The communicator: collectives and messages between the ranks of a job."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np

from jetstream._core.endpoint import Endpoint
from jetstream._core.native import check, ffi, lib, text_of
from jetstream.arrays import (
    Array,
    empty_like,
    forbid_overlap,
    share,
    share_contiguous,
    share_writable,
    unshare,
)
from jetstream.config import Config
from jetstream.dtypes import Kind, RedOp
from jetstream.errors import ArgumentError, TruncatedError
from jetstream.launcher import Launcher
from jetstream.records import OperationRecord, from_native, view_ring
from jetstream.work import Work

__all__ = ["Communicator"]

_NOTHING: Array = np.empty(0, dtype=np.uint8)
_TAG_MAX = 2**32 - 1


class Communicator:
    """An ordered group of ranks. Made by :func:`jetstream.init`.

    All ranks must call the same collectives with the same arguments in the same order; each call
    is checked, and a difference raises MismatchError on every rank with both calls in its text.
    A failed collective makes the communicator unusable on all ranks. One thread at a time may be
    inside a call; a second one gets BusyError.

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

    # --- collectives ------------------------------------------------------------------------

    def all_reduce(
        self,
        x: Any,
        op: str | RedOp = "sum",
        *,
        out: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
        algo: str | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Combine ``x`` of all ranks element by element; every rank gets the same bits.

        In place when ``out`` is None, else into ``out`` (same number of elements, any shape).
        ``op``: sum, prod, min, max, avg. ``algo``: one_shot or two_shot instead of the choice by
        size. Returns ``x`` or ``out``; a Work with ``async_op``.
        """
        launcher = self._launcher
        if type(x) is np.ndarray and out is None and x.flags.carray and not async_op:
            plan = launcher.hot.get((op, x.dtype, x.size, algo, chunk_bytes))
            if plan is not None:
                launcher.run_in_place(plan, x, timeout)
                return x
        if out is None:
            source = target = share_writable(x, name="x")
        else:
            source = share_contiguous(x)
            target = self._output(out, source.size, source, source.shape)
            forbid_overlap(source, target, same=(source, target))
        plan = launcher.plan(
            Kind.ALL_REDUCE, source.dtype, source.size, op=op, algo=algo, chunk_bytes=chunk_bytes
        )
        launcher.hot[op, source.dtype, source.size, algo, chunk_bytes] = plan
        mode = ("all_reduce", async_op, timeout)
        return self._finish(plan, source, target, x if out is None else out, mode)

    def all_gather(
        self,
        x: Any,
        *,
        out: Any = None,
        axis: int = 0,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Concatenate the ranks' arrays along ``axis``, in rank order; all shapes are equal.

        ``x`` of shape (n, ...) gives (size * n, ...); a 0-d array gives (size,). ``out`` may have
        any shape with size times the elements; ``x`` may be this rank's part of it.
        """
        source = share_contiguous(x)
        axis = self._axis(axis, source)
        if axis != 0:
            if async_op:
                raise ArgumentError("all_gather: async_op needs axis=0")
            parts = self.all_gather(source.reshape(-1), timeout=timeout, chunk_bytes=chunk_bytes)
            return self._join_parts(parts.reshape(self.size, *source.shape), x, out, axis)
        shape = (self.size * source.shape[0], *source.shape[1:]) if source.ndim else (self.size,)
        target = self._output(out, self.size * source.size, source, shape)
        if out is not None:
            own = target.reshape(-1)[self.rank * source.size : (self.rank + 1) * source.size]
            forbid_overlap(source, target, same=(source, own))
        plan = self._launcher.plan(
            Kind.ALL_GATHER, source.dtype, source.size, chunk_bytes=chunk_bytes
        )
        result = out if out is not None else unshare(target, x)
        return self._finish(plan, source, target, result, ("all_gather", async_op, timeout))

    def reduce_scatter(
        self,
        x: Any,
        op: str | RedOp = "sum",
        *,
        out: Any = None,
        axis: int = 0,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Combine ``x`` of all ranks and keep this rank's part along ``axis``.

        ``x`` of shape (size * n, ...) gives (n, ...): part r of the result goes to rank r.
        ``out`` may have any shape with x.size / size elements; it may be this rank's part of x.
        """
        source = share_contiguous(x)
        axis = self._axis(axis, source)
        if source.ndim == 0 or source.shape[axis] % self.size != 0:
            raise ArgumentError(
                f"reduce_scatter: axis {axis} of shape {source.shape} cannot be split into "
                f"{self.size} equal parts"
            )
        if axis != 0:  # the parts must lie one after another
            source = np.concatenate([p.reshape(-1) for p in np.split(source, self.size, axis)])
        shape = list(share(x).shape)
        shape[axis] //= self.size
        count = source.size // self.size
        target = self._output(out, count, source, tuple(shape))
        if out is not None:
            own = source.reshape(-1)[self.rank * count : (self.rank + 1) * count]
            forbid_overlap(source, target, same=(own, target))
        plan = self._launcher.plan(
            Kind.REDUCE_SCATTER, source.dtype, count, op=op, chunk_bytes=chunk_bytes
        )
        result = out if out is not None else unshare(target, x)
        return self._finish(plan, source, target, result, ("reduce_scatter", async_op, timeout))

    def broadcast(
        self,
        x: Any,
        root: int = 0,
        *,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Copy ``x`` of rank ``root`` into ``x`` of every rank, in place; returns ``x``."""
        root = self._rank(root, "root")
        see = share_contiguous if self.rank == root else share_writable
        array = see(x, name="x")
        plan = self._launcher.plan(
            Kind.BROADCAST, array.dtype, array.size, root=root, chunk_bytes=chunk_bytes
        )
        return self._finish(plan, array, array, x, ("broadcast", async_op, timeout))

    def barrier(self, *, async_op: bool = False, timeout: float | None = None) -> Any:
        """Return when every rank has entered the barrier."""
        plan = self._launcher.plan(Kind.BARRIER, _NOTHING.dtype, 0)
        return self._finish(plan, _NOTHING, _NOTHING, None, ("barrier", async_op, timeout))

    # --- messages ------------------------------------------------------------------------------

    def send(self, x: Any, dst: int, tag: int = 0, *, timeout: float | None = None) -> None:
        """Send ``x`` to rank ``dst``; returns when ``x`` may be changed again."""
        self._launcher.finish_message(self.isend(x, dst, tag), timeout)

    def recv(self, out: Any, src: int, tag: int = 0, *, timeout: float | None = None) -> Any:
        """Receive into ``out`` from rank ``src``; returns ``out``.

        Messages of one sender with one tag arrive in the order in which they were sent. Raises
        TruncatedError when the message has not exactly the size of ``out``. After a timeout
        with nothing received the communicator can still be used.
        """
        return self._launcher.finish_message(self.irecv(out, src, tag), timeout)

    def isend(self, x: Any, dst: int, tag: int = 0) -> Work:
        """Start to send; ``x`` must not change before the Work is complete."""
        target = self._rank(dst, "dst")
        return self._launcher.send(share_contiguous(x), target, self._tag(tag))

    def irecv(self, out: Any, src: int, tag: int = 0) -> Work:
        """Start to receive; ``out`` must not be touched before the Work is complete."""
        source = self._rank(src, "src")
        array = share_writable(out, name="out")

        def finish(nbytes: int) -> Any:
            if nbytes != array.nbytes:
                raise TruncatedError(
                    f"the message from rank {src} has {nbytes} bytes, out has {array.nbytes}: "
                    "pass an array of the message's size",
                    status="JS_ERR_TRUNCATED",
                )
            return out

        return self._launcher.receive(array, source, self._tag(tag), finish)

    # --- watching ------------------------------------------------------------------------------

    @property
    def last_op(self) -> OperationRecord | None:
        """The record of this rank's last finished collective; None before the first."""
        record = ffi.new("js_record *")
        if lib.js_comm_last_record(self._launcher.handle(), record) != lib.JS_OK:
            return None
        return from_native(record)

    def records(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """The last collectives of this rank, oldest first: ``jetstream.records.RECORD_DTYPE``."""
        return view_ring(lib.js_comm_records(self._launcher.handle()))

    def counters(self, rank: int | None = None) -> dict[str, int]:
        """Counters of a rank (default: this one) by name; ``docs/data-plane.md`` lists them."""
        names: list[str] = []
        while (name := lib.js_counter_name(len(names))) != ffi.NULL:
            names.append(text_of(name).removeprefix("JS_COUNTER_").lower())
        values = ffi.new("uint64_t[]", len(names))
        chosen = self.rank if rank is None else self._rank(rank, "rank")
        check(lib.js_comm_counters(self._launcher.handle(), chosen, values, len(names)))
        return dict(zip(names, values, strict=True))

    def time_launches(
        self, kind: str, x: Any, iterations: int, *, op: str | RedOp = "sum"
    ) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Run a collective ``iterations`` times from C; returns the latency of each in ns.

        ``kind``: all_reduce (in place on ``x``) or barrier. All ranks must call it alike.
        """
        array = share_writable(x, name="x")
        if kind == "all_reduce":
            plan = self._launcher.plan(Kind.ALL_REDUCE, array.dtype, array.size, op=op)
        elif kind == "barrier":
            plan = self._launcher.plan(Kind.BARRIER, _NOTHING.dtype, 0)
        else:
            raise ArgumentError(f"time_launches: kind {kind!r} is not all_reduce or barrier")
        latency_ns = np.zeros(iterations, dtype=np.uint64)
        self._launcher.time_launches(plan, array, latency_ns)
        return latency_ns

    # --- ending --------------------------------------------------------------------------------

    def abort(self) -> None:
        """Make all present and later operations of every rank fail with an error."""
        self._launcher.abort()

    def close(self) -> None:
        """Leave the communicator, after sends in flight have gone out. Idempotent.

        Raises TimedOutError when they do not go out in time; the communicator is closed all the
        same. Peers that still wait for this rank get PeerClosedError.
        """
        self._launcher.close()

    # --- checks --------------------------------------------------------------------------------

    def _finish(
        self,
        plan: int,
        source: Array,
        target: Array,
        result: Any,
        mode: tuple[str, bool, float | None],
    ) -> Any:
        what, is_async, timeout = mode
        if is_async:
            return self._launcher.start(plan, source, target, result, what)
        return self._launcher.run(plan, source, target, result, timeout)

    def _join_parts(self, parts: Array, x: Any, out: Any, axis: int) -> Any:
        """Ranks' arrays, stacked in ``parts``, one after another along ``axis``."""
        joined = np.concatenate(list(parts), axis=axis)
        if out is None:
            return unshare(joined, x)
        target = self._output(out, joined.size, joined, joined.shape)
        target.reshape(-1)[:] = joined.reshape(-1)
        return out

    def _rank(self, rank: int, name: str) -> int:
        if not isinstance(rank, (int, np.integer)) or not 0 <= rank < self.size:
            raise ArgumentError(f"{name} is {rank!r}: a rank from 0 to {self.size - 1} is needed")
        return int(rank)

    def _tag(self, tag: int) -> int:
        if not isinstance(tag, (int, np.integer)) or not 0 <= tag <= _TAG_MAX:
            raise ArgumentError(f"tag is {tag!r}: an integer from 0 to {_TAG_MAX} is needed")
        return int(tag)

    def _axis(self, axis: int, array: Array) -> int:
        limit = max(array.ndim, 1)
        if not isinstance(axis, (int, np.integer)) or not -limit <= axis < limit:
            raise ArgumentError(f"axis {axis!r} does not exist in an array of shape {array.shape}")
        return int(axis) % limit

    def _output(self, out: Any, size: int, source: Array, shape: tuple[int, ...]) -> Array:
        """The array that takes the result, new if ``out`` is None."""
        if out is None:
            return empty_like(source, shape)
        target = share_writable(out, name="out")
        if target.dtype != source.dtype:
            raise ArgumentError(f"out has dtype {target.dtype}, the input {source.dtype}")
        if target.size != size:
            raise ArgumentError(f"out has {target.size} elements, the result has {size}")
        return target
