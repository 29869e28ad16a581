"""What callers pass as arrays, seen as NumPy arrays that share their memory.

NumPy arrays are taken as they are; torch CPU tensors (``tensors``), objects with the buffer
protocol and objects with DLPack are wrapped without a copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jetstream.dtypes import dtype_of
from jetstream.errors import ArgumentError
from jetstream.tensors import Array, copy_plain, is_plain, is_tensor, share_tensor

__all__ = [
    "Array",
    "forbid_overlap",
    "share",
    "share_contiguous",
    "share_fixed",
    "share_result",
    "share_writable",
]


def share(x: Any, *, name: str = "array") -> Array:
    """See ``x`` as a NumPy array that shares its memory, of any layout.

    Raises ArgumentError for what is no array, and for element types without a kernel.
    """
    if isinstance(x, np.ndarray):
        array: Array = x
    elif is_tensor(x):
        return share_tensor(x, name)
    elif isinstance(x, np.generic):
        raise ArgumentError(f"{name} is a NumPy scalar: pass np.array(value)")
    else:
        array = _share_protocol(x, name)
    dtype_of(array.dtype)
    return array


def _share_protocol(x: Any, name: str) -> Array:
    try:
        return np.asarray(memoryview(x))
    except TypeError:
        pass
    if hasattr(x, "__dlpack__"):
        try:
            shared: Array = np.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise ArgumentError(f"{name}: its memory cannot be shared: {error}") from error
        return shared
    raise ArgumentError(
        f"{name} is a {type(x).__name__}: pass a NumPy array, a torch CPU tensor, or an object "
        "with the buffer protocol or DLPack"
    )


def share_contiguous(x: Any, *, name: str = "input") -> Array:
    """See ``x`` as a C-contiguous array; a strided one is copied."""
    if is_tensor(x) and not is_plain(x, name):
        return copy_plain(x)
    array = share(x, name=name)
    if array.flags.c_contiguous:
        return array
    copied: Array = np.ascontiguousarray(array)
    return copied


def share_fixed(x: Any, *, name: str = "input") -> Array:
    """See ``x`` as a C-contiguous array whose memory is looked at again later.

    A strided one, of which a copy would be made now, is refused with ArgumentError.
    """
    array = share(x, name=name)
    if not array.flags.c_contiguous:
        raise ArgumentError(
            f"{name} is not C-contiguous (strides {array.strides} for shape {array.shape}): it "
            "would be copied now, and later calls would see the copy"
        )
    return array


def share_writable(x: Any, *, name: str) -> Array:
    """See ``x`` as an array that results can be written into.

    Raises ArgumentError when it is read-only or not C-contiguous.
    """
    array = share(x, name=name)
    if not array.flags.writeable:
        raise ArgumentError(f"{name} is read-only: pass a writable array, or out=")
    if not array.flags.c_contiguous:
        raise ArgumentError(
            f"{name} is not C-contiguous (strides {array.strides} for shape {array.shape}): "
            "pass np.ascontiguousarray(...) and keep what is returned, or a contiguous out="
        )
    return array


def share_result(x: Any, *, name: str) -> Array:
    """As ``share_writable``, but a tensor may have any layout in which no elements share memory.

    Of one that is not plain the array is a copy: when the result is there, ``tensors.land`` takes
    it to the tensor.
    """
    if is_tensor(x) and not is_plain(x, name):
        return copy_plain(x, result=name)
    return share_writable(x, name=name)


def forbid_overlap(source: Array, target: Array, *, same: tuple[Array, Array]) -> None:
    """Refuse input and output that share memory, unless the operation is one in place.

    Then the two arrays of ``same``, a part of each, are one. Raises ArgumentError.
    """
    if same[0] is same[1] or not np.may_share_memory(source, target):
        return
    if same[0].ctypes.data != same[1].ctypes.data:
        raise ArgumentError(
            "input and output overlap: pass separate arrays, or the same memory for an operation "
            "in place"
        )
