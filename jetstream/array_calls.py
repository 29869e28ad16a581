"""Calls like one before: from the arrays straight to the data plane.

What NumPy keeps of an array lies in the first 80 bytes of the object: address, shape, dtype, flags.
Asking for them one by one costs more than a small all-reduce, so C reads them in place, as every
extension module built against NumPy does, and looks the plan up. Tensors of torch: likewise, once
``tensor_heads`` has found out where things lie.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Hashable
from typing import Any

import numpy as np

from jetstream._core.native import ffi, lib
from jetstream.arrays import Array
from jetstream.dtypes import BY_NUMPY
from jetstream.tensor_heads import tensor_layout

__all__ = [
    "MISS",
    "SHORT",
    "ArrayCalls",
    "array_call",
    "array_launch",
    "array_receive",
    "array_send",
    "byte_pointer",
    "graph_call",
    "persistent_call",
]

#: (table, id(source), id(target)) -> status; the two objects must stay alive.
array_call = lib.js_array_call
#: (table, id(source), id(target), uint64_t * for the number of the operation) -> status.
array_launch = lib.js_array_launch

#: (js_persistent *) -> status.
persistent_call = lib.js_persistent_call
#: (js_persistent *) -> status; its plan_id is a graph.
graph_call = lib.js_graph_call

#: (js_mail *, id(array), rank << 32 | tag) -> status.
array_send = lib.js_array_send
#: (js_mail *, id(array), rank << 32 | tag, 0 or JS_RQ_TAG_ANY) -> status.
array_receive = lib.js_array_receive

#: The message does not fill the array.
SHORT: int = lib.JS_CALL_SHORT
#: The call was not carried out: no plan is remembered for these arrays.
MISS: int = lib.JS_CALL_MISS

#: Whether these can be carried out depends on the length of the first axis.
_DIVIDED = ("reduce_scatter", "all_to_all")

_OBJECT_HEAD_BYTES = 16  # of CPython as it is built normally: reference count and type
_ARRAY_HEAD_BYTES = 80


def _is_layout_known() -> bool:
    """Whether the head of an array lies where C reads it; else every call takes the long way."""
    heads = object.__basicsize__, np.ndarray.__basicsize__
    if sys.implementation.name != "cpython" or sys.maxsize < 2**63 - 1:
        return False
    if heads[0] != _OBJECT_HEAD_BYTES or heads[1] < _ARRAY_HEAD_BYTES:
        return False
    plain = np.zeros((3, 5), np.float32)
    fixed = np.zeros(7, np.int16)
    fixed.flags.writeable = False
    odd = np.zeros(9, np.uint8)[1:].view(np.uint16)
    return all(_is_seen_right(array) for array in (plain, plain[1:], plain.T, fixed, odd))


def _is_seen_right(array: Array) -> bool:
    seen = ffi.new("js_array_seen *")
    lib.js_array_look(id(array), seen)
    flags = array.flags
    return (
        seen.type == id(np.ndarray)
        and seen.data == array.ctypes.data
        and seen.dtype == id(array.dtype)
        and seen.count == array.size
        and seen.rows == len(array)
        and bool(seen.is_contiguous) == flags.c_contiguous
        and bool(seen.is_aligned) == flags.aligned
        and bool(seen.is_writeable) == flags.writeable
    )


_IS_LAYOUT_KNOWN = _is_layout_known()
_from_buffer = ffi.from_buffer


def _new_mail() -> Any:
    mail = ffi.new("js_mail *")
    mail.tensors = tensor_layout
    if _IS_LAYOUT_KNOWN:
        mail.array_type = id(np.ndarray)
        for i, dtype in enumerate(BY_NUMPY):  # which stay, and so do their addresses
            mail.dtypes[i], mail.itemsize_bytes[i] = id(dtype), dtype.itemsize
        mail.dtype_count = len(BY_NUMPY)
    return mail


def byte_pointer(array: Array) -> Any:
    """The array's memory as a cffi pointer that keeps it alive."""
    try:
        return _from_buffer(array)
    except ValueError:  # an element type that the buffer protocol has no name for: bfloat16
        return _from_buffer(array.reshape(-1).view("u1"))


class ArrayCalls:
    """The calls of one communicator that were made before.

    ``tables`` has a ``js_call_table *`` for each key: what besides the arrays makes a call.
    ``mail`` is the ``js_mail *`` of messages.
    """

    def __init__(self) -> None:
        self.tables: dict[Hashable, Any] = {}
        self._dtypes: dict[tuple[Hashable, int], tuple[Any, Any]] = {}
        self._persistent: weakref.WeakSet[Any] = weakref.WeakSet()
        self._watch_lock = threading.RLock()  # who adds must not meet who goes through all
        self.mail = _new_mail()
        self.is_captured = False  # meanwhile nothing of it can be called

    def remember(
        self,
        key: Hashable,
        source: Any,
        target: Any,
        *,
        plan: int,
        itemsize: int,
        handle: Any,
        timeout_ns: int,
    ) -> None:
        """From now on a call with arrays or tensors like these is known, if they are plain ones."""
        if not _IS_LAYOUT_KNOWN:
            return
        table = ffi.new("js_call_table *")
        known = self.tables.get(key)
        if known is None:
            table.tensors = tensor_layout
            table.array_type = id(np.ndarray)
            table.timeout_ns = timeout_ns
            table.is_by_rows = isinstance(key, tuple) and key[0] in _DIVIDED
        else:  # another thread may be reading it, without the interpreter's lock
            ffi.memmove(table, known, ffi.sizeof("js_call_table"))
        # That one may be without it: somebody tries to close.
        table.comm = ffi.NULL if self.is_captured else handle
        place = lib.js_array_remember(table, id(source), id(target), itemsize, plan)
        if place < lib.JS_CALL_TABLE_ENTRIES:
            self.tables[key] = table
            # The table knows a dtype by its address, which must not become that of another one.
            # Unpickled arrays have a dtype of their own: it stays only as long as its entry.
            self._dtypes[key, place] = source.dtype, target.dtype

    def set_timeout(self, timeout_ns: int) -> None:
        """Change the timeout of all calls."""
        self.mail.timeout_ns = timeout_ns
        for table in list(self.tables.values()):
            table.timeout_ns = timeout_ns

    def clear(self) -> None:
        """Forget everything: plans are being unloaded."""
        self.tables.clear()
        self._dtypes.clear()

    def watch(self, call: Any) -> None:
        """Have a ``js_persistent *`` whose communicator may close."""
        with self._watch_lock:
            self._persistent.add(call)

    def set_handle(self, handle: Any) -> None:
        """Change the ``js_comm *`` of everything; NULL: it is closed."""
        handle = ffi.NULL if self.is_captured else handle
        self.mail.comm = handle
        for table in list(self.tables.values()):
            table.comm = handle
        with self._watch_lock:
            for call in list(self._persistent):
                call.comm = handle
