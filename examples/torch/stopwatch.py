"""How long collectives take, seen by the program that calls them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

#: What a split model calls between its matrix products, and where: `all_reduce` is the ordinary
#: one; by the other, DTensor puts its parts together (the logits). Older torch calls it otherwise.
GATHER = "all_gather_single" if hasattr(funcol, "all_gather_single") else "all_gather_tensor"
WATCHED = ((dist, "all_reduce"), (funcol, GATHER))


class Stopwatch:
    """Takes the time of every collective called from Python while it is open.

    `times_us` holds them by name, in the order of the calls. A time includes waiting for the other
    ranks, and with functional collectives the wait for the result.
    """

    def __init__(self) -> None:
        self.times_us: dict[str, list[float]] = defaultdict(list)
        self._originals: list[tuple[Any, str, Callable[..., Any]]] = []

    @property
    def total_us(self) -> float:
        """Of all calls together."""
        return sum(map(sum, self.times_us.values()))

    def __enter__(self) -> Stopwatch:
        for module, name in WATCHED:
            original = getattr(module, name)
            self._originals.append((module, name, original))
            setattr(module, name, self._timed(name, original))
        return self

    def __exit__(self, *error: object) -> None:
        for module, name, original in self._originals:
            setattr(module, name, original)
        self._originals.clear()

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        times_us = self.times_us[name]

        def timed(*arguments: Any, **options: Any) -> Any:
            start_ns = time.perf_counter_ns()
            result = original(*arguments, **options)
            if isinstance(result, funcol.AsyncCollectiveTensor):
                result = result.wait()
            times_us.append((time.perf_counter_ns() - start_ns) / 1e3)
            return result

        return timed
