"""What a reduction must give, to the bit, in plain NumPy: the reference to test against.

The order is that of the ranks; over hosts each host's ranks are folded first, then what comes of
that, by host, in the order of their lowest ranks. Floats of 16 and 8 bits accumulate in float32 and
are rounded once, the others in their own type; complex numbers are folded by parts. Integers wrap;
their average is exact and truncated towards zero. A NaN in any contribution gives the canonical
NaN; of two zeros, -0 is the smaller one. ``docs/types.md`` has it all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fold", "premultiply", "same_bits"]

Array = NDArray[Any]

_INTEGER: dict[str, Callable[[Array, Array], Array]] = {
    "sum": np.add,
    "premul_sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
_BOOL: dict[str, Callable[[Array, Array], Array]] = {
    "sum": np.logical_or,
    "prod": np.logical_and,
    "min": np.logical_and,
    "max": np.logical_or,
    "band": np.logical_and,
    "bor": np.logical_or,
    "bxor": np.logical_xor,
}


def fold(
    arrays: Sequence[Array],
    op: str,
    *,
    scales: Sequence[Any] | None = None,
    hosts: Sequence[int] = (),
) -> Array:
    """Folds equally shaped arrays of one dtype, ``arrays[r]`` being that of rank r.

    ``op``: sum, prod, min, max, avg, band, bor, bxor, premul_sum; for the last one ``scales[r]`` is
    the factor of rank r. ``hosts[r]``: the host of rank r, by any number; none: all share one.
    Returns a new array of the same shape and dtype.
    """
    dtype = arrays[0].dtype
    if op == "premul_sum" and scales is not None:
        arrays = [premultiply(a, scale) for a, scale in zip(arrays, scales, strict=True)]
    if len(set(hosts)) > 1 and dtype.kind not in "iub" and op not in ("min", "max"):
        return _fold_hosts(arrays, op, hosts)
    with np.errstate(all="ignore"):
        if dtype.kind in "iub":
            return _fold_integers(arrays, op)
        if dtype.kind == "c":
            return _fold_complex(arrays, op)
        wide = np.dtype(np.float32) if dtype.itemsize <= 2 else dtype
        result = arrays[0].astype(wide)
        for array in arrays[1:]:
            result = _combine(result, array.astype(wide), op)
        if op == "avg":
            result = result / wide.type(len(arrays))
        result = np.asarray(result).astype(dtype)
    return np.where(np.isnan(result), np.abs(np.array(np.nan, dtype)), result)


def _fold_hosts(arrays: Sequence[Array], op: str, hosts: Sequence[int]) -> Array:
    """Partial folds stay in float32 where that is the type to accumulate in."""
    dtype = arrays[0].dtype
    wide = np.dtype(np.float32) if dtype.itemsize <= 2 else dtype
    step = "prod" if op == "prod" else "sum"
    groups = [
        [array.astype(wide) for array, other in zip(arrays, hosts, strict=True) if other == host]
        for host in dict.fromkeys(hosts)
    ]
    result = fold([fold(group, step) for group in groups], step)
    with np.errstate(all="ignore"):
        if op == "avg":
            parts = result.view(result.real.dtype)  # a complex number is divided by parts
            result = (parts / parts.dtype.type(len(arrays))).view(wide)
        result = result.astype(dtype)
    return fold([result], "sum")


def premultiply(array: Array, scale: Any) -> Array:
    """What one rank contributes to a premultiplied sum: the product with ``scale``.

    The scale is rounded to the element type first, and so is the product.
    """
    return fold([array, np.full(array.shape, scale).astype(array.dtype)], "prod")


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


def _fold_complex(arrays: Sequence[Array], op: str) -> Array:
    """By parts: NumPy may fuse the multiplications and additions of a complex product."""
    result = np.empty_like(arrays[0])
    if op != "prod":
        result.real = fold([array.real for array in arrays], op)
        result.imag = fold([array.imag for array in arrays], op)
        return result
    real, imag = arrays[0].real, arrays[0].imag
    for array in arrays[1:]:
        ac, bd = real * array.real, imag * array.imag
        ad, bc = real * array.imag, imag * array.real
        real, imag = ac - bd, ad + bc
    result.real, result.imag = fold([real], "sum"), fold([imag], "sum")
    return result


def _fold_integers(arrays: Sequence[Array], op: str) -> Array:
    if op == "avg":
        return _average_integers(arrays)
    combine = (_BOOL if arrays[0].dtype.kind == "b" else _INTEGER)[op]
    result = arrays[0].copy()
    for array in arrays[1:]:
        result = combine(result, array)
    return np.asarray(result)


def _average_integers(arrays: Sequence[Array]) -> Array:
    """Exact without wider integers: quotients and remainders are summed apart."""
    dtype = arrays[0].dtype
    wide = np.dtype(np.uint64 if dtype.kind == "u" else np.int64)
    world = wide.type(len(arrays))
    parts = [np.divmod(array.astype(wide), world) for array in arrays]
    quotient = np.add.reduce([part[0] for part in parts])
    rest = np.add.reduce([part[1] for part in parts])
    floor, remainder = quotient + rest // world, rest % world
    truncated = floor + ((floor < 0) & (remainder != 0)).astype(wide)
    return np.asarray(truncated.astype(dtype))
