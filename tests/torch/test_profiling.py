"""What torch's profilers show of operations: a range for each, from its call to its completion."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def ranges(profile: Any) -> list[tuple[str, bool, list[list[int]]]]:
    """Name, whether asynchronous, and the inputs' shapes of jetstream's ranges, in order."""
    return [
        (event.name, event.is_async, event.input_shapes)
        for event in sorted(profile.function_events, key=lambda event: event.time_range.start)
        if event.name.startswith("jetstream:")
    ]


def operations_in_a_profile() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.ones(3, 4)
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        dist.all_reduce(x)
        dist.all_reduce(x.to(torch.complex64), async_op=True).wait()
        dist.all_gather_coalesced([[torch.empty(2), torch.empty(5)] for _ in range(size)],
                                  [torch.ones(2), torch.ones(5)])  # fmt: skip
        if rank == 0:
            dist.send(x, 1)
        elif rank == 1:
            dist.recv(x)
        dist.barrier()
    message = {
        0: [("jetstream:send", True, [[3, 4]])],
        1: [("jetstream:recvAnySource", True, [[3, 4]])],
    }
    assert ranges(profile) == [
        ("jetstream:all_reduce", True, [[3, 4]]),
        ("jetstream:all_reduce", True, [[3, 4, 2]]),
        ("jetstream:all_gather", True, [[2], [5]]),
        *message.get(rank, []),
        ("jetstream:barrier", True, []),
    ]
    before = len(ranges(profile))
    dist.all_reduce(x)
    assert len(ranges(profile)) == before


def failure_in_a_profile() -> None:
    with torch.autograd.profiler.profile() as profile:
        try:
            dist.all_gather([], torch.ones(2))
        except (ValueError, RuntimeError):
            pass
        else:
            raise AssertionError("a list of no outputs was taken")
        dist.all_reduce(torch.ones(2))
    assert [name for name, _, _ in ranges(profile)] == [
        "jetstream:all_gather",
        "jetstream:all_reduce",
    ]


def test_operations(on_ranks: Any) -> None:
    on_ranks(3, operations_in_a_profile)


def test_failure(on_ranks: Any) -> None:
    on_ranks(2, failure_in_a_profile)
