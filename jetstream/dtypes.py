"""Element types, reductions, kinds of collective and algorithms, as the data plane numbers them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from jetstream.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["Algorithm", "DType", "Kind", "RedOp", "dtype_of", "redop_of"]


class _Labelled(IntEnum):
    """A number of the data plane with the name that users read and write."""

    @property
    def label(self) -> str:
        """The name in lower case, for example ``"all_reduce"``."""
        return self.name.lower()


class DType(_Labelled):
    """Element type of an array; the values are ``enum js_dtype``."""

    FLOAT64 = 0
    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT32 = 4
    INT64 = 5
    UINT8 = 6

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype, in native byte order."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Size of one element in bytes."""
        return _NUMPY[self].itemsize


class RedOp(_Labelled):
    """How contributions are combined; the values are ``enum js_redop``."""

    SUM = 0
    PROD = 1
    MIN = 2
    MAX = 3
    AVG = 4


class Kind(_Labelled):
    """Kind of collective; the values are ``enum js_kind``."""

    NONE = 0
    ALL_REDUCE = 1
    ALL_GATHER = 2
    REDUCE_SCATTER = 3
    BROADCAST = 4
    BARRIER = 5
    ALL_TO_ALL = 6
    REDUCE = 7
    GATHER = 8
    SCATTER = 9
    SCAN = 10
    EXSCAN = 11


class Algorithm(_Labelled):
    """Schedule of a collective; the values are ``enum js_algo``."""

    DIRECT = 0
    ONE_SHOT = 1
    TWO_SHOT = 2


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.FLOAT64: np.dtype(np.float64),
    DType.FLOAT32: np.dtype(np.float32),
    DType.FLOAT16: np.dtype(np.float16),
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DType.INT32: np.dtype(np.int32),
    DType.INT64: np.dtype(np.int64),
    DType.UINT8: np.dtype(np.uint8),
}
_BY_NUMPY = {numpy_dtype: dtype for dtype, numpy_dtype in _NUMPY.items()}
_REDOP_BY_LABEL = {redop.label: redop for redop in RedOp}


def dtype_of(dtype: DTypeLike) -> DType:
    """Translate a NumPy dtype, or what NumPy takes for one, to the data plane's element type.

    Raises ArgumentError, naming the supported types, for every other type: ``object``, ``bool``,
    complex numbers, foreign byte order.
    """
    if isinstance(dtype, np.dtype):
        numpy_dtype = dtype
    else:
        try:
            # NumPy reads None as float64, which here could only hide a mistake.
            numpy_dtype = np.dtype(object if dtype is None else dtype)
        except TypeError as error:
            raise ArgumentError(f"{dtype!r} is not a dtype") from error
    found = _BY_NUMPY.get(numpy_dtype)
    if found is None:
        supported = ", ".join(known.label for known in DType)
        raise ArgumentError(
            f"dtype {numpy_dtype} is not supported; convert to one of {supported}, "
            "in native byte order"
        )
    return found


def redop_of(op: str | RedOp) -> RedOp:
    """Translate the name of a reduction; raises ArgumentError naming the five for any other."""
    found = op if isinstance(op, RedOp) else _REDOP_BY_LABEL.get(op)
    if found is None:
        raise ArgumentError(f"op {op!r} is not one of {', '.join(_REDOP_BY_LABEL)}")
    return found
