"""What the arguments of a call say about shapes: checked here, before anything is sent.

All functions raise ArgumentError, with a text that says what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jetstream.arrays import Array, share, share_result
from jetstream.collectives.parts import SPLIT_MAX, Splits
from jetstream.errors import ArgumentError
from jetstream.tensors import check_same_dtype, is_tensor, new_tensor

__all__ = [
    "TAG_MAX",
    "check_axis",
    "check_counts",
    "check_rank",
    "check_tag",
    "choose_output",
    "divide",
    "element_counts",
    "elements_per_row",
    "join_along",
    "make_splits",
    "new_like",
    "split_along",
]

TAG_MAX = 2**32 - 1
_FIRST = 0


def check_rank(rank: int, size: int, name: str) -> int:
    """``rank`` as an int from 0 to size - 1."""
    if not isinstance(rank, (int, np.integer)) or not 0 <= rank < size:
        raise ArgumentError(f"{name} is {rank!r}: a rank from 0 to {size - 1} is needed")
    return int(rank)


def check_tag(tag: int) -> int:
    """``tag`` as an int of 32 bits."""
    if not isinstance(tag, (int, np.integer)) or not 0 <= tag <= TAG_MAX:
        raise ArgumentError(f"tag is {tag!r}: an integer from 0 to {TAG_MAX} is needed")
    return int(tag)


def check_axis(axis: int, array: Array) -> int:
    """``axis`` of ``array`` as an int that is not negative; a 0-d array has axis 0."""
    if axis is _FIRST:  # what nearly every call passes
        return 0
    limit = max(array.ndim, 1)
    if not isinstance(axis, (int, np.integer)) or not -limit <= axis < limit:
        raise ArgumentError(f"axis {axis!r} does not exist in an array of shape {array.shape}")
    return int(axis) % limit


def elements_per_row(array: Array, axis: int) -> int:
    """Elements of one row along ``axis``."""
    return math.prod(array.shape[:axis]) * math.prod(array.shape[axis + 1 :])


def new_like(x: Any, times: int, divisor: int) -> Any:
    """An output for the plain NumPy array or tensor ``x``, with ``times / divisor`` as many rows.

    None for other objects, and for rows that the divisor does not divide.
    """
    is_array = type(x) is np.ndarray
    if not is_array and not is_tensor(x):
        return None
    shape = x.shape
    rows = shape[0] if shape else 1
    if rows % divisor:
        return None
    new_shape = (rows * times // divisor, *shape[1:])
    return np.empty(new_shape, x.dtype) if is_array else new_tensor(x, new_shape)


def choose_output(
    x: Any, out: Any, size: int, source: Array, shape: tuple[int, ...]
) -> tuple[Array, Any]:
    """The array that takes a result of ``size`` elements, and what the caller gets.

    That is ``out``, or a new one of ``shape``, in the kind of the input ``x``; ``source`` is ``x``
    as an array.
    """
    if out is None:
        out = new_tensor(x, shape) if is_tensor(x) else np.empty(shape, source.dtype)
        return share(out), out
    check_same_dtype(x, out)
    target = share_result(out, name="out")
    if target.dtype != source.dtype:
        raise ArgumentError(f"out has dtype {target.dtype}, the input {source.dtype}")
    if target.size != size:
        raise ArgumentError(f"out has {target.size} elements, the result has {size}")
    return target, out


def check_counts(counts: Sequence[int], size: int, name: str = "counts") -> tuple[int, ...]:
    """Numbers of rows, one per rank, zero or more each."""
    try:
        found = tuple(counts)
    except TypeError:
        found = ()
    if len(found) != size:
        raise ArgumentError(f"{name} is {counts!r}: {size} numbers, one per rank, are needed")
    for rank, count in enumerate(found):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 0:
            raise ArgumentError(
                f"{name}[{rank}] is {count!r}: a whole number, zero or more, is needed"
            )
    return tuple(int(count) for count in found)


def element_counts(rows: tuple[int, ...], row_elements: int) -> tuple[int, ...]:
    """Counts in elements, as calls carry them; equal parts have none."""
    counts = tuple(count * row_elements for count in rows)
    return () if len(set(counts)) == 1 else counts


def divide(length: int, size: int, array: Array, axis: int, what: str) -> int:
    """The length of one of ``size`` equal parts of ``array`` along ``axis``."""
    if array.ndim == 0 or length % size != 0:
        raise ArgumentError(
            f"{what}: axis {axis} of shape {array.shape} cannot be split into {size} equal parts"
        )
    return length // size


def split_along(array: Array, rows: tuple[int, ...], axis: int) -> Array:
    """The parts of ``array`` along ``axis``, ``rows`` long, one after another in one dimension."""
    bounds = np.cumsum(rows)[:-1]
    return np.concatenate([part.reshape(-1) for part in np.split(array, bounds, axis)])


def join_along(flat: Array, rows: tuple[int, ...], shape: tuple[int, ...], axis: int) -> Array:
    """Parts that lie one after another in ``flat``, joined along ``axis``.

    Part r is ``rows[r]`` long there, and like ``shape`` otherwise.
    """
    row_elements = math.prod(shape[:axis]) * math.prod(shape[axis + 1 :])
    parts = np.split(flat.reshape(-1), np.cumsum(rows)[:-1] * row_elements)
    shaped = [
        part.reshape(*shape[:axis], count, *shape[axis + 1 :])
        for part, count in zip(parts, rows, strict=True)
    ]
    return np.concatenate(shaped, axis)


def make_splits(
    sent: tuple[int, ...], received: tuple[int, ...], row_elements: int, rank: int
) -> Splits:
    """One rank's splits in elements, from its splits in rows."""
    if sent[rank] != received[rank]:
        raise ArgumentError(
            f"all_to_all: input_splits[{rank}] is {sent[rank]}, output_splits[{rank}] is "
            f"{received[rank]}: what rank {rank} sends to itself is what it gets from itself"
        )
    if max(*sent, *received) * row_elements > SPLIT_MAX:
        raise ArgumentError(
            f"all_to_all: more than {SPLIT_MAX} elements between two ranks: send them in parts"
        )
    return Splits(
        tuple(count * row_elements for count in sent),
        tuple(count * row_elements for count in received),
    )
