"""Every method of the backend, as torch.distributed calls it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from jetstream.testing.torch_ranks import TorchRanks

SIZES = (2, 3)


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


def place() -> tuple[int, int]:
    return dist.get_rank(), dist.get_world_size()


def all_reduces() -> None:
    rank, size = place()
    total = size * (size + 1) // 2
    dtypes = (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16),
    )
    for dtype in dtypes:
        for shape in ((), (5, 3), (0,)):
            x = torch.full(shape, rank + 1, dtype=dtype)
            dist.all_reduce(x)
            assert torch.equal(x, torch.full(shape, total, dtype=dtype)), dtype
    for op, wanted in (("MIN", 1), ("MAX", size), ("AVG", total / size)):
        x = torch.full((4,), float(rank + 1))
        dist.all_reduce(x, getattr(dist.ReduceOp, op))
        assert x.eq(wanted).all(), op
    for factor in (0.5, torch.tensor([0.5])):
        x = torch.full((4,), float(rank + 1))
        dist.all_reduce(x, dist._make_nccl_premul_sum(factor))
        assert x.eq(total / 2).all()
        part = torch.empty(2)
        half = dist._make_nccl_premul_sum(factor)
        dist.reduce_scatter_single(part, torch.ones(2 * size), half)
        assert part.eq(size / 2).all()
    for is_async in (False, True):
        x = torch.eye(3).to_sparse()
        work = dist.all_reduce(x, async_op=is_async)
        assert work is None or work.wait()
        assert torch.equal(x.to_dense(), size * torch.eye(3))
    strided = torch.arange(12.0).reshape(3, 4).t()
    x = strided * (rank + 1)
    work = dist.all_reduce(x, async_op=True)
    work.wait()
    assert x.stride() == strided.stride()
    assert torch.equal(x, strided * total)


def gathers() -> None:
    rank, size = place()
    lists = [torch.empty(2, 2, dtype=torch.bfloat16) for _ in range(size)]
    dist.all_gather(lists, torch.full((2, 2), rank, dtype=torch.bfloat16))
    assert all(one.eq(r).all() for r, one in enumerate(lists))
    whole = torch.empty(size, 3, dtype=torch.complex32)
    parts = list(whole.unbind())  # one after another in memory
    dist.all_gather(parts, torch.full((3,), rank + 1, dtype=torch.complex32))
    assert torch.equal(whole.real[:, 0], torch.arange(1, size + 1, dtype=torch.half))
    flat = torch.empty(size * 2)
    dist.all_gather_single(flat, torch.full((2,), float(rank)))
    assert torch.equal(flat.view(size, 2)[:, 1], torch.arange(float(size)))
    uneven = [torch.empty(r + 1) for r in range(size)]
    dist.all_gather(uneven, torch.full((rank + 1,), float(rank)))
    assert all(one.eq(r).all() for r, one in enumerate(uneven))
    objects: list[object] = [None] * size
    dist.all_gather_object(objects, {"rank": rank, "text": "x" * 100 * rank})
    assert objects == [{"rank": r, "text": "x" * 100 * r} for r in range(size)]
    mine = [torch.empty(4) for _ in range(size)] if rank == 1 else None
    dist.gather(torch.full((4,), float(rank)), mine, dst=1)
    assert mine is None or all(one.eq(r).all() for r, one in enumerate(mine))


def scatters() -> None:
    rank, size = place()
    part = torch.empty(3, dtype=torch.float8_e4m3fn)
    parts = [torch.full((3,), r).to(part.dtype) for r in range(size)]
    dist.scatter(part, parts if rank == 1 else None, src=1)
    assert part.float().eq(rank).all()
    total = size * (size - 1) // 2
    out = torch.empty(2, 2)
    dist.reduce_scatter(out, [torch.full((2, 2), float(r + rank)) for r in range(size)])
    assert out.eq(rank * size + total).all()
    dist.reduce_scatter_single(out, torch.full((2 * size, 2), float(rank)))
    assert out.eq(total).all()


def exchanges() -> None:
    rank, size = place()
    out = torch.empty(size)
    dist.all_to_all_single(out, torch.full((size,), float(rank)))
    assert torch.equal(out, torch.arange(float(size)))
    rows = [r + 1 for r in range(size)]  # rank r sends r + 1 rows to each
    out = torch.empty(sum(rows), 2, dtype=torch.int32)
    own = torch.full((rows[rank] * size, 2), rank, dtype=torch.int32)
    dist.all_to_all_single(out, own, rows, [rows[rank]] * size)
    assert torch.equal(out[:, 0], torch.repeat_interleave(torch.arange(size), torch.tensor(rows)))
    lists = [torch.empty(r + 1) for r in range(size)]
    dist.all_to_all(lists, [torch.full((rank + 1,), float(rank)) for _ in range(size)])
    assert all(one.eq(r).all() for r, one in enumerate(lists))


def rooted() -> None:
    rank, size = place()
    x = torch.full((2, 3), rank).t()
    dist.broadcast(x, 1)
    assert x.eq(1).all()
    x = torch.full((2,), float(rank + 1))
    dist.reduce(x, 1, dist.ReduceOp.PRODUCT)
    assert rank != 1 or x.eq(torch.arange(1, size + 1).prod()).all()
    objects = [{"from": rank}] if rank == 0 else [None]
    dist.broadcast_object_list(objects, 0)
    assert objects == [{"from": 0}]
    dist.barrier()
    dist.group.WORLD.monitored_barrier(timedelta(seconds=20))


def without_options() -> None:
    """The group's own methods have the defaults of torch's options: from and to rank 0."""
    rank, size = place()
    group = dist.group.WORLD
    x = torch.full((2,), rank + 1)
    group.broadcast([x]).wait()
    assert x.eq(1).all()
    group.reduce([x]).wait()
    assert x.eq(size if rank == 0 else 1).all()
    rows = [torch.zeros(2) for _ in range(size)]
    group.gather([rows] if rank == 0 else [], [torch.full((2,), float(rank))]).wait()
    assert rank != 0 or all(row.eq(r).all() for r, row in enumerate(rows))
    out = torch.empty(2)
    group.scatter([out], [rows] if rank == 0 else []).wait()
    assert out.eq(rank).all()


def messages() -> None:
    rank, size = place()
    right, left = (rank + 1) % size, (rank - 1) % size
    got = torch.empty(1000)
    works = [
        dist.irecv(got, left, tag=5),
        dist.isend(torch.full((1000,), float(rank)), right, tag=5),
    ]
    for work in works:
        work.wait()
    assert got.eq(left).all()
    ops = [
        dist.P2POp(dist.isend, torch.full((2,), rank), right),
        dist.P2POp(dist.irecv, numbers := torch.empty(2, dtype=torch.int64), left),
    ]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert numbers.eq(left).all()
    if rank == 0:
        seen = {dist.recv(torch.empty(1)) for _ in range(size - 1)}
        assert seen == set(range(1, size))
    else:
        dist.send(torch.zeros(1), 0)


def asynchronous() -> None:
    rank, size = place()
    total = size * (size + 1) // 2
    xs = [torch.full((n,), float(rank + 1)) for n in (1, 100, 100_000)]
    works = [dist.all_reduce(x, async_op=True) for x in xs]
    futures = [work.get_future() for work in works]
    for x, future in zip(xs, futures, strict=True):
        assert future.wait()[0].data_ptr() == x.data_ptr()
        assert x.eq(total).all()
    assert all(work.is_completed() and work.is_success() for work in works)
    with dist._coalescing_manager():
        a, b = torch.ones(3), torch.ones(70_000)
        dist.all_reduce(a)
        dist.all_reduce(b)
    assert a.eq(size).all() and b.eq(size).all()


def functionals() -> None:
    rank, size = place()
    world = dist.group.WORLD
    assert functional.all_reduce(torch.ones(3), "sum", world).eq(size).all()
    gathered = functional.all_gather_single(torch.full((2,), rank), 0, world)
    assert torch.equal(gathered.view(size, 2)[:, 0], torch.arange(size))
    part = functional.reduce_scatter_single(torch.ones(2 * size), "sum", 0, world)
    assert part.eq(size).all()
    swapped = functional.all_to_all_single(torch.full((size,), rank), None, None, world)
    assert torch.equal(swapped + 0, torch.arange(size))


def groups() -> None:
    rank, size = place()
    pair = dist.new_group([1, 0])
    alone = [dist.new_group([r]) for r in range(size)]
    if rank < 2:
        x = torch.full((2,), rank + 1)
        dist.all_reduce(x, group=pair)
        assert x.eq(3).all()
        x = torch.full((1,), rank)
        dist.broadcast(x, 1, group=pair)
        assert x.eq(1).all()
    x = torch.full((2,), rank)
    dist.all_reduce(x, group=alone[rank])
    assert x.eq(rank).all()
    if rank < 2:
        dist.destroy_process_group(pair)
    mesh = dist.init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    x = torch.ones(1)
    dist.all_reduce(x, group=mesh.get_group("tp"))
    assert x.eq(size).all()


def local_groups() -> None:
    # The only group besides the world: torch counts it on its members alone, and names others by
    # that count.
    rank, size = place()
    local = dist.new_group([0, size - 1], use_local_synchronization=True)
    if rank in (0, size - 1):
        x = torch.full((2,), rank + 1)
        dist.all_reduce(x, group=local)
        assert x.eq(1 + size).all()


def barriers_that_failed() -> None:
    """What is left of one must not let the next one pass."""
    rank, _ = place()
    world, token = dist.group.WORLD, torch.zeros(1)
    for _ in range(2):
        if rank == 1:
            dist.recv(token, 0)
        with pytest.raises(RuntimeError, match="monitoredBarrier"):
            world.monitored_barrier(timedelta(seconds=0.2))
        if rank == 0:
            dist.send(token, 1)
    dist.barrier()
    world.monitored_barrier(timedelta(seconds=20))


CASES = (
    *(all_reduces, gathers, scatters, exchanges, rooted, without_options),
    *(messages, asynchronous, functionals, groups, local_groups),
)


@pytest.mark.parametrize("case", CASES)
def test_as_torch_calls_it(
    on_ranks: Callable[..., list[object]], size: int, case: Callable[[], None]
) -> None:
    on_ranks(size, case)


@pytest.mark.parametrize("size", [3])
def test_between_hosts(size: int) -> None:
    with TorchRanks(size, link="udp", hosts=2) as ranks:
        for case in (all_reduces, gathers, asynchronous, groups):
            ranks.run(case)


def test_barrier_after_one_that_failed(on_ranks: Callable[..., list[object]]) -> None:
    on_ranks(2, barriers_that_failed)
