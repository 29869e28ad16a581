"""Where a tensor of torch keeps what a call needs: looked up, compared, and only then relied on.

What torch keeps of a CPU tensor lies in three structures: the Python object, its ``TensorImpl``,
the ``StorageImpl`` that owns the memory (``c10/core/TensorImpl.h``, ``c10/core/StorageImpl.h``).
They are no part of a binary interface, so before C reads them the first time, what it sees is
compared with what torch says of many kinds of tensors. Where anything differs, tensors take the
long way, which asks torch.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from jetstream._core.native import ffi, lib

__all__ = ["learn", "tensor_layout"]

#: What C knows of tensors, a ``js_tensor_layout *``; nothing before ``learn`` has succeeded.
tensor_layout = ffi.new("js_tensor_layout *")

_WORD_BYTES = 8
_OBJECT_HEAD_BYTES = 16
_OBJECT_WORDS, _IMPL_WORDS, _STORAGE_WORDS = 3, 22, 8  # as far as C reads
_POINTER_WORD = 2  # of each of the three: where the next one is, at last the memory
# Not complex32: torch warns whoever makes one.
_DTYPES = (
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


def learn(torch: Any) -> bool:
    """Have C read the heads of tensors from now on, if they are as it believes; whether they are.

    Called when the first tensor is seen; it allocates a few, of some bytes each.
    """
    layout = ffi.new("js_tensor_layout *")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            is_known = _is_interpreter_known() and _measure(torch, layout)
    except (AttributeError, RuntimeError, TypeError):  # another torch than those that are known
        is_known = False
    if is_known:
        ffi.memmove(tensor_layout, layout, ffi.sizeof("js_tensor_layout"))
    return is_known


def _is_interpreter_known() -> bool:
    is_usual = sys.implementation.name == "cpython" and sys.maxsize == 2**63 - 1
    return is_usual and sys.byteorder == "little" and object.__basicsize__ == _OBJECT_HEAD_BYTES


def _measure(torch: Any, layout: Any) -> bool:
    """Fill in the layout; whether it holds for all of the tensors that are tried."""
    plain = _new(torch, 5)
    with torch.inference_mode():
        inferred = _new(torch, 5)
    if torch.Tensor.__basicsize__ < _OBJECT_WORDS * _WORD_BYTES:
        return False
    if not all(_is_chain_known(tensor) for tensor in (plain, plain[1:], inferred)):
        return False
    layout.types[0], layout.types[1] = id(torch.Tensor), id(torch.nn.Parameter)
    for i, tensor in enumerate((plain, inferred)):
        layout.key_sets[i] = torch._C._dispatch_keys(tensor).raw_repr()
    dtypes = [getattr(torch, name) for name in _DTYPES if hasattr(torch, name)]
    numbers = set()
    for dtype in dtypes:
        number = _dtype_number(_new(torch, 3, dtype=dtype))
        if number >= lib.JS_TENSOR_DTYPES:
            return False
        layout.itemsize_bytes[number] = dtype.itemsize
        numbers.add(number)
    if len(numbers) != len(dtypes):
        return False
    good = _plain_tensors(torch, dtypes)
    is_right = all(_is_seen_right(layout, tensor) for tensor in good)
    return is_right and not any(_is_plain(layout, tensor) for tensor in _odd_tensors(torch))


def _new(torch: Any, *sizes: int, **options: Any) -> Any:
    """Zeros, whatever the defaults of this program are."""
    return torch.zeros(sizes, **{"device": "cpu", "dtype": torch.float32, **options})


def _words(address: int, count: int) -> list[int]:
    return list(ffi.unpack(ffi.cast("uint64_t *", address), count))


def _is_chain_known(tensor: Any) -> bool:
    """Each of the three structures points to the next; nothing is followed before it is known."""
    storage = tensor.untyped_storage()
    return bool(
        _words(id(tensor), _OBJECT_WORDS)[_POINTER_WORD] == tensor._cdata
        and _words(tensor._cdata, _IMPL_WORDS)[_POINTER_WORD] == storage._cdata
        and _words(storage._cdata, _STORAGE_WORDS)[_POINTER_WORD] == storage.data_ptr()
    )


def _dtype_number(tensor: Any) -> int:
    return _words(tensor._cdata, _IMPL_WORDS)[20] & 0xFFFF


def _plain_tensors(torch: Any, dtypes: list[Any]) -> list[Any]:
    """Tensors whose memory is read and written as it lies there."""
    new = partial(_new, torch)
    base, needed = new(7, 6, 5), new(3, 4).requires_grad_()
    with torch.inference_mode():
        inferred = new(6, 3)
    return [
        *(new(8 + i, 3, dtype=dtype)[i % 3 :] for i, dtype in enumerate(dtypes)),
        *(base, base[2:5], base[3], base.view(-1)[9:20], base[6, 5, 4], base.detach()),
        *(new(2, 1, 3, 1, 2), new(2, 3, 1, 2, 2, 3), new(3, *[1] * 9)),
        *(new(0), new(4, 0), new(), new(1).expand(1, 1)),
        *(needed, needed * 2, torch.nn.Parameter(new(9)), inferred, inferred[1:]),
        *(new(4, dtype=torch.complex64).conj().conj(), new(1, 9).t().t()),
    ]


def _odd_tensors(torch: Any) -> list[Any]:
    """Tensors that must be asked for everything, each for a reason of its own."""
    new = partial(_new, torch)
    base, numbers = new(6, 4), new(4, dtype=torch.complex64)

    class Named(torch.Tensor):  # type: ignore[misc]
        """One that may mean something else by everything it says."""

    copied = torch._lazy_clone(new(3))
    return [
        *(base.t(), base[:, 1:], base[::2], new(1).expand(4), new(3, 1).expand(3, 2)),
        *(new(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), copied),
        *(numbers.conj(), torch._neg_view(base), base.to_sparse(), new(3, device="meta")),
        *(base.as_subclass(Named), new(3, dtype=torch.bool)[::2]),
        torch._to_functional_tensor(base),
    ]


def _look(layout: Any, tensor: Any) -> Any:
    seen = ffi.new("js_array_seen *")
    lib.js_tensor_look(layout, id(tensor), seen)
    return seen


def _is_plain(layout: Any, tensor: Any) -> bool:
    return bool(_look(layout, tensor).is_contiguous)


def _is_seen_right(layout: Any, tensor: Any) -> bool:
    seen = _look(layout, tensor)
    address = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * tensor.element_size()
    return bool(
        seen.is_contiguous
        and seen.data == address
        and seen.count == tensor.numel()
        and seen.rows == (tensor.shape[0] if tensor.dim() else 0)
        and layout.itemsize_bytes[seen.dtype - 1] == tensor.element_size()
        and seen.dtype - 1 == _dtype_number(tensor)
    )
