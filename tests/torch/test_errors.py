"""What fails between ranks is found by those who catch torch's errors, and jetstream's."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jetstream.errors import ArgumentError, ClosedError, MismatchError, TimedOutError
from jetstream.torch.errors import as_torch


def one_comes_alone(is_async: bool) -> None:
    group = dist.new_group()
    if dist.get_rank() == 0:
        group.set_timeout(timedelta(seconds=0.5))  # not of making it, which may take longer
        with pytest.raises(dist.DistBackendError, match=r" Timed out .*rank 1") as caught:
            work = dist.barrier(group, async_op=is_async)
            work.wait()
        assert isinstance(caught.value, TimedOutError)
    dist.barrier()  # until then rank 1 does not leave the other group


def shapes_differ() -> None:
    x = torch.ones(2 + dist.get_rank())
    with pytest.raises(dist.DistBackendError) as caught:
        dist.all_reduce(x)
    assert isinstance(caught.value, MismatchError)


def coalesced_gather(group: Any) -> None:
    with dist._coalescing_manager(group):
        for _ in range(2):
            dist.all_gather_into_tensor(torch.zeros(2), torch.ones(1), group=group)


def future_result(group: Any) -> None:
    work = dist.irecv(torch.ones(3), 1, group=group)
    kinds = torch._C._distributed_c10d.WorkResult
    assert work.get_future_result().wait() is kinds.COMM_ERROR
    work.get_future().wait()


LATE = {
    "send": lambda group: dist.send(torch.ones(1 << 21), 1, group=group),
    "receive": lambda group: dist.recv(torch.ones(3), 1, group=group),
    "work": lambda group: dist.all_reduce(torch.ones(3), group=group, async_op=True).wait(),
    "future": lambda group: dist.irecv(torch.ones(3), 1, group=group).get_future().wait(),
    "result": future_result,
    "coalesced": lambda group: dist.all_reduce_coalesced([torch.ones(3)] * 2, group=group),
    "gathers": coalesced_gather,
}


def late_call_ends_the_group(kind: str) -> None:
    """Rank 1 hears of it, though its own call is another one, and does not wait."""
    warnings.simplefilter("ignore")
    group = dist.new_group()
    if dist.get_rank() == 0:
        group.set_timeout(timedelta(seconds=0.5))
        with pytest.raises(RuntimeError, match="Timed out"):
            LATE[kind](group)
    dist.barrier()
    if dist.get_rank() == 1:
        with pytest.raises(dist.DistBackendError, match="rank 0 gave up"):
            dist.barrier(group)
    dist.barrier()


@pytest.mark.parametrize("kind", LATE)
def test_late_call_ends_the_group(on_ranks: Any, kind: str) -> None:
    on_ranks(2, late_call_ends_the_group, kind)


@pytest.mark.parametrize("is_async", [False, True])
def test_timeout(on_ranks: Any, is_async: bool) -> None:
    on_ranks(2, one_comes_alone, is_async)


def test_shapes(on_ranks: Any) -> None:
    on_ranks(2, shapes_differ)


def test_what_becomes_of_errors() -> None:
    cause = OSError("cause")
    error = TimedOutError("rank 1 is missing", status="JS_ERR_TIMEOUT")
    error.__cause__ = cause
    raised = as_torch(error)
    assert isinstance(raised, RuntimeError) and isinstance(raised, TimedOutError)
    assert raised.status == "JS_ERR_TIMEOUT" and raised.__cause__ is cause
    assert "rank 1 is missing" in str(raised)
    assert as_torch(raised) is raised
    closed = ClosedError("closed")
    assert as_torch(closed) is closed
    argument = ArgumentError("one is needed")
    assert as_torch(argument) is argument
