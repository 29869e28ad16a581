"""What a reduction must give, to the bit, in plain NumPy: the reference to test against.

The order is that of the ranks. 16-bit floats accumulate in float32 and are rounded once, the others
in their own type. Integers wrap; their average is exact and truncated towards zero. A NaN in any
contribution gives the canonical NaN; of two zeros, -0 is the smaller one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fold", "same_bits"]

Array = NDArray[Any]


def fold(arrays: Sequence[Array], op: str) -> Array:
    """Folds equally shaped arrays of one dtype, ``arrays[r]`` being that of rank r.

    ``op``: sum, prod, min, max, avg. Returns a new array of the same shape and dtype.
    """
    dtype = arrays[0].dtype
    with np.errstate(all="ignore"):
        if dtype.kind in "iu":
            return _fold_integers(arrays, op)
        wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
        result = arrays[0].astype(wide)
        for array in arrays[1:]:
            result = _combine(result, array.astype(wide), op)
        if op == "avg":
            result = result / wide.type(len(arrays))
        result = np.asarray(result).astype(dtype)
    return np.where(np.isnan(result), np.abs(np.array(np.nan, dtype)), result)


def same_bits(left: Array, right: Array) -> bool:
    """Whether shape, dtype and every bit are the same: NaN equals NaN, 0 is not -0."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and left.tobytes() == (right.tobytes())
    )


def _combine(left: Array, right: Array, op: str) -> Array:
    if op == "prod":
        return np.asarray(left * right)
    if op not in ("min", "max"):
        return np.asarray(left + right)
    chosen = np.minimum(left, right) if op == "min" else np.maximum(left, right)
    both_zero = (left == 0) & (right == 0)
    signs = np.signbit(left), np.signbit(right)
    is_negative = (signs[0] | signs[1]) if op == "min" else (signs[0] & signs[1])
    zero = np.where(is_negative, left.dtype.type(-0.0), left.dtype.type(0.0))
    return np.asarray(np.where(both_zero, zero, chosen))


def _fold_integers(arrays: Sequence[Array], op: str) -> Array:
    if op == "avg":
        return _average_integers(arrays)
    combine = {"sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}[op]
    result = arrays[0].copy()
    for array in arrays[1:]:
        result = combine(result, array)
    return np.asarray(result)


def _average_integers(arrays: Sequence[Array]) -> Array:
    """Exact without wider integers: quotients and remainders are summed apart."""
    world = len(arrays)
    parts = [np.divmod(array.astype(np.int64), world) for array in arrays]
    quotient = np.add.reduce([part[0] for part in parts])
    rest = np.add.reduce([part[1] for part in parts])
    floor, remainder = quotient + rest // world, rest % world
    truncated = floor + ((floor < 0) & (remainder != 0))
    return np.asarray(truncated.astype(arrays[0].dtype))
