"""How the ranks of a group come together, and what they hear when one of them cannot.

No group here has a timeout that would end within a test, but for that which a rank is to miss: who
raises has heard of the reason.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jetstream.communicator import Communicator
from jetstream.errors import (
    ClosedError,
    ConfigurationError,
    PeerClosedError,
    RendezvousError,
)
from jetstream.testing.torch_ranks import TorchRanks
from jetstream.torch import bootstrap
from jetstream.torch import group as groups
from jetstream.torch.bootstrap import Meeting

N = 3
LONG_S = 600.0
MISSED_S = 2.0
Pools = Callable[[int], TorchRanks]


def open_group(comm: Communicator, folder: Path, timeout_s: float = LONG_S) -> None:
    store = dist.FileStore(str(folder / "store"), comm.size)
    dist.init_process_group(
        "jetstream", store=store, rank=comm.rank, world_size=comm.size,
        timeout=timedelta(seconds=timeout_s),
    )  # fmt: skip


def fails(kind: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


@contextmanager
def looking_often() -> Iterator[None]:
    """Who waits looks more often whether the others are still there."""
    usual_s, bootstrap._LOOK_S = bootstrap._LOOK_S, 0.5
    try:
        yield
    finally:
        bootstrap._LOOK_S = usual_s


def run_bad_setting(comm: Communicator, folder: Path, bad: int, settings: dict[str, str]) -> str:
    if comm.rank != bad:
        return fails(RendezvousError, lambda: open_group(comm, folder))
    os.environ.update(settings)
    try:
        return fails(ConfigurationError, lambda: open_group(comm, folder))
    finally:
        for name in settings:
            del os.environ[name]


def run_bad_options(comm: Communicator, folder: Path) -> str:
    if comm.rank != 1:
        return fails(RendezvousError, lambda: open_group(comm, folder))
    store = dist.FileStore(str(folder / "store"), comm.size)
    make = partial(dist.init_process_group, "jetstream", store=store, rank=1, world_size=comm.size)
    return fails(ValueError, lambda: make(pg_options=object()))


def run_late(comm: Communicator, folder: Path) -> str:
    """Rank 1 comes when the others have given up."""
    if comm.rank == 1:
        comm.barrier()
        return fails(RendezvousError, lambda: open_group(comm, folder))
    text = fails(RendezvousError, lambda: open_group(comm, folder, MISSED_S))
    comm.barrier()
    return text


def run_closed(comm: Communicator, folder: Path) -> str:
    """Of the world that a group is to be made in, a rank has nothing left."""
    open_group(comm, folder)
    try:
        if comm.rank == 1:
            dist.group.WORLD.communicator.close()
        return fails(ClosedError if comm.rank == 1 else RendezvousError, dist.new_group)
    finally:
        dist.destroy_process_group()


def run_death(comm: Communicator, folder: Path) -> str:
    """A rank that dies while the others wait for it."""
    open_group(comm, folder)
    if comm.rank == 1:
        dist.barrier()
        os._exit(3)
    dist.barrier()
    try:
        with looking_often():
            return fails(ConnectionError, dist.new_group)  # what it finds, or the other tells
    finally:
        dist.destroy_process_group()


def run_leave(comm: Communicator, folder: Path) -> str:
    """A rank that destroys the world while another one makes a group in it."""
    open_group(comm, folder)
    text = ""
    if comm.rank == 0:
        with looking_often():
            text = fails(PeerClosedError, lambda: dist.new_group([0, 1]))
    dist.destroy_process_group()
    comm.barrier()
    return text


def run_abort(comm: Communicator, folder: Path) -> None:
    """No group is made in the memory of a world that has been aborted, whoever still has it."""
    open_group(comm, folder)
    kept = dist.group.WORLD if comm.rank == 1 else None
    dist.distributed_c10d._abort_process_group()
    gc.collect()
    comm.barrier()
    (folder / "next").mkdir(exist_ok=True)
    run_well(comm, folder / "next")
    if kept is not None:
        kept.shutdown()


def run_worlds_differ(comm: Communicator, folder: Path) -> str:
    open_group(comm, folder)
    try:
        if comm.rank == 1:
            groups._worlds.clear()
        return fails(RendezvousError, dist.new_group)
    finally:
        dist.destroy_process_group()


def run_well(comm: Communicator, folder: Path) -> None:
    """What has failed before leaves nothing that would be in the way."""
    open_group(comm, folder)
    dist.all_reduce(x := torch.ones(5))
    assert x.eq(comm.size).all()
    dist.destroy_process_group()


SETTINGS = (
    {"JETSTREAM_SPIN_US": "many"},
    {"JETSTREAM_PROGRESS": "thread", "JETSTREAM_PROGRESS_CORE": "1023"},
)


@pytest.mark.parametrize(("bad", "number"), [(0, 0), (1, 0), (2, 1)])
def test_what_one_rank_cannot_work_with(
    torch_pools: Pools, tmp_path: Path, bad: int, number: int
) -> None:
    settings = SETTINGS[number]
    texts = torch_pools(N).pool.run(run_bad_setting, tmp_path, bad, settings)
    assert all(list(settings)[-1] in text for text in texts), texts
    others = [text for rank, text in enumerate(texts) if rank != bad]
    start = f"rank {bad} could not join the group: ConfigurationError: "
    assert all(text.startswith(start) for text in others), others


def test_options_that_one_rank_has(torch_pools: Pools, tmp_path: Path) -> None:
    texts = torch_pools(N).pool.run(run_bad_options, tmp_path)
    for rank in (0, 2):
        start = "rank 1 could not join the group: ValueError: pg_options is a object"
        assert texts[rank].startswith(start), texts


def test_who_comes_late_hears_why_nobody_is_there(torch_pools: Pools, tmp_path: Path) -> None:
    texts = torch_pools(N).pool.run(run_late, tmp_path)
    # The third one may come late as well.
    wanted = re.compile(r"of 3 ranks of the group .*\b1\b.* have not come within 2 s")
    assert all(wanted.search(text) for text in texts), texts


def test_a_rank_without_the_world_of_the_group(torch_pools: Pools, tmp_path: Path) -> None:
    texts = torch_pools(N).pool.run(run_closed, tmp_path)
    for rank in (0, 2):
        assert texts[rank].startswith("rank 1 could not join the group: ClosedError: "), texts


def test_a_rank_that_dies_meanwhile(torch_pools: Pools, tmp_path: Path) -> None:
    outcomes = torch_pools(N).pool.collect(run_death, tmp_path)
    assert outcomes[1].has_died
    for rank in (0, 2):
        assert outcomes[rank].failure is None, outcomes[rank].details
        assert "rank 1" in outcomes[rank].value, outcomes[rank].value


def test_a_rank_that_leaves_meanwhile(torch_pools: Pools, tmp_path: Path) -> None:
    text = torch_pools(N).pool.run(run_leave, tmp_path)[0]
    assert "rank 1" in text, text


def test_a_group_after_an_abort(torch_pools: Pools, tmp_path: Path) -> None:
    torch_pools(N).pool.run(run_abort, tmp_path)


def test_worlds_that_differ(torch_pools: Pools, tmp_path: Path) -> None:
    for text in torch_pools(N).pool.run(run_worlds_differ, tmp_path):
        assert "do not agree on where" in text and "a world of its own on rank 1" in text


def test_a_group_after_those(torch_pools: Pools, tmp_path: Path) -> None:
    torch_pools(N).pool.run(run_well, tmp_path)


@pytest.mark.parametrize("has_come", [False, True])
def test_a_rank_that_is_gone_when_it_is_looked_after(has_come: bool) -> None:
    """What it has said before counts: its reason, or that it had come."""
    store, timeout = dist.HashStore(), timedelta(seconds=LONG_S)
    here, there = Meeting(store, 0, 2, timeout), Meeting(store, 1, 2, timeout)

    def look(rank: int) -> None:
        assert rank == 1
        if has_come:
            there.exchange("two")
        else:
            with suppress(ValueError), there:
                raise ValueError("no room")
        raise PeerClosedError("rank 1 has closed")

    here.look = look
    with looking_often():
        if has_come:
            assert here.exchange("one") == ["one", "two"]
        else:
            text = fails(RendezvousError, lambda: here.exchange("one"))
            assert text == "rank 1 could not join the group: ValueError: no room"


def test_the_oldest_world_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class World:
        def __init__(self, *ranks: int) -> None:
            self.global_ranks = ranks

    worlds: list[Any] = [World(0, 1), World(0, 1, 2), World(0, 1, 2, 3)]
    monkeypatch.setattr(groups, "_worlds", {7: worlds[2], 5: worlds[1], 3: worlds[0]})
    assert groups._world_of([1, 2]) is worlds[1]
    assert groups._world_of([0]) is worlds[0]
    assert groups._world_of([4]) is None
