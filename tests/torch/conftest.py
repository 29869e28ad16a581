"""Ranks with torch, which all tests of this folder share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jetstream.testing.torch_ranks import TorchRanks

#: Of each test: its ranks may have to start and to import torch first, on cores that others want.
PATIENCE_S = 240.0

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py", "*/test_*.py"]


@pytest.fixture(scope="session")
def torch_pools() -> Iterator[Callable[[int], TorchRanks]]:
    pools: dict[int, TorchRanks] = {}

    def pool(size: int) -> TorchRanks:
        if size not in pools:
            pools[size] = TorchRanks(size, timeout_s=PATIENCE_S)
        return pools[size]

    yield pool
    for each in pools.values():
        each.close()


@pytest.fixture
def on_ranks(torch_pools: Callable[[int], TorchRanks]) -> Callable[..., list[Any]]:
    """``on_ranks(n, fn, *args)``: fn(*args) on n ranks within a new default process group."""

    def run(size: int, fn: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        __tracebackhide__ = True
        return torch_pools(size).run(fn, *args, **options)

    return run
