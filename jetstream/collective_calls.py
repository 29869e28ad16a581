"""The collectives of a communicator, but for all_reduce: arguments in, plan and buffers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jetstream.arrays import Array, forbid_overlap, share, share_contiguous, share_writable, unshare
from jetstream.dtypes import Kind, RedOp, redop_of
from jetstream.errors import ArgumentError
from jetstream.launcher import Launcher
from jetstream.premultiply import contribution
from jetstream.shapes import (
    check_axis,
    check_counts,
    check_rank,
    choose_output,
    divide,
    element_counts,
    join_along,
    make_splits,
    split_along,
)

__all__ = ["NOTHING", "CollectiveCalls"]

#: The buffer of a rank that has none.
NOTHING: Array = np.empty(0, dtype=np.uint8)


class _Mode(NamedTuple):
    """How a call is to be carried out."""

    what: str
    async_op: bool
    timeout: float | None
    chunk_bytes: int | None
    scale: Any = None  # of a premultiplied sum


class CollectiveCalls:
    """What Communicator inherits; ``rank``, ``size`` and the launcher are the communicator's."""

    rank: int
    size: int
    _launcher: Launcher

    # --- every rank gets a result --------------------------------------------------------------

    def all_gather(
        self,
        x: Any,
        *,
        out: Any = None,
        axis: int = 0,
        counts: Sequence[int] | None = None,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Concatenate the ranks' arrays along ``axis``, in rank order.

        ``x`` of shape (n, ...) gives (size * n, ...); a 0-d array gives (size,). With ``counts``,
        the same on all ranks, rank r has ``counts[r]`` rows along ``axis``; without, all shapes are
        equal. ``out`` may have any shape with the right number of elements; ``x`` may be this
        rank's part of it. An asynchronous one needs axis 0.
        """
        mode = _Mode("all_gather", async_op, timeout, chunk_bytes)
        return self._collect(Kind.ALL_GATHER, x, out, axis, counts, None, mode)

    def reduce_scatter(
        self,
        x: Any,
        op: str | RedOp = "sum",
        *,
        out: Any = None,
        axis: int = 0,
        counts: Sequence[int] | None = None,
        scale: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Combine ``x`` of all ranks and keep this rank's part along ``axis``.

        ``x`` of shape (size * n, ...) gives (n, ...): part r of the result goes to rank r. With
        ``counts``, the same on all ranks, part r has ``counts[r]`` rows. ``out`` may have any shape
        with the right number of elements; it may be this rank's part of x. ``op`` and ``scale`` as
        in ``all_reduce``.
        """
        mode = _Mode("reduce_scatter", async_op, timeout, chunk_bytes, scale)
        return self._spread(Kind.REDUCE_SCATTER, x, out, axis, counts, (op, 0), mode)

    def all_to_all(
        self,
        x: Any,
        *,
        out: Any = None,
        axis: int = 0,
        input_splits: Sequence[int] | None = None,
        output_splits: Sequence[int] | None = None,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Send part j of ``x`` along ``axis`` to rank j; get the ranks' parts, in rank order.

        ``x`` of shape (size * n, ...) gives the same shape; in place with ``out=x``. With splits,
        which all ranks or none must pass, ``input_splits[j]`` rows go to rank j and
        ``output_splits[j]`` rows come from it; None stands for equal parts of ``x`` or of ``out``.
        They cannot be done in place. Where rank j sends another number of elements than this one
        awaits, both get MismatchError with the two numbers: the receiver in this call, the sender
        in this call or its next. An asynchronous one needs axis 0.
        """
        mode = _Mode("all_to_all", async_op, timeout, chunk_bytes)
        source = share_contiguous(x)
        axis = check_axis(axis, source)
        self._forbid_async(mode, axis)
        row_elements = _row_elements(source, axis)
        has_splits = input_splits is not None or output_splits is not None
        sent = self._sent_rows(source, axis, input_splits)
        received = self._received_rows(out, axis, output_splits) if has_splits else sent
        splits = make_splits(sent, received, row_elements, self.rank) if has_splits else None
        shape = (*source.shape[:axis], sum(received), *source.shape[axis + 1 :])
        total = sum(received) * row_elements
        target = choose_output(out, total, source, shape)
        result = out if out is not None else unshare(target, x)
        count = 0 if has_splits else source.size // self.size
        plan = self._launcher.plan(
            Kind.ALL_TO_ALL, source.dtype, count, chunk_bytes=chunk_bytes, splits=splits
        )
        if axis != 0:  # the parts must lie one after another
            flat = np.empty(total, source.dtype)
            self._finish(plan, split_along(source, sent, axis), flat, None, mode)
            target.reshape(shape)[...] = join_along(flat, received, source.shape, axis)
            return result
        if has_splits and out is not None and np.may_share_memory(source, target):
            raise ArgumentError(
                "all_to_all with splits cannot be done in place: input and output overlap, pass "
                "separate arrays"
            )
        forbid_overlap(source, target, same=(source, target))
        return self._finish(plan, source, target, result, mode)

    def scan(
        self,
        x: Any,
        op: str | RedOp = "sum",
        *,
        out: Any = None,
        scale: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Combine ``x`` of the ranks 0 to this one, element by element, in rank order.

        In place when ``out`` is None, else into ``out`` (same number of elements, any shape).
        ``op`` and ``scale`` as in ``all_reduce``, but no avg. Returns ``x`` or ``out``; a Work
        with ``async_op``.
        """
        mode = _Mode("scan", async_op, timeout, chunk_bytes, scale)
        return self._prefix(Kind.SCAN, x, out, op, mode)

    def exscan(
        self,
        x: Any,
        op: str | RedOp = "sum",
        *,
        out: Any = None,
        scale: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Combine ``x`` of the ranks below this one; otherwise as ``scan``.

        Rank 0 has none below it: as in MPI, its ``x`` or ``out`` stays as it is.
        """
        mode = _Mode("exscan", async_op, timeout, chunk_bytes, scale)
        return self._prefix(Kind.EXSCAN, x, out, op, mode)

    def barrier(self, *, async_op: bool = False, timeout: float | None = None) -> Any:
        """Return when every rank has entered the barrier."""
        plan = self._launcher.plan(Kind.BARRIER, NOTHING.dtype, 0)
        mode = _Mode("barrier", async_op, timeout, None)
        return self._finish(plan, NOTHING, NOTHING, None, mode)

    # --- one rank is the root ------------------------------------------------------------------

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
        root = check_rank(root, self.size, "root")
        see = share_contiguous if self.rank == root else share_writable
        array = see(x, name="x")
        plan = self._launcher.plan(
            Kind.BROADCAST, array.dtype, array.size, root=root, chunk_bytes=chunk_bytes
        )
        mode = _Mode("broadcast", async_op, timeout, chunk_bytes)
        return self._finish(plan, array, array, x, mode)

    def reduce(
        self,
        x: Any,
        root: int = 0,
        op: str | RedOp = "sum",
        *,
        out: Any = None,
        scale: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
        algo: str | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Combine ``x`` of all ranks element by element; rank ``root`` gets the result.

        On the root in place when ``out`` is None, else into ``out`` (same number of elements, any
        shape), which is returned. The other ranks' ``x`` does not change, their ``out`` is not
        looked at, and they get None. ``op`` and ``scale`` as in ``all_reduce``; ``algo``:
        direct or two_shot instead of the choice by size.
        """
        root = check_rank(root, self.size, "root")
        is_root = self.rank == root
        source = share_writable(x, name="x") if is_root and out is None else share_contiguous(x)
        target = NOTHING
        if is_root:
            target = source
            if out is not None:
                target = choose_output(out, source.size, source, source.shape)
                forbid_overlap(source, target, same=(source, target))
        plan = self._launcher.plan(
            Kind.REDUCE, source.dtype, source.size,
            op=op, root=root, algo=algo, chunk_bytes=chunk_bytes,
        )  # fmt: skip
        source = contribution(op, scale, source, target if is_root else None)
        result = (x if out is None else out) if is_root else None
        mode = _Mode("reduce", async_op, timeout, chunk_bytes)
        return self._finish(plan, source, target, result, mode)

    def gather(
        self,
        x: Any,
        root: int = 0,
        *,
        out: Any = None,
        axis: int = 0,
        counts: Sequence[int] | None = None,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Concatenate the ranks' arrays along ``axis`` on rank ``root``, in rank order.

        Shapes, ``counts`` and ``out`` as in ``all_gather``. Ranks other than the root get None,
        and their ``out`` is not looked at.
        """
        root = check_rank(root, self.size, "root")
        mode = _Mode("gather", async_op, timeout, chunk_bytes)
        return self._collect(Kind.GATHER, x, out, axis, counts, root, mode)

    def scatter(
        self,
        x: Any,
        root: int = 0,
        *,
        out: Any = None,
        axis: int = 0,
        counts: Sequence[int] | None = None,
        async_op: bool = False,
        timeout: float | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Send part r of the root's ``x`` along ``axis`` to rank r; returns this rank's part.

        ``x`` of shape (size * n, ...) on the root gives (n, ...); with ``counts``, the same on all
        ranks, part r has ``counts[r]`` rows. The other ranks' ``x`` is not looked at (pass None);
        they need an ``out`` of the part's dtype and number of elements, with ``counts`` of its
        shape. On the root ``out`` may be left out, and may be its own part of ``x``.
        """
        root = check_rank(root, self.size, "root")
        mode = _Mode("scatter", async_op, timeout, chunk_bytes)
        if self.rank == root:
            return self._spread(Kind.SCATTER, x, out, axis, counts, ("sum", root), mode)
        if out is None:
            raise ArgumentError("scatter: out is needed on every rank but the root")
        target = share_writable(out, name="out")
        axis = check_axis(axis, target)
        elements: tuple[int, ...] = ()
        if counts is not None:
            rows = check_counts(counts, self.size)
            self._check_own_rows(target, axis, rows, "out")
            elements = element_counts(rows, _row_elements(target, axis))
        plan = self._launcher.plan(
            Kind.SCATTER, target.dtype, sum(elements) if elements else target.size,
            root=root, chunk_bytes=chunk_bytes, counts=elements,
        )  # fmt: skip
        return self._finish(plan, NOTHING, target, out, mode)

    # --- what they have in common --------------------------------------------------------------

    def _finish(self, plan: int, source: Array, target: Array, result: Any, mode: _Mode) -> Any:
        if mode.async_op:
            return self._launcher.start(plan, source, target, result, mode.what)
        return self._launcher.run(plan, source, target, result, mode.timeout)

    def _collect(
        self,
        kind: Kind,
        x: Any,
        out: Any,
        axis: int,
        counts: Sequence[int] | None,
        root: int | None,
        mode: _Mode,
    ) -> Any:
        """all_gather, and gather where there is a root."""
        source = share_contiguous(x)
        axis = check_axis(axis, source)
        self._forbid_async(mode, axis)
        if counts is None:
            rows = (source.shape[axis] if source.ndim else 1,) * self.size
        else:
            rows = check_counts(counts, self.size)
            self._check_own_rows(source, axis, rows, "x")
        row_elements = _row_elements(source, axis)
        shape = (*source.shape[:axis], sum(rows), *source.shape[axis + 1 :])
        total = sum(rows) * row_elements
        target = NOTHING
        if root is None or self.rank == root:
            target = choose_output(out, total, source, shape)
        elements = element_counts(rows, row_elements)
        plan = self._launcher.plan(
            kind, source.dtype, sum(elements) if elements else source.size,
            root=root or 0, chunk_bytes=mode.chunk_bytes, counts=elements,
        )  # fmt: skip
        if target is NOTHING:
            return self._finish(plan, source, target, None, mode)
        result = out if out is not None else unshare(target, x)
        if axis != 0:  # the parts come one after another
            flat = np.empty(total, source.dtype)
            self._finish(plan, source, flat, None, mode)
            target.reshape(shape)[...] = join_along(flat, rows, source.shape, axis)
            return result
        if out is not None:
            start = sum(rows[: self.rank]) * row_elements
            own = target.reshape(-1)[start : start + source.size]
            forbid_overlap(source, target, same=(source, own))
        return self._finish(plan, source, target, result, mode)

    def _spread(
        self,
        kind: Kind,
        x: Any,
        out: Any,
        axis: int,
        counts: Sequence[int] | None,
        op_and_root: tuple[str | RedOp, int],
        mode: _Mode,
    ) -> Any:
        """reduce_scatter, and scatter on its root."""
        source = share_contiguous(x)
        axis = check_axis(axis, source)
        rows = self._divided_rows(source, axis, counts, "counts", mode.what)
        row_elements = _row_elements(source, axis)
        shape = (*source.shape[:axis], rows[self.rank], *source.shape[axis + 1 :])
        own_elements = rows[self.rank] * row_elements
        if axis != 0:  # the parts must lie one after another
            source = split_along(source, rows, axis)
        target = choose_output(out, own_elements, source, shape)
        if out is not None:
            start = sum(rows[: self.rank]) * row_elements
            own = source.reshape(-1)[start : start + own_elements]
            forbid_overlap(source, target, same=(own, target))
        elements = element_counts(rows, row_elements)
        op, root = op_and_root
        plan = self._launcher.plan(
            kind, source.dtype, sum(elements) if elements else own_elements,
            op=op, root=root, chunk_bytes=mode.chunk_bytes, counts=elements,
        )  # fmt: skip
        source = contribution(op, mode.scale, source)
        result = out if out is not None else unshare(target, x)
        return self._finish(plan, source, target, result, mode)

    def _prefix(self, kind: Kind, x: Any, out: Any, op: str | RedOp, mode: _Mode) -> Any:
        """Scan and exscan."""
        if redop_of(op) is RedOp.AVG:
            raise ArgumentError(f"{mode.what}: op 'avg' is not defined for a prefix")
        if out is None:
            source = target = share_writable(x, name="x")
        else:
            source = share_contiguous(x)
            target = choose_output(out, source.size, source, source.shape)
            forbid_overlap(source, target, same=(source, target))
        plan = self._launcher.plan(
            kind, source.dtype, source.size, op=op, chunk_bytes=mode.chunk_bytes
        )
        own = contribution(op, mode.scale, source)
        return self._finish(plan, own, target, x if out is None else out, mode)

    def _divided_rows(
        self,
        array: Array,
        axis: int,
        counts: Sequence[int] | None,
        name: str,
        what: str,
    ) -> tuple[int, ...]:
        """How many rows of ``array`` belong to each rank."""
        length = array.shape[axis] if array.ndim else 0
        if counts is None or array.ndim == 0:
            return (divide(length, self.size, array, axis, what),) * self.size
        rows = check_counts(counts, self.size, name)
        if sum(rows) != length:
            raise ArgumentError(
                f"{what}: {name} adds up to {sum(rows)}, axis {axis} of shape {array.shape} "
                f"has {length}"
            )
        return rows

    def _sent_rows(self, source: Array, axis: int, splits: Sequence[int] | None) -> tuple[int, ...]:
        return self._divided_rows(source, axis, splits, "input_splits", "all_to_all")

    def _received_rows(self, out: Any, axis: int, splits: Sequence[int] | None) -> tuple[int, ...]:
        if splits is not None:
            return check_counts(splits, self.size, "output_splits")
        if out is None:
            raise ArgumentError("all_to_all: input_splits without output_splits need an out")
        target = share(out, name="out")
        return self._divided_rows(target, axis, None, "output_splits", "all_to_all: out")

    def _check_own_rows(self, array: Array, axis: int, rows: tuple[int, ...], name: str) -> None:
        length = array.shape[axis] if array.ndim else 1
        if length != rows[self.rank]:
            raise ArgumentError(
                f"counts[{self.rank}] is {rows[self.rank]}, but axis {axis} of {name} with shape "
                f"{array.shape} has {length}"
            )

    def _forbid_async(self, mode: _Mode, axis: int) -> None:
        if mode.async_op and axis != 0:
            raise ArgumentError(f"{mode.what}: async_op needs axis=0")


def _row_elements(array: Array, axis: int) -> int:
    """Elements of one row along ``axis``."""
    return math.prod(array.shape[:axis]) * math.prod(array.shape[axis + 1 :])
