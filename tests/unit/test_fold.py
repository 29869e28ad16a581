"""The kernels of the data plane against the reference in NumPy, and the reference against maths."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream._core.native import ffi, lib
from jetstream.dtypes import DType, RedOp
from jetstream.testing.reference import fold, same_bits

OPS = [op.label for op in RedOp]
ISAS = [isa for isa in range(lib.JS_ISA_COUNT) if lib.js_isa_available(isa)]
FLOATS = [dtype for dtype in DType if dtype.numpy.kind not in "iu"]

Array = np.ndarray[Any, np.dtype[Any]]


def native_fold(isa: int, sources: list[Array], op: str, dtype: DType, target: Array) -> Array:
    addresses = ffi.new("uintptr_t[]", [source.ctypes.data for source in sources])
    request = ffi.new("js_fold_request *")
    request.isa, request.dtype, request.redop = isa, dtype, RedOp[op.upper()]
    request.sources, request.source_count = addresses, len(sources)
    request.target, request.count = ffi.cast("void *", target.ctypes.data), target.size
    status = lib.js_fold(request)
    assert status == lib.JS_OK
    return target


def any_bits(dtype: DType, count: int, seed: int) -> Array:
    """Elements of all kinds: normal, subnormal, infinite, NaN with any payload, zeros."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype.numpy)
    if dtype in FLOATS:
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0]
        places = rng.random(count) < 0.3
        raw[places] = rng.choice(np.array(special), int(places.sum())).astype(dtype.numpy)
    return raw


def exact(value: Any) -> Fraction:
    return (
        Fraction(float(value)) if not isinstance(value, (int, np.integer)) else Fraction(int(value))
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DType, ids=lambda dtype: dtype.label)
def test_reference_is_what_maths_says(dtype: DType, op: str) -> None:
    """Values small enough that every step is exact: then so is the result, but for avg."""
    rng = np.random.default_rng(7)
    low = 0 if dtype is DType.UINT8 else -3
    arrays = [rng.integers(low, 4, 64).astype(dtype.numpy) for _ in range(3)]
    got = fold(arrays, op)
    assert got.dtype == dtype.numpy
    for column, value in zip(zip(*arrays, strict=True), got, strict=True):
        numbers = [exact(element) for element in column]
        total = {
            "sum": sum(numbers),
            "prod": numbers[0] * numbers[1] * numbers[2],
            "min": min(numbers),
            "max": max(numbers),
            "avg": sum(numbers) / 3,
        }[op]
        if dtype.numpy.kind in "iu":
            assert int(value) == int(total)  # int() truncates, too
        elif op == "avg":
            assert abs(exact(value) - total) <= abs(total) / 2**7
        else:
            assert exact(value) == total


def test_reference_wraps_integers_and_averages_them_exactly() -> None:
    top = np.iinfo(np.int64).max
    arrays = [np.array([top, -top, 7], np.int64), np.array([top, -top, -14], np.int64)]
    assert fold(arrays, "sum").tolist() == [-2, 2, -7]
    assert fold(arrays, "avg").tolist() == [top, -top, -3]
    assert fold([np.array([200], np.uint8)] * 2, "avg").tolist() == [200]


def test_reference_rounds_once() -> None:
    """1 + 2^-8 + 2^-8: rounding after each step to bfloat16 would lose both of the small ones."""
    values = [1.0, 2.0**-8, 2.0**-8]
    arrays = [np.array([value], ml_dtypes.bfloat16) for value in values]
    assert float(fold(arrays, "sum")[0]) == 1.0 + 2.0**-7


def test_reference_knows_zeros_and_nan() -> None:
    zeros = [np.array([0.0, -0.0, -0.0], np.float32), np.array([-0.0, 0.0, -0.0], np.float32)]
    assert np.signbit(fold(zeros, "min")).tolist() == [True, True, True]
    assert np.signbit(fold(zeros, "max")).tolist() == [False, False, True]
    for op in OPS:
        mixed = fold([np.array([-np.nan, 1.0], np.float16), np.array([1.0, 2.0], np.float16)], op)
        assert mixed.view(np.uint16)[0] == 0x7E00
        assert not np.isnan(mixed[1])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DType, ids=lambda dtype: dtype.label)
@pytest.mark.parametrize("isa", ISAS)
def test_kernels_equal_the_reference(isa: int, dtype: DType, op: str) -> None:
    for count in (0, 1, 2, 7, 31, 64, 65, 1000):
        for world in (1, 2, 3, 8):
            sources = [any_bits(dtype, count, 100 * world + rank) for rank in range(world)]
            target = np.empty(count, dtype.numpy)
            got = native_fold(isa, sources, op, dtype, target)
            assert same_bits(got, fold(sources, op)), (count, world)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(DType)),
    op=st.sampled_from(OPS),
    world=st.integers(1, 9),
    count=st.integers(0, 200),
    seed=st.integers(0, 2**32 - 1),
    in_place=st.booleans(),
)
def test_kernels_equal_the_reference_anywhere(
    isa: int, dtype: DType, op: str, world: int, count: int, seed: int, in_place: bool
) -> None:
    sources = [any_bits(dtype, count, seed + rank) for rank in range(world)]
    expected = fold(sources, op)
    target = sources[seed % world] if in_place else np.empty(count, dtype.numpy)
    assert same_bits(native_fold(isa, sources, op, dtype, target), expected)
