"""Tensors with many elements in one place: they may be read from, and take no result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jetstream.communicator import Communicator
from jetstream.errors import ArgumentError


def run_expanded() -> None:
    group: Any = dist.group.WORLD
    comm: Communicator = group.communicator
    size, rank = comm.size, comm.rank
    one = torch.full((1,), rank + 1.0)
    x = one.expand(2 * size)
    total = size * (size + 1) / 2
    ranks = [float(r) for r in range(1, size + 1)]
    for _ in range(2):
        y = x if rank == 1 else torch.zeros(2 * size)
        assert comm.broadcast(y, 1) is y and y.eq(2).all()
        y = x if rank == 1 else torch.zeros(2 * size)
        assert comm.broadcast(y, 1, async_op=True).wait() is y and y.eq(2).all()
        assert comm.all_reduce(x, out=torch.zeros(2 * size)).eq(total).all()
        assert comm.all_gather(x).view(size, -1)[:, 0].tolist() == ranks
        assert comm.reduce_scatter(x).tolist() == [total] * 2
        assert comm.all_to_all(x)[::2].tolist() == ranks
        assert comm.scan(x, out=torch.zeros(2 * size))[0] == sum(ranks[: rank + 1])
        part = comm.scatter(x, out=torch.zeros(2))
        assert part.eq(1).all()
        comm.reduce(x, out=torch.zeros(2 * size))
        comm.gather(x)
        works = [comm.isend(x, (rank + 1) % size)]
        assert comm.recv(torch.zeros(2 * size), (rank - 1) % size)[0] == ranks[rank - 1]
        works[0].wait()
    for call in (
        lambda: comm.broadcast(x, 1 - rank),
        lambda: comm.all_gather(one, out=torch.zeros(1).expand(size)),
        lambda: comm.reduce_scatter(torch.zeros(2 * size), out=torch.zeros(1).expand(2)),
        lambda: comm.all_to_all(torch.zeros(2 * size), out=x),
        lambda: comm.reduce(x, rank),
        lambda: comm.recv(x, 0),
    ):
        with pytest.raises(ArgumentError, match="elements that share memory"):
            call()
    assert one.item() == rank + 1


def test_expanded(on_ranks: Callable[..., Any]) -> None:
    on_ranks(2, run_expanded)
