"""Programs that name gloo run on jetstream where that was asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

import jetstream.torch
from jetstream.torch import ProcessGroupJetstream
from jetstream.torch.gloo import ProcessGroupStandIn


def in_place_of_gloo(store: str, program: Callable[..., Any]) -> Any:
    """Runs the program with a world that it believes to be gloo's."""
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    uninstall = jetstream.torch.install_as_gloo()
    try:
        timeout = timedelta(seconds=180)
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timeout
        )
        return program()
    finally:
        uninstall()


def everything_named_gloo() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    assert dist.get_backend() == "gloo"
    assert isinstance(dist.group.WORLD, ProcessGroupJetstream)
    x = torch.full((5,), rank + 1.0)
    dist.all_reduce(x)
    assert x.eq(size * (size + 1) / 2).all()
    pair = dist.new_group([0, 1], backend="gloo")
    if rank < 2:
        assert isinstance(pair, ProcessGroupJetstream)
        assert dist.get_backend(pair) == "gloo"
        said: list[Any] = [None, None]
        dist.all_gather_object(said, {"rank": rank}, group=pair)
        assert said == [{"rank": 0}, {"rank": 1}]
    for backend in (None, "cpu:gloo"):
        group = dist.new_group(backend=backend)
        assert isinstance(group, ProcessGroupJetstream), backend
        dist.barrier(group)
    mesh = dist.init_device_mesh("cpu", (size,))
    assert isinstance(mesh.get_group(), ProcessGroupJetstream)
    dist.monitored_barrier()


def one_step_of_ddp() -> list[float]:
    torch.manual_seed(3)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    model(torch.ones(2, 4) * (dist.get_rank() + 1)).sum().backward()
    grad = model.module.weight.grad
    assert grad is not None
    return [float(value) for value in grad.flatten()]


@pytest.mark.parametrize("size", [2, 3])
def test_everything_named_gloo(on_ranks: Any, tmp_path: Path, size: int) -> None:
    on_ranks(size, in_place_of_gloo, str(tmp_path / "store"), everything_named_gloo)


def test_ddp(on_ranks: Any, tmp_path: Path) -> None:
    grads = on_ranks(2, in_place_of_gloo, str(tmp_path / "store"), one_step_of_ddp)
    assert grads == [[3.0] * 4] * 2


def test_uninstalling() -> None:
    before = distributed_c10d.ProcessGroupGloo
    uninstall = jetstream.torch.install_as_gloo()
    try:
        assert distributed_c10d.ProcessGroupGloo is ProcessGroupStandIn
        again = jetstream.torch.install_as_gloo()
        real = before(dist.HashStore(), 0, 1, timedelta(seconds=5))
        assert isinstance(real, ProcessGroupStandIn)  # what torch asks of groups made before
        again()
        assert distributed_c10d.ProcessGroupGloo is before
    finally:
        uninstall()
    assert distributed_c10d.ProcessGroupGloo is before
    assert not isinstance(real, ProcessGroupStandIn)


def test_nothing_is_installed_unasked() -> None:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert not isinstance(dist.group.WORLD, ProcessGroupJetstream)
    finally:
        dist.destroy_process_group()


def test_there_is_no_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    with pytest.raises(RuntimeError, match="no gloo"):
        jetstream.torch.install_as_gloo()
