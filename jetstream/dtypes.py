"""Element types, reductions, kinds of collective and algorithms, as the data plane numbers them."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from jetstream.errors import ArgumentError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["BY_NUMPY", "Algorithm", "DType", "Kind", "RedOp", "check_redop", "dtype_of", "redop_of"]


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
    INT8 = 7
    INT16 = 8
    UINT16 = 9
    UINT32 = 10
    UINT64 = 11
    BOOL = 12
    FLOAT8_E4M3FN = 13
    FLOAT8_E5M2 = 14
    COMPLEX64 = 15
    COMPLEX128 = 16

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype, in native byte order."""
        return _NUMPY[self]

    @property
    def itemsize(self) -> int:
        """Size of one element in bytes."""
        return _NUMPY[self].itemsize

    @property
    def redops(self) -> tuple[RedOp, ...]:
        """The reductions that are defined for this type; ``docs/types.md`` says what they do."""
        if self is DType.BOOL:
            return tuple(op for op in RedOp if op not in (RedOp.AVG, RedOp.PREMUL_SUM))
        if self in (DType.COMPLEX64, DType.COMPLEX128):
            return (RedOp.SUM, RedOp.PROD, RedOp.AVG, RedOp.PREMUL_SUM)
        if self.numpy.kind in "iu":
            return tuple(RedOp)
        return tuple(op for op in RedOp if op not in (RedOp.BAND, RedOp.BOR, RedOp.BXOR))


class RedOp(_Labelled):
    """How contributions are combined; the values are ``enum js_redop``."""

    SUM = 0
    PROD = 1
    MIN = 2
    MAX = 3
    AVG = 4
    BAND = 5
    BOR = 6
    BXOR = 7
    PREMUL_SUM = 8


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
    LEND = 3
    HIERARCHICAL = 4
    HIERARCHICAL_ONE_SHOT = 5


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.FLOAT64: np.dtype(np.float64),
    DType.FLOAT32: np.dtype(np.float32),
    DType.FLOAT16: np.dtype(np.float16),
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DType.INT32: np.dtype(np.int32),
    DType.INT64: np.dtype(np.int64),
    DType.UINT8: np.dtype(np.uint8),
    DType.INT8: np.dtype(np.int8),
    DType.INT16: np.dtype(np.int16),
    DType.UINT16: np.dtype(np.uint16),
    DType.UINT32: np.dtype(np.uint32),
    DType.UINT64: np.dtype(np.uint64),
    DType.BOOL: np.dtype(np.bool_),
    DType.FLOAT8_E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.FLOAT8_E5M2: np.dtype(ml_dtypes.float8_e5m2),
    DType.COMPLEX64: np.dtype(np.complex64),
    DType.COMPLEX128: np.dtype(np.complex128),
}
#: Element types by their NumPy dtype.
BY_NUMPY = {numpy_dtype: dtype for dtype, numpy_dtype in _NUMPY.items()}
_REDOP_BY_LABEL = {redop.label: redop for redop in RedOp}


def dtype_of(dtype: DTypeLike) -> DType:
    """Translate a NumPy dtype, or what NumPy takes for one, to the data plane's element type.

    Raises ArgumentError, naming the supported types, for every other type: ``object``, text, dates,
    ``longdouble``, foreign byte order.
    """
    if isinstance(dtype, np.dtype):
        numpy_dtype = dtype
    else:
        try:
            # NumPy reads None as float64, which here could only hide a mistake.
            numpy_dtype = np.dtype(object if dtype is None else dtype)
        except TypeError as error:
            raise ArgumentError(f"{dtype!r} is not a dtype") from error
    found = BY_NUMPY.get(numpy_dtype)
    if found is None:
        supported = ", ".join(known.label for known in DType)
        raise ArgumentError(
            f"dtype {numpy_dtype} is not supported; convert to one of {supported}, "
            "in native byte order"
        )
    return found


def redop_of(op: str | RedOp) -> RedOp:
    """Translate the name of a reduction; raises ArgumentError naming them all for any other."""
    found = op if isinstance(op, RedOp) else None
    if isinstance(op, str):
        found = _REDOP_BY_LABEL.get(op)
    if found is None:
        raise ArgumentError(f"op {op!r} is not one of {', '.join(_REDOP_BY_LABEL)}")
    return found


def check_redop(dtype: DType, redop: RedOp) -> None:
    """Raises ArgumentError, naming what there is, if the reduction is not defined for the type."""
    if redop not in dtype.redops:
        defined = ", ".join(known.label for known in dtype.redops)
        raise ArgumentError(
            f"op {redop.label} is not defined for {dtype.label}, which has {defined}"
        )
