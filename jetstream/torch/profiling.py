"""Ranges in the profiles of torch: one for each operation, from its call until it is complete.

Only while a profiler runs; otherwise the price is a look at a variable of a module. As with torch's
own backends a range is an asynchronous event, named after backend and operation
(``jetstream:all_reduce``), with the shapes of the inputs where the profiler records shapes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

__all__ = [
    "Range",
    "reads_list",
    "reads_nothing",
    "reads_parts",
    "reads_second",
    "reads_second_one",
]


class Range:
    """An event that has begun. The first call of ``end`` ends it."""

    def __init__(self, title: str, inputs: Sequence[torch.Tensor]) -> None:
        handle = torch.autograd._record_function_with_args_enter(title, *inputs)
        self._end: Any = torch.futures.Future()
        torch.ops.profiler._call_end_callbacks_on_jit_fut._RecordFunction(handle, self._end)

    def end(self) -> None:
        """The operation is complete, or has failed."""
        future, self._end = self._end, None
        if future is None:
            return
        # An event that ends in another thread than it began in is what the profiler takes for
        # asynchronous; one that is not would have to end before those that began later.
        thread = threading.Thread(target=future.set_result, args=(None,), daemon=True)
        thread.start()
        thread.join()


# Of the arguments of a method, the tensors that it reads; profiles have their shapes.


def reads_list(tensors: Sequence[torch.Tensor], *_rest: Any, **_n: Any) -> Sequence[torch.Tensor]:
    """(tensors, ...)."""
    return tensors


def reads_second(
    _outputs: Any, inputs: Sequence[torch.Tensor], *_rest: Any, **_named: Any
) -> Sequence[torch.Tensor]:
    """(outputs, inputs, ...)."""
    return inputs


def reads_second_one(
    _output: Any, input: torch.Tensor, *_rest: Any, **_named: Any
) -> Sequence[torch.Tensor]:
    """(output, input, ...)."""
    return (input,)


def reads_parts(
    _outputs: Any, lists: Sequence[Sequence[torch.Tensor]], *_rest: Any, **_named: Any
) -> Sequence[torch.Tensor]:
    """(outputs, lists of one list of inputs, ...)."""
    return lists[0] if lists else ()


def reads_nothing(*_args: Any, **_named: Any) -> Sequence[torch.Tensor]:
    """Whatever there is."""
    return ()
