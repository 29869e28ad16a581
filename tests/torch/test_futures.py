"""Futures, which a thread completes while others are inside the group."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jetstream.errors import PeerClosedError, TimedOutError


def pile_up() -> None:
    """Starts operations while futures of earlier ones are pending, as DDP does."""
    rank, size = dist.get_rank(), dist.get_world_size()
    futures = []
    for step in range(200):
        if step % 20 == rank:
            time.sleep(0.003)  # the others have something to wait for
        started = [torch.full((n,), float(rank + step)) for n in (7, 30_000)]
        futures += [dist.all_reduce(x, async_op=True).get_future() for x in started]
        now = torch.full((5,), 1.0)
        dist.all_reduce(now)
        assert now.eq(size).all()
    for index, future in enumerate(futures):
        total = sum(rank + index // 2 for rank in range(size))
        assert future.wait()[0].eq(total).all()


def call_from_a_callback() -> None:
    """What follows a future runs in the thread that completes it, and may call the group."""
    size = dist.get_world_size()

    def again(future: Any) -> Any:
        dist.all_reduce(future.value()[0])
        return future.value()[0]

    for _ in range(20):
        work = dist.all_reduce(torch.ones(3), async_op=True)
        assert work.get_future().then(again).wait().eq(size * size).all()


def fail() -> None:
    """The group ends for a rank that leaves; the future has the error."""
    group = dist.new_group(list(range(dist.get_world_size())))
    if dist.get_rank() == 1:
        dist.destroy_process_group(group)
        return
    future = dist.all_reduce(torch.ones(3), group=group, async_op=True).get_future()
    with pytest.raises(RuntimeError, match=r"rank 1 .*closed"):
        future.wait()


@pytest.mark.parametrize("case", [pile_up, call_from_a_callback, fail])
def test_futures(on_ranks: Callable[..., list[Any]], case: Callable[[], None]) -> None:
    on_ranks(2, case)


@pytest.mark.parametrize("kind", [TimedOutError, PeerClosedError])
def test_errors_can_be_pickled(kind: Any) -> None:
    from jetstream.torch.errors import as_torch

    error = as_torch(kind("why", status="JS_ERR_TIMEOUT"))
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error) and isinstance(back, dist.DistBackendError)
    assert str(back) == str(error) and back.status == "JS_ERR_TIMEOUT"
