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

__all__ = ["Range"]


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
