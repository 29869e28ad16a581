"""What callers pass as arrays, seen as NumPy arrays that share their memory.

NumPy arrays are taken as they are; torch CPU tensors, objects with the buffer protocol and objects
with DLPack are wrapped without a copy. Results go back in the caller's kind: NumPy or torch.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jetstream.dtypes import dtype_of
from jetstream.errors import ArgumentError

__all__ = [
    "Array",
    "empty_like",
    "forbid_overlap",
    "share",
    "share_contiguous",
    "share_fixed",
    "share_writable",
    "unshare",
]

Array = NDArray[Any]


#: Types of torch that NumPy has no name for: the way there goes through the bits.
_FOREIGN = {
    f"torch.{dtype.__name__}": np.dtype(dtype)
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
}


def _is_torch(x: object) -> bool:
    return type(x).__module__ == "torch" and hasattr(x, "data_ptr")


def _share_torch(x: Any) -> Array:
    if x.device.type != "cpu":
        raise ArgumentError(f"tensor on device {x.device}: only CPU tensors, call .cpu() first")
    if x.requires_grad:
        x = x.detach()
    dtype = _FOREIGN.get(str(x.dtype))
    if dtype is not None:
        import torch

        bits = torch.int16 if dtype.itemsize == 2 else torch.int8
        shared: Array = x.view(bits).numpy().view(dtype)
        return shared
    plain: Array = x.numpy()
    return plain


def share(x: Any, *, name: str = "array") -> Array:
    """See ``x`` as a NumPy array that shares its memory, of any layout.

    Raises ArgumentError for what is no array, and for element types without a kernel.
    """
    if isinstance(x, np.ndarray):
        array: Array = x
    elif _is_torch(x):
        array = _share_torch(x)
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


def empty_like(array: Array, shape: tuple[int, ...]) -> Array:
    """A new array of another shape with the element type of ``array``."""
    return np.empty(shape, dtype=array.dtype)


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


def unshare(result: Array, original: Any) -> Any:
    """Hand a result back in the kind of the caller's array; shares the memory."""
    if not _is_torch(original):
        return result
    import torch

    name = f"torch.{result.dtype}"
    if name in _FOREIGN:
        bits = np.int16 if result.dtype.itemsize == 2 else np.int8
        return torch.from_numpy(result.view(bits)).view(getattr(torch, str(result.dtype)))
    return torch.from_numpy(result)
