"""Timeouts: seconds from callers, nanoseconds for the data plane."""

from __future__ import annotations

import time

from jetstream.errors import ArgumentError

__all__ = ["Limit", "timeout_to_ns"]

_FOREVER_NS = 2**63


def timeout_to_ns(timeout: float | None, default_s: float) -> int:
    """Seconds to ns; None stands for the default, infinity is allowed. Raises ArgumentError."""
    seconds = default_s if timeout is None else timeout
    try:
        if seconds >= 0:
            return _FOREVER_NS if seconds >= _FOREVER_NS / 1e9 else max(1, int(seconds * 1e9))
    except TypeError:
        pass
    raise ArgumentError(f"timeout is {timeout!r}: a number of seconds, zero or more, is needed")


class Limit:
    """When a wait ends that takes several calls into the data plane.

    The data plane goes on with a wait that is soon gone on with; what a thread does in between may
    take longer than that. ``timeout_ns`` counts from the first look, so a wait of one call does
    not ask for the time.
    """

    __slots__ = ("_end_ns", "_timeout_ns")

    def __init__(self, timeout_ns: int) -> None:
        self._timeout_ns = timeout_ns
        self._end_ns: int | None = None

    def is_over(self) -> bool:
        """Called after each call into the data plane that has not come to an end."""
        now_ns = time.monotonic_ns()
        if self._end_ns is None:
            self._end_ns = now_ns + self._timeout_ns
        return now_ns >= self._end_ns
