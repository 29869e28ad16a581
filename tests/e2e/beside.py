"""Beside the call that a test looks at: threads that call, a data plane that answers otherwise."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jetstream._core.native import lib

#: Nothing that works takes so long.
WAIT_S = 30.0


@contextmanager
def running(*bodies: Callable[[], Any]) -> Iterator[None]:
    """Each of the bodies again and again, in a thread of its own; their exceptions are raised."""
    is_over = threading.Event()
    errors: list[BaseException] = []

    def repeat(body: Callable[[], Any]) -> None:
        try:
            while not is_over.is_set():
                body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(WAIT_S)
    frames = sys._current_frames()
    stuck = [
        "".join(traceback.format_stack(frames[thread.ident]))
        for thread in threads
        if thread.is_alive() and thread.ident in frames
    ]
    assert not stuck, "\n".join([*stuck, *map(repr, errors)])
    for error in errors:
        raise error


class Lib:
    """The data plane; subclasses have calls of their own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


class BusyLib(Lib):
    """One in which another thread is always inside a call when one wants to close."""

    def js_comm_close(self, comm: Any) -> int:
        time.sleep(0.002)  # in which others may look at the handle
        return int(lib.JS_ERR_BUSY)
