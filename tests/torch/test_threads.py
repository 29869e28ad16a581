"""Several threads of a rank use one process group, as autograd, DDP and pipelines have them do."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist


def one_thread_receives_while_another_works() -> None:
    rank = dist.get_rank()
    other = 1 - rank
    received = torch.zeros(4)
    thread = threading.Thread(target=dist.recv, args=(received, other))
    thread.start()
    for _ in range(20):
        x = torch.ones(3)
        dist.all_reduce(x)
        assert x.eq(2).all()
        dist.all_reduce(x, async_op=True).wait()
        assert x.eq(4).all()
    dist.send(torch.full((4,), rank + 1.0), other)
    thread.join(30)
    assert received.eq(other + 1).all()


def futures_in_any_order() -> None:
    rank = dist.get_rank()
    late = torch.zeros(2)
    receiving = dist.irecv(late, 1 - rank)
    futures = [receiving.get_future()]
    totals = []
    for number in range(30):
        x = torch.full((3,), float(number))
        future = dist.all_reduce(x, async_op=True).get_future()
        totals.append(future.then(lambda done: float(done.value()[0][0])))
        futures.append(future)
    # The message that is awaited since before comes after all of these.
    assert [total.wait() for total in totals] == [2.0 * number for number in range(30)]
    assert not futures[0].done()
    dist.barrier()
    dist.send(torch.ones(2), 1 - rank)
    futures[0].wait()
    assert late.eq(1).all()


def future_that_is_late() -> None:
    group = dist.new_group(timeout=timedelta(seconds=0.5))
    if dist.get_rank() == 0:
        future = dist.irecv(torch.zeros(1), 1, group=group).get_future()
        with pytest.raises(RuntimeError, match="Timed out"):
            future.wait()
    dist.barrier()


@pytest.mark.parametrize(
    "body", [one_thread_receives_while_another_works, futures_in_any_order, future_that_is_late]
)
def test_threads(on_ranks: Any, body: Any) -> None:
    on_ranks(2, body)
