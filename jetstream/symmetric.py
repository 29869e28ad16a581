"""Symmetric memory: NumPy arrays in the segment, which every rank of the host can address."""

from __future__ import annotations

import gc
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jetstream._core.native import check, ffi, lib
from jetstream.arrays import Array
from jetstream.dtypes import dtype_of
from jetstream.errors import ArgumentError, OutOfMemoryError

__all__ = ["HeapUsage", "heap_usage", "new_array"]

_BYTES_MAX = 2**63  # no heap is so large


@dataclass(frozen=True, slots=True, kw_only=True)
class HeapUsage:
    """What a rank has of its symmetric memory, in bytes; a block is what one array takes."""

    total_bytes: int
    used_bytes: int
    largest_free_bytes: int
    block_count: int


class _Block:
    """Owner of an array's memory, which goes back to the heap with the last view of it."""

    __slots__ = ("__array_interface__", "_handle")

    def __init__(self, comm: Any, nbytes: int, *, zeroed: bool) -> None:
        out = ffi.new("js_block **")
        check(lib.js_block_new(comm, nbytes, int(zeroed), out))
        # The destructor is C and needs no module: it works while the interpreter shuts down.
        self._handle = ffi.gc(out[0], lib.js_block_free)
        address = int(ffi.cast("uintptr_t", lib.js_block_address(self._handle)))
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (address, False),
        }


def new_array(comm: Any, shape: int | Sequence[int], dtype: Any, *, zeroed: bool) -> Array:
    """Make an array of ``shape`` in the heap of this rank; ``comm`` is the ``js_comm *``.

    Raises ArgumentError for a shape or dtype that makes no array, OutOfMemoryError.
    """
    dims = _shape(shape)
    element = _element_type(dtype)
    nbytes = min(math.prod(dims) * element.itemsize, _BYTES_MAX)
    try:
        block = _Block(comm, nbytes, zeroed=zeroed)
    except OutOfMemoryError:
        if gc.collect() == 0:  # arrays in reference cycles
            raise
        block = _Block(comm, nbytes, zeroed=zeroed)
    array: Array = np.asarray(block).view(element).reshape(dims)
    return array


def heap_usage(comm: Any) -> HeapUsage:
    """What this rank has of its heap; ``comm`` is the ``js_comm *``."""
    usage = ffi.new("js_heap_usage *")
    lib.js_comm_heap_usage(comm, usage)
    return HeapUsage(
        total_bytes=usage.total_bytes,
        used_bytes=usage.used_bytes,
        largest_free_bytes=usage.largest_free_bytes,
        block_count=usage.block_count,
    )


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        dims = tuple(operator.index(n) for n in (shape if np.iterable(shape) else (shape,)))
    except TypeError:
        dims = (-1,)
    if any(n < 0 for n in dims):
        raise ArgumentError(f"shape {shape!r}: an integer of 0 or more is needed, or several")
    return dims


def _element_type(dtype: Any) -> np.dtype[Any]:
    if type(dtype).__module__ == "torch":
        dtype = str(dtype).removeprefix("torch.")
    return dtype_of(dtype).numpy
