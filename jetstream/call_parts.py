"""What the collectives have in common: from arguments to a plan and its buffers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jetstream.arrays import Array, forbid_overlap, share, share_result
from jetstream.dtypes import Kind, RedOp, redop_of
from jetstream.errors import ArgumentError
from jetstream.launcher import Launcher
from jetstream.plans import Plan
from jetstream.premultiply import contribution
from jetstream.shapes import (
    check_axis,
    check_counts,
    choose_output,
    divide,
    element_counts,
    elements_per_row,
    join_along,
    split_along,
)
from jetstream.tensors import check_reducible, is_plain, is_tensor, land

__all__ = ["NOTHING", "CallParts", "Mode"]

#: The buffer of a rank that has none.
NOTHING: Array = np.empty(0, dtype=np.uint8)


class Mode(NamedTuple):
    """How a call is to be carried out."""

    what: str
    async_op: bool
    timeout: float | None
    chunk_bytes: int | None
    scale: Any = None  # of a premultiplied sum
    key: Hashable = None  # under which the call is remembered; None: it is not
    x: Any = None  # then: what the caller passed as input; None: this rank has none
    is_read: bool = False  # what the caller gets is the input, and nothing is written to it


def _land(target: Array, result: Any, _nbytes: int) -> Any:
    """What is left to do when an operation is complete."""
    return land(target, result)


class CallParts:
    """``rank``, ``size`` and the launcher are the communicator's."""

    rank: int
    size: int
    _launcher: Launcher

    def _finish(self, plan: Plan, source: Array, target: Array, result: Any, mode: Mode) -> Any:
        """Carry a call out. ``result``, what the caller gets, is where ``target`` comes from."""
        launcher = self._launcher
        is_direct = mode.is_read or not is_tensor(result) or is_plain(result)
        if is_direct and mode.key is not None:  # all is well with the arguments
            known = target if result is None else result
            launcher.remember(mode.key, mode.x, known, plan, source.itemsize)
        if is_direct:
            if mode.async_op:
                return launcher.start(plan, source, target, result, mode.what)
            return launcher.run(plan, source, target, result, mode.timeout)
        if launcher.is_fixed:
            raise ArgumentError(
                f"{mode.what}: the result would go into a copy of a tensor that is not contiguous; "
                "a call with fixed arrays needs a contiguous one"
            )
        if mode.async_op:
            finish = partial(_land, target, result)
            return launcher.start(plan, source, target, result, mode.what, finish)
        launcher.run(plan, source, target, result, mode.timeout)
        return land(target, result)

    def _collect(
        self,
        kind: Kind,
        x: Any,
        out: Any,
        axis: int,
        counts: Sequence[int] | None,
        root: int | None,
        mode: Mode,
    ) -> Any:
        """all_gather, and gather where there is a root."""
        source = self._launcher.share_input(x)
        axis = check_axis(axis, source)
        self._forbid_async(mode, axis)
        if counts is None:
            rows = (source.shape[axis] if source.ndim else 1,) * self.size
        else:
            rows = check_counts(counts, self.size)
            self._check_own_rows(source, axis, rows, "x")
        row_elements = elements_per_row(source, axis)
        shape = (*source.shape[:axis], sum(rows), *source.shape[axis + 1 :])
        total = sum(rows) * row_elements
        target = NOTHING
        if root is None or self.rank == root:
            target, result = choose_output(x, out, total, source, shape)
        elements = element_counts(rows, row_elements)
        plan = self._launcher.plan(
            kind, source.dtype, sum(elements) if elements else source.size,
            root=root or 0, chunk_bytes=mode.chunk_bytes, counts=elements,
        )  # fmt: skip
        if target is NOTHING:
            return self._finish(plan, source, target, None, mode)
        if axis != 0:  # the parts come one after another
            flat = np.empty(total, source.dtype)
            self._finish(plan, source, flat, None, mode)
            target.reshape(shape)[...] = join_along(flat, rows, source.shape, axis)
            return land(target, result)
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
        mode: Mode,
    ) -> Any:
        """reduce_scatter, and scatter on its root."""
        if kind is Kind.REDUCE_SCATTER:
            check_reducible(x)
        source = self._launcher.share_input(x)
        axis = check_axis(axis, source)
        if self._launcher.is_fixed:
            self._forbid_async(mode, axis)
        rows = self._divided_rows(source, axis, counts, "counts", mode.what)
        row_elements = elements_per_row(source, axis)
        shape = (*source.shape[:axis], rows[self.rank], *source.shape[axis + 1 :])
        own_elements = rows[self.rank] * row_elements
        if axis != 0:  # the parts must lie one after another
            source = split_along(source, rows, axis)
        target, result = choose_output(x, out, own_elements, source, shape)
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
        return self._finish(plan, source, target, result, mode)

    def _prefix(self, kind: Kind, x: Any, out: Any, op: str | RedOp, mode: Mode) -> Any:
        """Scan and exscan."""
        if redop_of(op) is RedOp.AVG:
            raise ArgumentError(f"{mode.what}: op 'avg' is not defined for a prefix")
        check_reducible(x)
        if out is None:
            source = target = share_result(x, name="x")
        else:
            source = self._launcher.share_input(x)
            target, _ = choose_output(x, out, source.size, source, source.shape)
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

    def _forbid_async(self, mode: Mode, axis: int) -> None:
        if axis != 0 and mode.async_op:
            raise ArgumentError(f"{mode.what}: async_op needs axis=0")
        if axis != 0 and self._launcher.is_fixed:
            raise ArgumentError(f"{mode.what}: a call with fixed arrays needs axis=0")
