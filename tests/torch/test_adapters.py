"""The two adapters to torch: which one a group gets, and a group shared with another backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._C import _distributed_c10d

import jetstream.torch
from jetstream.errors import MismatchError
from jetstream.torch.backend_base import BackendJetstream, create_backend, is_shared

#: gloo stands for nccl: what the tensors of a device that is not there would go to.
SHARED = "cpu:jetstream,cuda:gloo"
can_share = hasattr(_distributed_c10d._DistributedBackendOptions(), "process_group")
needs_sharing = pytest.mark.skipif(
    not can_share, reason=f"torch {torch.__version__} has one backend for a group"
)

#: What torch's C++ looks for in a backend (py/PyBackend.hpp of torch 2.15), by Python's names.
OPERATIONS = (
    *("allreduce", "allreduce_coalesced", "allreduce_sparse", "reduce", "broadcast"),
    *("barrier", "monitored_barrier"),
    *("allgather", "allgather_coalesced", "all_gather_single", "all_gather_single_coalesced"),
    *("reduce_scatter", "reduce_scatter_single", "reduce_scatter_single_coalesced"),
    *("gather", "scatter", "alltoall", "all_to_all_single", "send", "recv", "recv_anysource"),
    *("getBackendName", "options", "set_timeout", "abort", "shutdown", "supports_coalescing"),
    *("supports_splitting", "supports_shrinking", "supports_reconfigure", "supports_window"),
    "_supports_time_estimate",
)


def group_of_torch(name: str, *devices: str) -> Any:
    return SimpleNamespace(name=lambda: name, _device_types=[torch.device(one) for one in devices])


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (SimpleNamespace(), False),
        (SimpleNamespace(process_group=None), False),
        (SimpleNamespace(process_group=group_of_torch("custom")), False),
        (SimpleNamespace(process_group=group_of_torch("nccl")), True),
        (SimpleNamespace(process_group=group_of_torch("custom", "cuda")), True),
    ],
)
def test_whether_a_group_is_shared(options: Any, shared: bool) -> None:
    assert is_shared(options) is shared


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_backend_leaves_no_operation_to_torch(name: str) -> None:
    for owner in BackendJetstream.__mro__:
        if name in vars(owner):
            assert owner.__module__.startswith("jetstream.torch."), owner
            return
    pytest.fail(f"there is no {name}")


@pytest.mark.parametrize("create", [create_backend, jetstream.torch._create])
def test_there_are_no_pg_options(create: Callable[..., Any]) -> None:
    store, timeout = dist.HashStore(), timedelta(seconds=20)
    opts = SimpleNamespace(store=store, group_rank=0, group_size=2, timeout=timeout)
    with pytest.raises(ValueError, match=r"^pg_options is a object: the jetstream backend has"):
        create(opts, object())


def one_step_of_ddp() -> None:
    rank = dist.get_rank()
    torch.manual_seed(rank)  # DDP takes the weights of rank 0
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
    model(torch.full((1, 4), rank + 1.0)).sum().backward()
    assert model.module.weight.grad.eq((1 + dist.get_world_size()) / 2).all()
    weight = model.module.weight.detach()
    others = [torch.empty_like(weight) for _ in range(dist.get_world_size())]
    dist.all_gather(others, weight)
    assert all(torch.equal(weight, one) for one in others)


def in_programs_of_all_kinds() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.full((2, 3), rank + 1.0, requires_grad=True)
    total = functional.all_reduce(x.detach(), "sum", dist.group.WORLD)
    rows = functional.all_gather_single(total * (rank + 1), 0, dist.group.WORLD)
    assert rows.view(size, 6)[:, 0].tolist() == [3.0 * (r + 1) for r in range(size)]
    mine = functional.reduce_scatter_single(rows, "sum", 0, dist.group.WORLD)
    assert mine.eq(3 * size * (rank + 1)).all()
    sparse = torch.eye(3).to_sparse()
    dist.all_reduce(sparse)
    assert torch.equal(sparse.to_dense(), torch.eye(3) * size)
    with dist._coalescing_manager():
        dist.all_reduce(a := torch.ones(3))
        dist.all_reduce(b := torch.ones(70_000))
    assert a.eq(size).all() and b.eq(size).all()


def errors_of_others() -> None:
    with pytest.raises(MismatchError, match="count=3") as caught:
        dist.all_reduce(torch.ones(3 + dist.get_rank()))
    assert isinstance(caught.value, dist.DistBackendError)


CASES = (one_step_of_ddp, in_programs_of_all_kinds, errors_of_others)


@pytest.mark.parametrize("case", CASES)
def test_alone(on_ranks: Callable[..., Any], case: Callable[[], None]) -> None:
    on_ranks(2, case)


@needs_sharing
@pytest.mark.parametrize("case", CASES)
def test_shared(on_ranks: Callable[..., Any], case: Callable[[], None]) -> None:
    on_ranks(2, case, backend=SHARED)


def a_shared_group() -> None:
    world = dist.group.WORLD
    own = world._get_backend(torch.device("cpu"))
    assert isinstance(own, BackendJetstream)
    assert own.options.backend == own.getBackendName() == "jetstream"
    assert type(world._get_backend(torch.device("cuda"))).__name__ == "ProcessGroupGloo"
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.full((3,), rank + 1.0)
    dist.all_reduce(x)
    assert x.eq(size * (size + 1) / 2).all()
    work = dist.all_reduce(x, dist.ReduceOp.MAX, async_op=True)
    assert work.get_future().wait()[0].data_ptr() == x.data_ptr()
    pair = dist.new_group([1, 0])
    backend = pair._get_backend(torch.device("cpu"))
    assert backend.global_ranks == (0, 1)
    dist.broadcast(x, 0, group=pair)
    ops = [
        dist.P2POp(dist.isend, torch.full((2,), rank), 1 - rank),
        dist.P2POp(dist.irecv, got := torch.empty(2, dtype=torch.int64), 1 - rank),
    ]
    for each in dist.batch_isend_irecv(ops):
        each.wait()
    assert got.eq(1 - rank).all()
    world.monitored_barrier()
    y = jetstream.torch.zeros(4, group=world)
    dist.all_reduce(y, group=world)
    dist.destroy_process_group(pair)
    with pytest.raises(RuntimeError, match="closed"):
        backend.communicator.barrier()


@needs_sharing
def test_beside_another_backend(on_ranks: Callable[..., Any]) -> None:
    on_ranks(2, a_shared_group, backend=SHARED)


class StandIn:
    """What torch 2.13 lacks: a class of backends that Python may derive from."""

    def __init__(self, rank: int, size: int) -> None:
        self.place = rank, size


def load_backend() -> Any:
    """The second adapter, as if this torch had such a class."""
    spec = importlib.util.find_spec("jetstream.torch.backend_base")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    dist.BackendBase = StandIn
    try:
        spec.loader.exec_module(module)
    finally:
        del dist.BackendBase
    return module


def a_backend_without_a_group() -> None:
    """Called as torch's C++ does it (PyBackend.hpp), except that nobody dispatches."""
    rank, size = dist.get_rank(), dist.get_world_size()
    store = dist.PrefixStore("backend", dist.distributed_c10d._get_default_store())
    options = SimpleNamespace(
        store=store, group_rank=rank, group_size=size, timeout=timedelta(seconds=40),
        global_ranks_in_group=[], group_id="7",
    )  # fmt: skip
    backend = load_backend().create_backend(options, None)
    assert isinstance(backend, StandIn) and backend.place == (rank, size)
    assert backend.options.backend == backend.getBackendName() == "jetstream"
    assert backend.options.global_ranks_in_group == list(range(size))
    assert backend.options._timeout == timedelta(seconds=40)
    total = size * (size + 1) / 2
    for call_options in (dist.AllreduceOptions(), None):
        x = torch.full((3,), rank + 1.0)
        work = backend.allreduce([x], call_options)
        assert work.wait() and x.eq(total).all()
        assert work.get_future().wait()[0].data_ptr() == x.data_ptr()
    sparse = torch.eye(3).to_sparse()
    backend.allreduce_sparse([sparse], dist.AllreduceOptions()).wait()
    assert torch.equal(sparse.to_dense(), torch.eye(3) * size)
    rows = torch.empty(size, 3)
    backend.all_gather_single(rows, x, _distributed_c10d.AllgatherOptions()).wait()
    assert rows.eq(total).all()
    sent, got = torch.full((2,), rank), torch.empty(2, dtype=torch.int64)
    works = backend.send([sent], (rank + 1) % size, 5), backend.recv([got], (rank - 1) % size, 5)
    assert all(work.wait() for work in works) and got.eq((rank - 1) % size).all()
    barrier = dist.BarrierOptions()
    backend.barrier(barrier).wait()
    backend.monitored_barrier()
    barrier.timeout = timedelta(seconds=20)
    backend.monitored_barrier(barrier, True)
    backend.set_timeout(timedelta(seconds=30))
    assert backend.communicator.timeout == 30
    backend.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        backend.barrier(barrier)


def test_a_backend_without_a_group(on_ranks: Callable[..., Any]) -> None:
    on_ranks(2, a_backend_without_a_group)


def what_frameworks_ask_a_group() -> None:
    world = dist.group.WORLD
    assert world._device_types == [torch.device("cpu")]  # checkpoints refuse others
    own = world._get_backend(torch.device("cpu"))
    assert not own.supports_splitting
    assert not own.supports_tensor_alloc(torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"^No backend type associated with device type meta"):
        world._get_backend(torch.device("meta"))


def test_what_frameworks_ask_a_group(on_ranks: Callable[..., Any]) -> None:
    on_ranks(2, what_frameworks_ask_a_group)
