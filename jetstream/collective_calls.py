"""The collectives of a communicator: arguments in, plan and buffers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jetstream.array_calls import array_call, persistent_call
from jetstream.arrays import forbid_overlap, share_result
from jetstream.call_parts import NOTHING, CallParts, Mode
from jetstream.dtypes import Kind, RedOp
from jetstream.errors import ArgumentError
from jetstream.premultiply import contribution
from jetstream.shapes import (
    check_axis,
    check_counts,
    check_rank,
    choose_output,
    element_counts,
    elements_per_row,
    join_along,
    make_splits,
    new_like,
    split_along,
)
from jetstream.tensors import check_reducible, land, land_twin, plain_twin

__all__ = ["CollectiveCalls"]

# What besides the arrays makes a call that is remembered: the kind's name and other arguments, or,
# for all_reduce, the op alone.
_ALL_GATHER = ("all_gather",)
_ALL_TO_ALL = ("all_to_all",)


class CollectiveCalls(CallParts):
    """What Communicator inherits, and what makes persistent calls out of the same arguments."""

    # --- every rank gets a result --------------------------------------------------------------

    def all_reduce(
        self,
        x: Any,
        op: str | RedOp = "sum",
        *,
        out: Any = None,
        scale: Any = None,
        async_op: bool = False,
        timeout: float | None = None,
        algo: str | None = None,
        chunk_bytes: int | None = None,
    ) -> Any:
        """Combine ``x`` of all ranks element by element; every rank gets the same bits.

        In place when ``out`` is None, else into ``out`` (same number of elements, any shape).
        ``op``: sum, prod, min, max, avg, band, bor, bxor, premul_sum, as far as ``docs/types.md``
        defines it for the element type. premul_sum multiplies this rank's ``x`` by its ``scale``
        first, a number that each rank is free to choose; it takes a copy of ``x`` unless ``out``
        is given. ``algo``: one_shot, two_shot, lend, hierarchical or hierarchical_one_shot
        instead of the choice by size. Returns ``x`` or ``out``; a Work with ``async_op``.
        """
        launcher = self._launcher
        result = x if out is None else out
        is_simple = scale is None and algo is None and chunk_bytes is None
        is_plain = is_simple and timeout is None and not async_op
        if async_op and is_simple:
            work = launcher.repeat_start(op, x, result, "all_reduce")
            if work is not None:
                return work
        elif is_plain:  # as Launcher.repeat, without its call
            try:
                table = launcher.tables[op]
            except (KeyError, TypeError):
                table = None
            if table is not None:
                try:
                    status = array_call(table, id(x), 0 if out is None else id(out))
                    if status == 0 or launcher.resume(status):
                        return result
                except BaseException as error:
                    launcher.interrupt(error)
                    raise
        check_reducible(x)
        if is_plain and out is None and not launcher.is_fixed:
            twin = plain_twin(x, "x")
            if twin is not None:  # which goes the short way
                return land_twin(self.all_reduce(twin, op), x)
        if out is None:
            source = target = share_result(x, name="x")
        else:
            source = launcher.share_input(x)
            target, _ = choose_output(x, out, source.size, source, source.shape)
            forbid_overlap(source, target, same=(source, target))
        plan = launcher.plan(
            Kind.ALL_REDUCE, source.dtype, source.size, op=op, algo=algo, chunk_bytes=chunk_bytes
        )
        own = contribution(op, scale, source, target)
        key = op if is_simple else None
        mode = Mode("all_reduce", async_op, timeout, chunk_bytes, key=key, x=x)
        return self._finish(plan, own, target, result, mode)

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
        is_plain = axis == 0 and counts is None and chunk_bytes is None
        is_plain = is_plain and timeout is None and not async_op
        if is_plain:
            out = new_like(x, self.size, 1) if out is None else out
            if self._launcher.repeat(_ALL_GATHER, x, out):
                return out
        key = _ALL_GATHER if is_plain else None
        mode = Mode("all_gather", async_op, timeout, chunk_bytes, key=key, x=x)
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
        is_plain = axis == 0 and counts is None and chunk_bytes is None
        is_plain = is_plain and scale is None and timeout is None and not async_op
        key = ("reduce_scatter", op) if is_plain else None
        if is_plain:
            out = new_like(x, 1, self.size) if out is None else out
            if self._launcher.repeat(key, x, out):
                return out
        mode = Mode("reduce_scatter", async_op, timeout, chunk_bytes, scale, key, x)
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
        is_plain = axis == 0 and input_splits is output_splits is None
        is_plain = is_plain and chunk_bytes is None and timeout is None and not async_op
        if is_plain:
            out = new_like(x, 1, 1) if out is None else out
            if self._launcher.repeat(_ALL_TO_ALL, x, out):
                return out
        key = _ALL_TO_ALL if is_plain else None
        mode = Mode("all_to_all", async_op, timeout, chunk_bytes, key=key, x=x)
        source = self._launcher.share_input(x)
        axis = check_axis(axis, source)
        self._forbid_async(mode, axis)
        row_elements = elements_per_row(source, axis)
        has_splits = input_splits is not None or output_splits is not None
        sent = self._sent_rows(source, axis, input_splits)
        received = self._received_rows(out, axis, output_splits) if has_splits else sent
        splits = make_splits(sent, received, row_elements, self.rank) if has_splits else None
        shape = (*source.shape[:axis], sum(received), *source.shape[axis + 1 :])
        total = sum(received) * row_elements
        target, result = choose_output(x, out, total, source, shape)
        count = 0 if has_splits else source.size // self.size
        plan = self._launcher.plan(
            Kind.ALL_TO_ALL, source.dtype, count, chunk_bytes=chunk_bytes, splits=splits
        )
        if axis != 0:  # the parts must lie one after another
            flat = np.empty(total, source.dtype)
            self._finish(plan, split_along(source, sent, axis), flat, None, mode)
            target.reshape(shape)[...] = join_along(flat, received, source.shape, axis)
            return land(target, result)
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
        mode = Mode("scan", async_op, timeout, chunk_bytes, scale)
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
        mode = Mode("exscan", async_op, timeout, chunk_bytes, scale)
        return self._prefix(Kind.EXSCAN, x, out, op, mode)

    def barrier(self, *, async_op: bool = False, timeout: float | None = None) -> Any:
        """Return when every rank has entered the barrier."""
        launcher = self._launcher
        is_plain = timeout is None and not async_op
        if is_plain and (call := launcher.barrier_call) is not None:
            try:
                status = persistent_call(call)
                if status != 0:
                    launcher.finish(call, status)
                return None
            except BaseException as error:
                launcher.interrupt(error)
                raise
        plan = launcher.plan(Kind.BARRIER, NOTHING.dtype, 0)
        launcher.prepare_barrier(plan, NOTHING)
        mode = Mode("barrier", async_op, timeout, None)
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
        """Copy ``x`` of rank ``root`` into ``x`` of every rank, in place; returns ``x``.

        That of the root is only read, and may have any layout.
        """
        is_plain = timeout is None and chunk_bytes is None and not async_op
        key = ("broadcast", root) if is_plain else None
        if is_plain and self._launcher.repeat(key, x, x):
            return x
        root = check_rank(root, self.size, "root")
        is_root = self.rank == root
        see = self._launcher.share_input if is_root else share_result
        array = see(x, name="x")
        plan = self._launcher.plan(
            Kind.BROADCAST, array.dtype, array.size, root=root, chunk_bytes=chunk_bytes
        )
        mode = Mode("broadcast", async_op, timeout, chunk_bytes, key=key, x=x, is_read=is_root)
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
        is_root = self.rank == root
        is_plain = scale is None and algo is None and chunk_bytes is None
        is_plain = is_plain and timeout is None and not async_op
        key = ("reduce", op, root) if is_plain else None
        result = (x if out is None else out) if is_root else None
        if is_plain and self._launcher.repeat(key, x, result if is_root else NOTHING):
            return result
        root = check_rank(root, self.size, "root")
        check_reducible(x)
        see = share_result if is_root and out is None else self._launcher.share_input
        source = see(x, name="x")
        target = NOTHING
        if is_root:
            target = source
            if out is not None:
                target, _ = choose_output(x, out, source.size, source, source.shape)
                forbid_overlap(source, target, same=(source, target))
        plan = self._launcher.plan(
            Kind.REDUCE, source.dtype, source.size,
            op=op, root=root, algo=algo, chunk_bytes=chunk_bytes,
        )  # fmt: skip
        source = contribution(op, scale, source, target if is_root else None)
        mode = Mode("reduce", async_op, timeout, chunk_bytes, key=key, x=x)
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
        mode = Mode("gather", async_op, timeout, chunk_bytes)
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
        mode = Mode("scatter", async_op, timeout, chunk_bytes)
        if self.rank == root:
            return self._spread(Kind.SCATTER, x, out, axis, counts, ("sum", root), mode)
        if out is None:
            raise ArgumentError("scatter: out is needed on every rank but the root")
        target = share_result(out, name="out")
        axis = check_axis(axis, target)
        elements: tuple[int, ...] = ()
        if counts is not None:
            rows = check_counts(counts, self.size)
            self._check_own_rows(target, axis, rows, "out")
            elements = element_counts(rows, elements_per_row(target, axis))
        plan = self._launcher.plan(
            Kind.SCATTER, target.dtype, sum(elements) if elements else target.size,
            root=root, chunk_bytes=chunk_bytes, counts=elements,
        )  # fmt: skip
        return self._finish(plan, NOTHING, target, out, mode)
