"""All-reduce of sparse tensors, as gloo has it; everything else refuses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from jetstream.errors import MismatchError


def sums(is_async: bool) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    wanted = torch.zeros(6, 2)
    for r in range(size):
        wanted[r : 2 * r] += torch.full((r, 2), r + 1.0)
    own = torch.zeros(6, 2)
    own[rank : 2 * rank] += torch.full((rank, 2), rank + 1.0)
    for sparse_dims in (1, 2):
        x = own.to_sparse(sparse_dims)  # on rank 0 without any element
        work = dist.all_reduce(x, async_op=is_async)
        if is_async:
            work.wait()
            assert torch.equal(work.get_future().value()[0].to_dense(), wanted)
        assert torch.equal(x.to_dense(), wanted)
    nothing = torch.zeros(4).to_sparse()
    dist.all_reduce(nothing)
    assert nothing.is_sparse and nothing.coalesce().indices().numel() == 0


def elsewhere_by_default() -> None:
    x = torch.eye(3).to_sparse()
    with torch.device("meta"):  # where new tensors are, if nothing else is said
        dist.group.WORLD.allreduce([x])
    assert torch.equal(x.to_dense(), torch.eye(3) * dist.get_world_size())


def refusals() -> None:
    x = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match="only sum"):
        dist.all_reduce(x, dist.ReduceOp.MAX)
    with pytest.raises(ValueError, match="sparse"):
        dist.broadcast(x, 0)
    y = torch.eye(3 + dist.get_rank()).to_sparse()
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        dist.all_reduce(y)
    assert isinstance(caught.value, MismatchError)
    dist.all_reduce(x)
    assert torch.equal(x.to_dense(), torch.eye(3) * dist.get_world_size())


def gradients_of_a_sparse_embedding() -> None:
    torch.manual_seed(1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Embedding(8, 2, sparse=True))
    model(torch.tensor([dist.get_rank(), 5])).sum().backward()
    wanted = torch.zeros(8, 2)
    wanted[:2] = 0.5
    wanted[5] = 1.0
    assert torch.equal(model.module.weight.grad.to_dense(), wanted)


@pytest.mark.parametrize("is_async", [False, True])
def test_sums(on_ranks: Any, is_async: bool) -> None:
    on_ranks(3, sums, is_async)


def test_another_default_device(on_ranks: Any) -> None:
    on_ranks(2, elsewhere_by_default)


def test_refusals(on_ranks: Any) -> None:
    on_ranks(2, refusals)


def test_ddp(on_ranks: Any) -> None:
    on_ranks(2, gradients_of_a_sparse_embedding)
