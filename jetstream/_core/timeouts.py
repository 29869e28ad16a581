"""Timeouts: seconds from callers, nanoseconds for the data plane."""

from __future__ import annotations

from jetstream.errors import ArgumentError

__all__ = ["timeout_to_ns"]

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
