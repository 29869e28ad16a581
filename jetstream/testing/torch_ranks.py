"""Functions that use torch.distributed, on ranks that stay: importing torch takes seconds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any

from jetstream.testing.harness import RankPool, find_module
from jetstream.testing.outcomes import raise_failures

__all__ = ["TorchRanks"]

_WAIT_SHARE = 0.75


class TorchRanks:
    """A :class:`RankPool` whose functions each find a default process group of torch.

    ::

        with TorchRanks(4) as ranks:
            ranks.run(check_my_layer, "float32")      # check_my_layer("float32") on each rank

    Each function gets a new group, which is destroyed when it has returned. The parameters are
    those of RankPool. A context manager.
    """

    def __init__(
        self, n: int, *, timeout_s: float = 60.0, env: Mapping[str, str] | None = None, **hosts: Any
    ) -> None:
        self.size = n
        self._pool = RankPool(n, timeout_s=timeout_s, env=env, **hosts)
        self._folder = tempfile.TemporaryDirectory(prefix="jetstream-torch-")
        self._runs = 0

    def __enter__(self) -> TorchRanks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank."""
        return self._pool.pids

    @property
    def pool(self) -> RankPool:
        """The ranks, for functions that make their process group themselves."""
        return self._pool

    def run(
        self,
        fn: Callable[..., Any],
        *args: Any,
        backend: str = "jetstream",
        timeout_s: float | None = None,
    ) -> list[Any]:
        """Runs ``fn(*args)`` on every rank and returns the results, by rank. Raises as run_ranks.

        ``backend``: that of the process group.
        """
        __tracebackhide__ = True
        self._runs += 1
        budget_s = self._pool.timeout_s if timeout_s is None else timeout_s
        path = os.path.join(self._folder.name, f"store-{self._runs}")  # noqa: PTH118
        call = (fn, args, backend, path, self.size, _WAIT_SHARE * budget_s)
        self._pool.start(
            _run, *call, timeout_s=timeout_s, module=find_module(fn), rewrite_asserts=True
        )
        outcomes = self._pool.wait()
        raise_failures(outcomes, getattr(fn, "__name__", "fn"))
        return [outcome.value for outcome in outcomes]

    def close(self) -> None:
        """Ends the ranks. Idempotent."""
        self._pool.close()
        self._folder.cleanup()


def _run(
    comm: Any,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    backend: str,
    path: str,
    size: int,
    timeout_s: float,
) -> Any:
    import torch.distributed as dist

    dist.init_process_group(
        backend,
        store=dist.FileStore(path, size),
        rank=comm.rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        return fn(*args)
    finally:
        dist.destroy_process_group()
