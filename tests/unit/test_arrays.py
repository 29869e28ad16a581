"""What callers pass as arrays: seen without a copy, or refused with a reason."""

from __future__ import annotations

import array
import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jetstream.arrays import forbid_overlap, share, share_contiguous, share_writable
from jetstream.errors import ArgumentError


def same_memory(left: np.ndarray, right: np.ndarray) -> bool:
    return left.ctypes.data == right.ctypes.data and left.nbytes == right.nbytes


def test_numpy_arrays_are_taken_as_they_are() -> None:
    for x in (np.ones((2, 3)), np.ones(3, ml_dtypes.bfloat16), np.array(1.0), np.empty((0, 4))):
        assert share(x) is x
        assert share_contiguous(x) is x
        assert share_writable(x, name="x") is x


def test_buffers_are_shared() -> None:
    numbers = array.array("d", [1.0, 2.0])
    shared = share_writable(numbers, name="x")
    shared[0] = 7.0
    assert numbers[0] == 7.0
    raw = bytearray(b"abcd")
    assert share(raw).dtype == np.uint8 and share(raw).tolist() == list(b"abcd")
    ints = (ctypes.c_int32 * 3)(1, 2, 3)
    assert share(ints).tolist() == [1, 2, 3]
    view = memoryview(np.arange(6, dtype=np.int64).reshape(2, 3))
    assert share(view).shape == (2, 3)


class Capsule:
    """An array that can do nothing but DLPack."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


class OtherDevice(Capsule):
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("it lives on a GPU")


def test_dlpack_is_shared() -> None:
    values = np.arange(4, dtype=np.float32)
    assert same_memory(share(Capsule(values)), values)
    with pytest.raises(ArgumentError, match="cannot be shared"):
        share(OtherDevice(values), name="x")


def test_strided_input_is_copied_and_strided_output_refused() -> None:
    base = np.arange(12.0).reshape(3, 4)
    for strided in (base.T, base[:, ::2], base[::-1]):
        copied = share_contiguous(strided)
        assert copied.flags.c_contiguous and np.array_equal(copied, strided)
        assert not np.may_share_memory(copied, base)
        with pytest.raises(ArgumentError, match=r"out is not C-contiguous \(strides"):
            share_writable(strided, name="out")
    assert share_writable(base[1:2], name="x").shape == (1, 4), "rows are contiguous"


def test_read_only_output_is_refused() -> None:
    fixed = np.ones(3)
    fixed.flags.writeable = False
    assert share_contiguous(fixed) is fixed
    for x in (fixed, b"12345678", memoryview(b"12345678")):
        with pytest.raises(ArgumentError, match="x is read-only: pass a writable array, or out="):
            share_writable(x, name="x")


@pytest.mark.parametrize(
    "x", [None, 1, 2.0, "text", [1.0], (1,), {}, object()], ids=lambda x: type(x).__name__
)
def test_what_is_no_array(x: object) -> None:
    with pytest.raises(ArgumentError, match=f"x is a {type(x).__name__}: pass a NumPy array"):
        share(x, name="x")


def test_scalars_have_no_memory_to_write_to() -> None:
    with pytest.raises(ArgumentError, match=r"NumPy scalar: pass np\.array\(value\)"):
        share(np.float32(1), name="x")


@pytest.mark.parametrize("dtype", [object, "U3", ">f8", np.longdouble, "M8[s]"])
def test_foreign_types_are_refused(dtype: Any) -> None:
    with pytest.raises(ArgumentError, match="not supported; convert to one of float64"):
        share(np.zeros(3, dtype))


def test_overlap() -> None:
    x = np.zeros(10)
    forbid_overlap(x, x, same=(x, x))
    forbid_overlap(x[:5], x[5:], same=(x[:5], x[5:]))
    for left, right in ((x[:5], x[1:6]), (x[1:6], x[:5]), (x[:5], x)):
        part = right if left.size == right.size else right[1:6]
        with pytest.raises(ArgumentError, match="overlap: pass separate arrays"):
            forbid_overlap(left, right, same=(left, part))
    forbid_overlap(x[5:], x, same=(x[5:], x[5:]))
