"""Element types and their friends: numbers as in the data plane, clear errors for the rest."""

from __future__ import annotations

from enum import IntEnum

import ml_dtypes
import numpy as np
import pytest

from jetstream.dtypes import Algorithm, DType, Kind, RedOp, check_redop, dtype_of, redop_of
from jetstream.errors import ArgumentError


@pytest.mark.parametrize("dtype", DType)
def test_round_trip_through_numpy(dtype: DType) -> None:
    assert dtype_of(dtype.numpy) is dtype
    assert dtype_of(dtype.label) is dtype
    assert dtype.itemsize == np.zeros(1, dtype.numpy).nbytes
    assert dtype.numpy.isnative


def test_known_types() -> None:
    assert dtype_of(np.float32) is DType.FLOAT32
    assert dtype_of(ml_dtypes.bfloat16) is DType.BFLOAT16
    assert dtype_of(np.longlong) is DType.INT64
    assert DType.BFLOAT16.label == "bfloat16"
    assert dtype_of(bool) is DType.BOOL and dtype_of(complex) is DType.COMPLEX128
    assert DType.FLOAT8_E4M3FN.label == "float8_e4m3fn"
    sizes = [8, 4, 2, 2, 4, 8, 1, 1, 2, 2, 4, 8, 1, 1, 1, 8, 16]
    assert [dtype.itemsize for dtype in DType] == sizes


@pytest.mark.parametrize(
    "dtype",
    [object, np.longdouble, np.clongdouble, "m8[s]", "V1", ">f4", "U3", None, "no such type"],
)
def test_other_types_are_refused(dtype: object) -> None:
    with pytest.raises(ArgumentError, match="dtype"):
        dtype_of(dtype)  # type: ignore[arg-type]


def test_refusal_names_what_is_supported() -> None:
    with pytest.raises(ArgumentError, match=r"dtype object .* float64, .*bfloat16, .*uint8"):
        dtype_of(np.dtype(object))


def test_reductions_by_name() -> None:
    names = ("sum", "prod", "min", "max", "avg", "band", "bor", "bxor", "premul_sum")
    assert [redop_of(name) for name in names] == list(RedOp)
    assert redop_of(RedOp.MAX) is RedOp.MAX
    with pytest.raises(ArgumentError, match="'mean' is not one of sum, prod, min, max, avg, band"):
        redop_of("mean")


@pytest.mark.parametrize("dtype", DType)
def test_every_type_has_the_reductions_that_the_data_plane_has(dtype: DType) -> None:
    native = pytest.importorskip("jetstream._native", reason="the data plane is not built")
    request = native.ffi.new("js_fold_request *", {"dtype": dtype, "source_count": 1})
    request.sources = native.ffi.new("uintptr_t[]", 1)
    for redop in RedOp:
        request.redop = redop
        is_defined = native.lib.js_fold(request) == native.lib.JS_OK
        assert is_defined == (redop in dtype.redops), redop
    assert RedOp.SUM in dtype.redops, "what is not reduced is called sum"


@pytest.mark.parametrize(
    ("dtype", "redop", "defined"),
    [
        (DType.BOOL, RedOp.AVG, "sum, prod, min, max, band, bor, bxor$"),
        (DType.BOOL, RedOp.PREMUL_SUM, "sum, prod, min, max, band, bor, bxor$"),
        (DType.COMPLEX64, RedOp.MAX, "sum, prod, avg, premul_sum$"),
        (DType.FLOAT8_E5M2, RedOp.BXOR, "sum, prod, min, max, avg, premul_sum$"),
    ],
)
def test_undefined_reductions_are_refused(dtype: DType, redop: RedOp, defined: str) -> None:
    check_redop(dtype, RedOp.SUM)
    message = f"op {redop.label} is not defined for {dtype.label}, which has {defined}"
    with pytest.raises(ArgumentError, match=message):
        check_redop(dtype, redop)


def test_labels() -> None:
    assert Kind.REDUCE_SCATTER.label == "reduce_scatter"
    assert [algorithm.label for algorithm in Algorithm] == [
        "direct",
        "one_shot",
        "two_shot",
        "lend",
        "hierarchical",
        "hierarchical_one_shot",
    ]


@pytest.mark.parametrize(
    ("prefix", "enum"),
    [
        ("JS_DTYPE_", DType),
        ("JS_REDOP_", RedOp),
        ("JS_KIND_", Kind),
        ("JS_ALGO_", Algorithm),
    ],
)
def test_numbers_are_those_of_the_data_plane(prefix: str, enum: type[IntEnum]) -> None:
    native = pytest.importorskip("jetstream._native", reason="the data plane is not built")
    names = {name for name in dir(native.lib) if name.startswith(prefix)} - {f"{prefix}COUNT"}
    assert {name: getattr(native.lib, name) for name in names} == {
        f"{prefix}{member.name}": member.value for member in enum
    }
