"""One rank's native handles: engine and communicator, from opening to closing."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Sequence
from typing import Any

from jetstream._core.native import check, ffi, lib
from jetstream._core.segment import Segment

__all__ = ["Endpoint"]

_open: weakref.WeakSet[Endpoint] = weakref.WeakSet()


class Endpoint:
    """The world communicator of a segment, as this rank holds it.

    ``handle`` is the cffi pointer ``js_comm *``, NULL once closed. ``pidfds[i]`` watches rank i
    (-1: nothing does); the endpoint keeps duplicates.
    """

    def __init__(
        self,
        segment: Segment,
        rank: int,
        *,
        pidfds: Sequence[int],
        oversubscribed: bool = False,
        spin_us: int = 0,
    ) -> None:
        self.handle: Any = ffi.NULL
        self.is_forked = False
        self._segment = segment
        config = ffi.new("js_wait_config *")
        config.spin_us = spin_us
        config.oversubscribed = int(oversubscribed)
        engine = ffi.new("js_engine **")
        check(lib.js_engine_new(segment.handle, rank, ffi.new("int32_t[]", pidfds), config, engine))
        self._engine = engine[0]
        out = ffi.new("js_comm **")
        try:
            check(lib.js_comm_open(self._engine, out))
        except BaseException:
            lib.js_engine_free(self._engine)
            raise
        self.handle = out[0]
        _open.add(self)

    def close(self) -> None:
        """Leave: peers that still wait for this rank get an error. Idempotent."""
        if self.handle == ffi.NULL or self.is_forked:
            return
        _open.discard(self)
        lib.js_comm_close(self.handle)
        self.handle = ffi.NULL
        lib.js_engine_free(self._engine)
        self._segment.close()

    def forget(self) -> None:
        """In the child of a fork: never touch the parent's segment again."""
        self.is_forked = True
        lib.js_comm_forked(self.handle)


def _close_all() -> None:
    for endpoint in list(_open):
        endpoint.close()


def _forget_all() -> None:
    for endpoint in list(_open):
        endpoint.forget()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
