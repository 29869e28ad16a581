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
from jetstream.testing.reference import fold, premultiply, same_bits

CASES = [(dtype, op.label) for dtype in DType for op in dtype.redops]
CASE_IDS = [f"{dtype.label}-{op}" for dtype, op in CASES]
ISAS = [isa for isa in range(lib.JS_ISA_COUNT) if lib.js_isa_available(isa)]
FLOATS = [dtype for dtype in DType if dtype.numpy.kind not in "iubc"]

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
    if dtype is DType.BOOL:
        return any_bits(DType.UINT8, count, seed) % 2 == 1
    if dtype.numpy.kind == "c":
        part = DType.FLOAT32 if dtype is DType.COMPLEX64 else DType.FLOAT64
        return any_bits(part, 2 * count, seed).view(dtype.numpy)
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


@pytest.mark.parametrize(
    ("dtype", "op"),
    [
        (dtype, op.label)
        for dtype in DType
        for op in dtype.redops
        if dtype.numpy.kind not in "bc" and op not in (RedOp.BAND, RedOp.BOR, RedOp.BXOR)
    ],
    ids=str,
)
def test_reference_is_what_maths_says(dtype: DType, op: str) -> None:
    """Values small enough that every step is exact: then so is the result, but for avg."""
    rng = np.random.default_rng(7)
    low, high = (0 if dtype.numpy.kind == "u" else -3), 4
    if dtype.label.startswith("float8"):
        low, high = -1, 2
    arrays = [rng.integers(low, high, 64).astype(dtype.numpy) for _ in range(3)]
    got = fold(arrays, op)
    assert got.dtype == dtype.numpy
    for column, value in zip(zip(*arrays, strict=True), got, strict=True):
        numbers = [exact(element) for element in column]
        total = {
            "sum": sum(numbers),
            "premul_sum": sum(numbers),
            "prod": numbers[0] * numbers[1] * numbers[2],
            "min": min(numbers),
            "max": max(numbers),
            "avg": sum(numbers) / 3,
        }[op]
        if dtype.numpy.kind in "iu":
            assert int(value) == int(total)  # int() truncates, too
        elif op == "avg":
            assert abs(exact(value) - total) <= abs(total) / 2 ** (3 if dtype.itemsize == 1 else 7)
        else:
            assert exact(value) == total


def test_reference_wraps_integers_and_averages_them_exactly() -> None:
    top = np.iinfo(np.int64).max
    arrays = [np.array([top, -top, 7], np.int64), np.array([top, -top, -14], np.int64)]
    assert fold(arrays, "sum").tolist() == [-2, 2, -7]
    assert fold(arrays, "avg").tolist() == [top, -top, -3]
    assert fold([np.array([200], np.uint8)] * 2, "avg").tolist() == [200]
    most = np.iinfo(np.uint64).max
    assert fold([np.array([most, most, 0], np.uint64)] * 3, "avg").tolist() == [most, most, 0]
    assert fold([np.array([100], np.int8), np.array([100], np.int8)], "sum").tolist() == [-56]


def test_reference_takes_bits_and_truths() -> None:
    arrays = [np.array([0b1100], np.int16), np.array([0b1010], np.int16)]
    assert [int(fold(arrays, op)[0]) for op in ("band", "bor", "bxor")] == [8, 14, 6]
    truths = [np.array([False, False, True, True]), np.array([False, True, False, True])]
    for op in ("sum", "max", "bor"):
        assert fold(truths, op).tolist() == [False, True, True, True]
    for op in ("prod", "min", "band"):
        assert fold(truths, op).tolist() == [False, False, False, True]
    assert fold(truths, "bxor").tolist() == [False, True, True, False]
    assert fold(truths, "sum").dtype == np.bool_


def test_reference_multiplies_complex_numbers() -> None:
    arrays = [np.array([value], np.complex64) for value in (1 + 2j, 3 - 1j, 2 + 2j)]
    assert fold(arrays, "prod").tolist() == [(1 + 2j) * (3 - 1j) * (2 + 2j)]
    assert fold(arrays, "avg").tolist() == [np.complex64(2 + 1j)]


def test_reference_premultiplies() -> None:
    """Scales are rounded to the element type, then products are: 3 * 0.1 is not 0.3."""
    x = np.array([3.0], ml_dtypes.bfloat16)
    tenth = ml_dtypes.bfloat16(0.1)
    assert premultiply(x, 0.1)[0] == ml_dtypes.bfloat16(3 * float(tenth))
    assert fold([x, x], "premul_sum", scales=[2, -1]).tolist() == [3.0]
    assert fold([np.array([200], np.uint8)] * 2, "premul_sum", scales=[2, 1]).tolist() == [88]


def test_reference_rounds_once() -> None:
    """1 + 2^-8 + 2^-8: rounding after each step to bfloat16 would lose both of the small ones."""
    values = [1.0, 2.0**-8, 2.0**-8]
    arrays = [np.array([value], ml_dtypes.bfloat16) for value in values]
    assert float(fold(arrays, "sum")[0]) == 1.0 + 2.0**-7


def test_reference_knows_zeros_and_nan() -> None:
    zeros = [np.array([0.0, -0.0, -0.0], np.float32), np.array([-0.0, 0.0, -0.0], np.float32)]
    assert np.signbit(fold(zeros, "min")).tolist() == [True, True, True]
    assert np.signbit(fold(zeros, "max")).tolist() == [False, False, True]
    for op in ("sum", "prod", "min", "max", "avg"):
        mixed = fold([np.array([-np.nan, 1.0], np.float16), np.array([1.0, 2.0], np.float16)], op)
        assert mixed.view(np.uint16)[0] == 0x7E00
        assert not np.isnan(mixed[1])


@pytest.mark.parametrize(
    ("dtype", "zero", "one"),
    [(DType.FLOAT8_E4M3FN, 0x00, 0x38), (DType.FLOAT8_E5M2, 0x00, 0x3C)],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("isa", ISAS)
def test_float8_is_rounded_as_ml_dtypes_rounds(isa: int, dtype: DType, zero: int, one: int) -> None:
    """All pairs of elements: sums, products and their halves, some of them NaN or too large."""
    codes = np.arange(256, dtype=np.uint8).view(dtype.numpy)
    assert codes[one] == 1 and codes[zero] == 0
    left, right = (np.ascontiguousarray(x).reshape(-1) for x in np.meshgrid(codes, codes))
    wide = left.astype(np.float32), right.astype(np.float32)
    with np.errstate(all="ignore"):
        exact_results = {"sum": wide[0] + wide[1], "prod": wide[0] * wide[1]}
        exact_results["avg"] = exact_results["sum"] / np.float32(2)
        for op, result in exact_results.items():
            expected = result.astype(dtype.numpy)
            got = native_fold(isa, [left, right], op, dtype, np.empty_like(left))
            numbers = ~np.isnan(expected)
            assert (np.isnan(got) == ~numbers).all()
            assert same_bits(got[numbers], expected[numbers])
            assert len(set(got[~numbers].view(np.uint8))) == 1, "one NaN"


@pytest.mark.parametrize(("dtype", "op"), CASES, ids=CASE_IDS)
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
    case=st.sampled_from(CASES),
    world=st.integers(1, 9),
    count=st.integers(0, 200),
    seed=st.integers(0, 2**32 - 1),
    in_place=st.booleans(),
)
def test_kernels_equal_the_reference_anywhere(
    isa: int, case: tuple[DType, str], world: int, count: int, seed: int, in_place: bool
) -> None:
    dtype, op = case
    sources = [any_bits(dtype, count, seed + rank) for rank in range(world)]
    expected = fold(sources, op)
    target = sources[seed % world] if in_place else np.empty(count, dtype.numpy)
    assert same_bits(native_fold(isa, sources, op, dtype, target), expected)


def native_scale(x: Array, scale: Any) -> Array:
    factor = np.array(scale).astype(x.dtype)
    target = np.empty_like(x)
    pointers = [ffi.cast("void *", array.ctypes.data) for array in (target, x, factor)]
    assert lib.js_scale(DType[str(x.dtype).upper()], *pointers[:2], x.size, pointers[2]) == 0
    return target


@pytest.mark.parametrize(
    "dtype", [d for d in DType if RedOp.PREMUL_SUM in d.redops], ids=lambda dtype: dtype.label
)
def test_scaling_equals_the_reference(dtype: DType) -> None:
    for count in (0, 1, 5, 127, 128, 129, 1000):
        x = any_bits(dtype, count, count)
        for scale in (0, 1, 3) if dtype.numpy.kind in "iu" else (0.1, -2, 1.75):
            assert same_bits(native_scale(x, scale), premultiply(x, scale)), (count, scale)


def test_scaling_bool_is_refused() -> None:
    assert lib.js_scale(DType.BOOL, ffi.NULL, ffi.NULL, 0, ffi.NULL) == lib.JS_ERR_UNSUPPORTED
