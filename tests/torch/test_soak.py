"""A moment of the soak program: all its operations, on ranks that are there already."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

SIZE = 3
OPERATIONS = 200


def run_operations(seed: int) -> tuple[dict[str, int], int]:
    sys.path.insert(0, str(Path(__file__).parent))
    from soak_operations import Operations, Place

    rank = dist.get_rank()
    members = [0, 2]
    part = dist.new_group(members)
    places = [Place(None, list(range(SIZE)), rank), Place(part, members, rank)]
    plan = random.Random(seed)
    operations = Operations(plan, random.Random(seed + 1 + rank), "jetstream")
    for _ in range(OPERATIONS):
        if plan.random() < 0.2:
            operations.in_flight([plan.choice(places) for _ in range(3)])
        else:
            operations.one(plan.choice(places))
    dist.barrier()
    if rank in members:
        dist.destroy_process_group(part)
    kinds = len(operations.asynchronous) + len(operations.alone)
    return dict(operations.kinds_done), kinds


def test_results_are_right(on_ranks: Any) -> None:
    done = on_ranks(SIZE, run_operations, 7)
    assert done[0] == done[1] == done[2]
    counts, kinds = done[0]
    assert len(counts) == kinds and min(counts.values()) > 1
