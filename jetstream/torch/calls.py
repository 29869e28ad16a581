"""What surrounds every operation of a process group: its range in profiles, errors as torch's."""

from __future__ import annotations

import functools
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
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if not profiler._is_profiler_enabled or _nesting.is_inside:
                    return method(self, *args, **kwargs)
                return _call_in_range(title, inputs, method, self, *args, **kwargs)
            except JetstreamError as error:
                raise as_torch(error) from error.__cause__

        return call

    return decorate


def _call_in_range(
    title: str,
    inputs: Callable[..., Sequence[torch.Tensor]],
    method: Callable[..., Any],
    group: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
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
