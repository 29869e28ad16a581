"""monitored_barrier when ranks fail in the middle of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jetstream.errors import MismatchError, PeerDiedError
from jetstream.torch.monitored import monitored_barrier

LIMIT_S = 20.0


class Rank0:
    """A communicator whose rank 1 has died since it came."""

    rank, size = 0, 4

    def __init__(self) -> None:
        self.told: list[int] = []

    def recv(self, out: Any, _source: int, _tag: int, *, timeout: float) -> None:
        out[0] = 1

    def send(self, _array: Any, target: int, _tag: int, *, timeout: float) -> None:
        assert timeout == LIMIT_S
        if target == 1:
            raise PeerDiedError("rank 1 (pid 7) died")
        self.told.append(target)


def test_the_others_may_go_where_one_has_died() -> None:
    comm: Any = Rank0()
    with pytest.raises(RuntimeError, match=r"Rank 1 failed to pass monitoredBarrier") as caught:
        monitored_barrier(comm, 1, LIMIT_S, False)
    assert isinstance(caught.value.__cause__, PeerDiedError)
    assert comm.told == [2, 3]


def after_a_mismatch() -> None:
    with pytest.raises(MismatchError):
        dist.all_reduce(torch.ones(2 + dist.get_rank()))
    with pytest.raises(dist.DistBackendError):
        dist.group.WORLD.monitored_barrier(timedelta(seconds=LIMIT_S))


def test_errors_are_those_of_torch(on_ranks: Callable[..., Any]) -> None:
    on_ranks(2, after_a_mismatch)
