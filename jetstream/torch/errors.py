"""Errors as users of torch.distributed catch them.

torch's backends raise ``dist.DistBackendError``, a RuntimeError, where an operation fails. Errors
of jetstream that are none get a class which is both: ``except RuntimeError`` and
``except jetstream.errors.TimedOutError`` find them alike.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from jetstream.errors import ArgumentError, ConfigurationError, JetstreamError, TimedOutError

__all__ = ["as_torch"]

#: What the caller has got wrong, not the operation: torch has ValueError for these too.
_OF_CALLERS = (ArgumentError, ConfigurationError)
#: The class to raise, by the class of jetstream.
_classes: dict[type[JetstreamError], Any] = {}


def as_torch(error: JetstreamError) -> Exception:
    """The error to raise in place of ``error``, with its text and traceback, or itself."""
    if isinstance(error, (RuntimeError, *_OF_CALLERS)):
        return error
    text = str(error)
    if isinstance(error, TimedOutError):
        text = f"[jetstream] Timed out waiting for the other ranks: {text}"
    raised: Exception = _both(type(error))(text, status=error.status)
    raised.__cause__ = error.__cause__
    return raised.with_traceback(error.__traceback__)


def _both(kind: type[JetstreamError]) -> Any:
    found = _classes.get(kind)
    if found is None:
        found = type(kind.__name__, (kind, dist.DistBackendError), {"__doc__": kind.__doc__})
        _classes[kind] = found
    return found
