"""The factor of a premultiplied sum: checked, rounded, and applied before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np

from jetstream._core.native import check, lib
from jetstream.array_calls import byte_pointer
from jetstream.arrays import Array
from jetstream.dtypes import DType, RedOp, dtype_of
from jetstream.errors import ArgumentError

__all__ = ["contribution"]

#: Numbers to ml_dtypes, though not to NumPy.
_NARROW = (DType.BFLOAT16.numpy, DType.FLOAT8_E4M3FN.numpy)


def contribution(op: str | RedOp, scale: Any, source: Array, target: Array | None = None) -> Array:
    """What this rank adds to the reduction: ``source`` itself unless ``op`` is premul_sum.

    Then it is ``source`` times ``scale``, in ``target`` (of the same size) if that is memory apart
    from ``source``, else in a new array, so that a call that fails has changed nothing. ``scale``
    is rounded to the element type, and so is each product. Raises ArgumentError for a ``scale``
    that is missing, not wanted, or no number that the element type can be multiplied by.
    """
    if op not in ("premul_sum", RedOp.PREMUL_SUM):
        if scale is not None:
            raise ArgumentError(f"scale goes with op premul_sum, not with {op}")
        return source
    if scale is None:
        raise ArgumentError("op premul_sum needs scale, the factor of this rank")
    factor = _factor(scale, source)
    is_apart = target is not None and target.ctypes.data != source.ctypes.data
    scaled = target if target is not None and is_apart else np.empty_like(source)
    pointers = byte_pointer(scaled), byte_pointer(source)
    dtype = dtype_of(source.dtype)
    check(lib.js_scale(dtype, *pointers, source.size, byte_pointer(factor)))
    return scaled


def _factor(scale: Any, array: Array) -> Array:
    """``scale`` as one element of the array's type, rounded as NumPy rounds."""
    dtype = array.dtype
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not isinstance(scale, (int, np.integer)) or not limits.min <= scale <= limits.max:
            raise ArgumentError(
                f"scale is {scale!r}: {dtype} needs an integer from {limits.min} to {limits.max}"
            )
        return np.array(scale, dtype)
    try:
        value = np.asarray(float(scale) if isinstance(scale, int) else scale)
        is_number = value.ndim == 0 and (value.dtype.kind in "iufc" or value.dtype in _NARROW)
    except (OverflowError, TypeError, ValueError):
        is_number = False
    if not is_number or (value.dtype.kind == "c" and dtype.kind != "c"):
        kind = "number" if dtype.kind == "c" else "real number"
        raise ArgumentError(f"scale is {scale!r}: {dtype} needs one {kind}")
    with np.errstate(all="ignore"):
        return value.astype(dtype)
