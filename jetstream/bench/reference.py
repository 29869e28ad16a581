"""Inputs and the independent reference: what every rank sends, and the exact bits it must get.

An input is a table of random elements, different on each rank, repeated with a prime period and
read from a start that moves with every iteration. So a byte from the wrong rank, the wrong place
or an earlier iteration is a wrong byte, and the reference has to be folded over one period only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERIOD", "SHIFTS", "Part", "count_wrong", "fold", "source", "table"]

Array = NDArray[Any]

#: Elements after which an input repeats; prime, so no chunk or shard is a multiple of it.
PERIOD = 65537
#: Number of different starts an input has, one per iteration in turn; prime for the same reason.
SHIFTS = 61

_COMBINE: dict[str, Callable[[Array, Array], Array]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "avg": np.add,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
_BITS = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)} | {16: np.dtype("u8,u8")}


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a result: `count` elements from `first` that repeat `table` from `start` on."""

    first: int
    count: int
    table: Array
    start: int


@lru_cache(maxsize=512)
def table(rank: int, dtype: np.dtype[Any], redop: str) -> Array:
    """Returns the PERIOD elements that rank `rank` repeats as its input; read-only.

    Floats are spread over (-4, 4), near 1 for prod so that nothing overflows; integers over the
    whole range of the type, odd for prod so that no bit is lost. Complex numbers have two such
    floats as their parts, a bit smaller for prod.
    """
    random = np.random.Generator(np.random.PCG64([rank, 20]))
    if dtype.kind == "b":
        values = random.integers(0, 2, PERIOD, np.uint8).astype(dtype)
    elif dtype.kind == "c":
        low, high = (0.6, 0.8) if redop == "prod" else (-4.0, 4.0)
        parts = random.uniform(low, high, 2 * PERIOD)
        values = parts.astype(dtype.type(0).real.dtype).view(dtype)
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = random.integers(limits.min, limits.max, PERIOD, dtype, endpoint=True)
        values = values | dtype.type(1) if redop == "prod" else values
    elif redop == "prod":
        values = np.exp2(random.uniform(-0.25, 0.25, PERIOD)).astype(dtype)
    else:
        values = random.uniform(-4.0, 4.0, PERIOD).astype(dtype)
    values.flags.writeable = False
    return np.asarray(values)


def source(rank: int, dtype: np.dtype[Any], redop: str, count: int) -> Array:
    """Returns count + SHIFTS - 1 elements; the input of iteration i starts at i % SHIFTS."""
    return np.resize(table(rank, dtype, redop), count + SHIFTS - 1)


@lru_cache(maxsize=8)
def fold(world: int, dtype: np.dtype[Any], redop: str) -> Array:
    """Returns the PERIOD elements of the reduction of all ranks' tables, in rank order.

    Floats of 16 and 8 bits accumulate in float32 and are rounded once; others fold in their own
    type; integers wrap, except that their average is exact and truncated towards zero.
    """
    tables = [table(rank, dtype, redop) for rank in range(world)]
    if redop == "avg" and dtype.kind in "iu":
        totals = [sum(column) for column in zip(*(t.tolist() for t in tables), strict=True)]
        averages = [abs(total) // world * (1 if total >= 0 else -1) for total in totals]
        return np.array(averages, dtype)
    wide = np.dtype(np.float32) if dtype.itemsize <= 2 and dtype.kind not in "iub" else dtype
    combine = _multiply if dtype.kind == "c" and redop == "prod" else _COMBINE[redop]
    result = tables[0].astype(wide)
    for values in tables[1:]:
        result = combine(result, values.astype(wide))
    if redop == "avg":
        if dtype.kind == "c":  # NumPy would divide by a complex number
            result = (result.view(result.real.dtype) / result.real.dtype.type(world)).view(dtype)
        else:
            result = result / wide.type(world)
    return np.asarray(result.astype(dtype))


def _multiply(left: Array, right: Array) -> Array:
    """Complex numbers, each operation rounded: NumPy may fuse them."""
    result = np.empty_like(left)
    result.real = left.real * right.real - left.imag * right.imag
    result.imag = left.real * right.imag + left.imag * right.real
    return result


def count_wrong(result: Array, parts: Sequence[Part], shift: int) -> int:
    """Counts the elements of a result whose bits differ from the reference of this shift."""
    flat = result.reshape(-1)
    return sum(
        _count_wrong_part(flat[part.first : part.first + part.count], part, shift) for part in parts
    )


def _count_wrong_part(actual: Array, part: Part, shift: int) -> int:
    bits = _BITS[actual.dtype.itemsize]
    seen = actual.view(bits)
    expected = np.roll(part.table, -(part.start + shift)).view(bits)
    periods, rest = divmod(part.count, PERIOD)
    whole = seen[: periods * PERIOD].reshape(periods, PERIOD)
    wrong = np.count_nonzero(whole != expected)
    return int(wrong + np.count_nonzero(seen[part.count - rest :] != expected[:rest]))
