"""What surrounds every operation of a process group.

One thread at a time is inside its communicator; profiles get a range; errors become torch's.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import profiler

from jetstream.errors import JetstreamError
from jetstream.torch.errors import as_torch
from jetstream.torch.profiling import Range

__all__ = ["operation"]


class _Nesting(threading.local):
    """Is an operation being called by another? The outer one has the range."""

    is_inside = False


_nesting = _Nesting()


def operation(
    title: str, inputs: Callable[..., Sequence[torch.Tensor]]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a method of a process group that returns a Work.

    ``inputs`` is called with the arguments of the method, for the shapes. In profiles the group's
    ``range_prefix`` comes before the ``title``.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        names = inspect.getfullargspec(method).args
        surround = _BY_ARGUMENTS.get(len(names)) if names[-1] == "opts" else None
        return functools.wraps(method)((surround or _surround_any)(method, title, inputs))

    return decorate


# A call with as many arguments as the method has costs a tenth of a microsecond, one with "any
# arguments" three times as much.


def _surround_two(method: Any, title: str, inputs: Any) -> Callable[..., Any]:
    def call(self: Any, first: Any, opts: Any = None) -> Any:
        try:
            if not profiler._is_profiler_enabled:
                return method(self, first, opts)
            return _call_in_range(title, inputs, method, self, first, opts)
        except JetstreamError as error:
            raise as_torch(error) from error.__cause__

    return call


def _surround_three(method: Any, title: str, inputs: Any) -> Callable[..., Any]:
    def call(self: Any, first: Any, second: Any, opts: Any = None) -> Any:
        try:
            if not profiler._is_profiler_enabled:
                return method(self, first, second, opts)
            return _call_in_range(title, inputs, method, self, first, second, opts)
        except JetstreamError as error:
            raise as_torch(error) from error.__cause__

    return call


def _surround_any(method: Any, title: str, inputs: Any) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if not profiler._is_profiler_enabled:
                return method(self, *args, **kwargs)
            return _call_in_range(title, inputs, method, self, *args, **kwargs)
        except JetstreamError as error:
            raise as_torch(error) from error.__cause__

    return call


#: By the number of arguments, ``self`` included, the last being ``opts``.
_BY_ARGUMENTS = {3: _surround_two, 4: _surround_three}


def _call_in_range(
    title: str,
    inputs: Callable[..., Sequence[torch.Tensor]],
    method: Callable[..., Any],
    group: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if _nesting.is_inside:
        return method(group, *args, **kwargs)
    span = Range(f"{group.range_prefix}:{title}", inputs(*args, **kwargs))
    _nesting.is_inside = True
    try:
        work = method(group, *args, **kwargs)
    except BaseException:
        span.end()
        raise
    finally:
        _nesting.is_inside = False
    work.end_with(span.end)
    return work
