"""Several threads of a rank use one process group, as autograd, DDP and pipelines have them do."""

from __future__ import annotations

import contextlib
import threading
import time
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
    thread.join(120)
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
    group = dist.new_group()
    if dist.get_rank() == 0:
        group.set_timeout(timedelta(seconds=0.5))
        future = dist.irecv(torch.zeros(1), 1, group=group).get_future()
        with pytest.raises(RuntimeError, match="Timed out"):
            future.wait()
    dist.barrier()


def callback_that_waits_for_another_future() -> None:
    def again(done: torch.futures.Future[list[torch.Tensor]]) -> float:
        y = done.value()[0].clone()
        return float(dist.all_reduce(y, async_op=True).get_future().wait()[0][0])

    future = dist.all_reduce(torch.ones(3), async_op=True).get_future()
    assert future.then(again).wait() == 4.0


def group_that_is_destroyed_with_futures_pending() -> None:
    for _ in range(20):
        group = dist.new_group()
        future = None
        if dist.get_rank() == 0:
            future = dist.irecv(torch.zeros(1), 1, group=group).get_future()
        work = dist.all_reduce(torch.ones(2), async_op=True, group=group)
        done = work.get_future()
        work.wait()
        dist.destroy_process_group(group)
        assert done.wait()[0].eq(2).all()
        if future is not None:
            with pytest.raises(RuntimeError):  # it, or the other rank, has left the group
                future.wait()


def buffers_of_work_that_nobody_holds() -> None:
    group = dist.new_group()
    with contextlib.suppress(RuntimeError):  # the other rank may have left already
        for numel in (3_000_000, 2):
            dist.all_reduce(torch.ones(numel), async_op=True, group=group)
    dist.destroy_process_group(group)
    dist.barrier()


def wait_beside_a_future() -> None:
    if dist.get_rank() == 0:
        work = dist.irecv(torch.zeros(1), 1)
        future = work.get_future()
        begin_s = time.monotonic()
        with pytest.raises(RuntimeError, match="Timed out"):
            work.wait(timedelta(seconds=0.2))
        assert 0.15 < time.monotonic() - begin_s < 60
        dist.barrier()
        future.wait()
    else:
        dist.barrier()
        dist.send(torch.ones(1), 0)


@pytest.mark.parametrize(
    "body",
    [
        one_thread_receives_while_another_works,
        futures_in_any_order,
        future_that_is_late,
        callback_that_waits_for_another_future,
        group_that_is_destroyed_with_futures_pending,
        buffers_of_work_that_nobody_holds,
        wait_beside_a_future,
    ],
)
def test_threads(on_ranks: Any, body: Any) -> None:
    on_ranks(2, body)
