"""Waiting on a core that another program wants: asleep, not yielding slice after slice."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from jetstream.communicator import Communicator
from jetstream.testing.plugin import Pools

WAITS = 40


def run_late_peer(comm: Communicator, cpus: list[int]) -> tuple[int, int]:
    """Rank 0 waits for rank 1 again and again; returns how often it yielded and slept."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpus[comm.rank]})
    hog = None
    if comm.rank == 0:  # its child, so that the scheduler has them in one group
        program = (  # which ends by itself, should this rank be killed
            "import time\nprint(1, flush=True)\nend_s = time.monotonic() + 60\n"
            "while time.monotonic() < end_s: pass"
        )
        hog = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert hog.stdout is not None and hog.stdout.readline() == b"1\n"
    try:
        comm.barrier()
        before = comm.counters()
        for _ in range(WAITS):
            if comm.rank == 1:
                time.sleep(0.02)
            comm.barrier()
        after = comm.counters()
    finally:
        if hog is not None:
            hog.kill()
            hog.communicate()
        os.sched_setaffinity(0, allowed)
    return after["yields"] - before["yields"], after["sleeps"] - before["sleeps"]


def test_a_rank_sleeps_where_others_want_its_core(rank_pools: Pools) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("each rank needs a core")
    yields, sleeps = rank_pools(2).run(run_late_peer, cpus)[0]
    print(f"{WAITS} waits: {yields} yields, {sleeps} sleeps")
    assert yields < WAITS / 2 and yields < sleeps
