"""What fails between ranks is found by those who catch torch's errors, and jetstream's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jetstream.errors import ArgumentError, ClosedError, MismatchError, TimedOutError
from jetstream.torch.errors import as_torch


def one_comes_alone(is_async: bool) -> None:
    group = dist.new_group(timeout=timedelta(seconds=0.5))
    if dist.get_rank() == 0:
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
