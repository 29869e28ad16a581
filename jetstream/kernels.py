"""Functions of C that a graph calls, however the caller has them: their addresses."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from jetstream._core.native import ffi
from jetstream.errors import ArgumentError

__all__ = ["argument_address", "function_address"]

_NEEDED = (
    "a cffi function pointer, a ctypes function, the address as an integer, or an object with "
    "the attribute address, as numba.cfunc makes"
)
_ADDRESS_MAX = 2**64 - 1
_CTYPES_FUNCTION: Any = ctypes.CFUNCTYPE(None).__base__


def _is_address(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _in_range(value: int, what: str) -> int:
    if not 0 <= value <= _ADDRESS_MAX:
        raise ArgumentError(f"{what} {value:#x} is no address")
    return value


def _of_cdata(function: Any) -> int:
    kind = ffi.typeof(function)
    if kind.kind == "function" and (len(kind.args) != 1 or kind.args[0].kind != "pointer"):
        raise ArgumentError(f"the function is a {kind.cname}: void (*)(void *) is needed")
    if kind.kind not in ("function", "pointer"):
        raise ArgumentError(f"the function is a {kind.cname}: {_NEEDED} is needed")
    return int(ffi.cast("uintptr_t", function))


def _check_ctypes(function: Any) -> None:
    arguments = function.argtypes
    if arguments is not None and len(arguments) != 1:
        raise ArgumentError(f"the function has {len(arguments)} arguments: one, a pointer, needed")


def function_address(function: Any) -> int:
    """The address of a ``void (*)(void *)``. Raises ArgumentError."""
    if isinstance(function, ffi.CData):
        address = _of_cdata(function)
    elif isinstance(function, _CTYPES_FUNCTION):
        _check_ctypes(function)
        address = ctypes.cast(function, ctypes.c_void_p).value or 0
    elif _is_address(function):
        address = int(function)
    elif _is_address(getattr(function, "address", None)):
        if isinstance(getattr(function, "ctypes", None), _CTYPES_FUNCTION):
            _check_ctypes(function.ctypes)
        address = int(function.address)
    else:
        raise ArgumentError(f"the function is a {type(function).__name__}: {_NEEDED} is needed")
    if address == 0:
        raise ArgumentError("the function is a null pointer")
    return _in_range(address, "function")


def argument_address(argument: Any) -> int:
    """What a function gets: the address of an array's first element, of what a cffi pointer points
    at, an integer as it is, or zero for None. Raises ArgumentError.
    """
    if argument is None:
        return 0
    if isinstance(argument, np.ndarray):
        return int(argument.ctypes.data)
    if isinstance(argument, ffi.CData):
        kind = ffi.typeof(argument)
        if kind.kind not in ("pointer", "array"):
            raise ArgumentError(f"the argument is a {kind.cname}: a pointer is needed")
        return int(ffi.cast("uintptr_t", argument))
    if _is_address(argument):
        return _in_range(int(argument), "argument")
    raise ArgumentError(
        f"the argument is a {type(argument).__name__}: a NumPy array, a cffi pointer, an address "
        "or None is needed"
    )
