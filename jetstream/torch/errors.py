"""Errors as users of torch.distributed catch them.

torch's backends raise ``dist.DistBackendError``, a RuntimeError, where an operation fails. Errors
of jetstream that are none get a class which is both: ``except RuntimeError`` and
``except jetstream.errors.TimedOutError`` find them alike.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from jetstream import errors

__all__ = ["as_torch"]

#: What the caller has got wrong, not the operation: torch has ValueError for these too.
_OF_CALLERS = (errors.ArgumentError, errors.ConfigurationError)
#: The class to raise, by the class of jetstream.
_classes: dict[type[errors.JetstreamError], Any] = {}


def as_torch(error: errors.JetstreamError) -> Exception:
    """The error to raise in place of ``error``, with its text and traceback, or itself."""
    if isinstance(error, (RuntimeError, *_OF_CALLERS)):
        return error
    text = str(error)
    if isinstance(error, errors.TimedOutError):
        text = f"[jetstream] Timed out waiting for the other ranks: {text}"
    raised: Exception = _both(type(error))(text, status=error.status)
    raised.__cause__ = error.__cause__
    return raised.with_traceback(error.__traceback__)


def __getattr__(name: str) -> Any:
    """The classes by their names, as pickle looks them up: torch pickles errors of futures."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.JetstreamError):
        return _both(kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _both(kind: type[errors.JetstreamError]) -> Any:
    found = _classes.get(kind)
    if found is None:
        own = {"__doc__": kind.__doc__, "__module__": __name__}
        found = type(kind.__name__, (kind, dist.DistBackendError), own)
        _classes[kind] = found
    return found
