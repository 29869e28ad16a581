"""Calls into the data plane and turns its statuses into exceptions."""

from __future__ import annotations

from typing import Any, NoReturn

from jetstream._native import ffi as _ffi
from jetstream._native import lib
from jetstream.errors import BY_STATUS, JetstreamError

__all__ = [
    "AGAIN",
    "FULL",
    "build_id",
    "check",
    "ffi",
    "lib",
    "raise_status",
    "status_name",
    "status_text",
    "text_of",
]

#: Untyped: what it makes has the attributes of C structs, which no stub knows.
ffi: Any = _ffi

AGAIN: int = lib.JS_ERR_AGAIN
FULL: int = lib.JS_ERR_FULL

#: Statuses of which every text comes from the fault of the communicator, not from the last error.
_TEXTLESS = frozenset((lib.JS_ERR_CLOSED, lib.JS_ERR_FORKED, lib.JS_ERR_FLUSHED))


def text_of(pointer: Any) -> str:
    """The text of a C string."""
    text: bytes = ffi.string(pointer)
    return text.decode("utf-8", "replace")  # it may quote a foreign build


def build_id() -> str:
    """Hash of the sources this data plane was built from."""
    return text_of(lib.js_build_id())


def status_name(status: int) -> str:
    """Name of a status, for example ``"JS_ERR_TIMEOUT"``."""
    return text_of(lib.js_status_name(status))


def status_text(status: int) -> str:
    """What a status means, in a few words."""
    return text_of(lib.js_status_text(status))


def raise_status(status: int, text: str) -> NoReturn:
    """Raise the exception class that belongs to a status."""
    name = status_name(status)
    raise BY_STATUS.get(name, JetstreamError)(text, status=name)


def check(status: int) -> None:
    """Return for success; raise what a negative status means, with the thread's last error."""
    if status >= 0:
        return
    error: Any = lib.js_last_error()
    if error.status == status and status not in _TEXTLESS:
        raise_status(status, text_of(error.text))
    raise_status(status, status_text(status))
