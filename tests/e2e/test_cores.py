"""Cores taken to be near or far: the same results, and frames written past the caches or not."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from jetstream.communicator import Communicator
from jetstream.testing.plugin import Pools

#: Bytes of an array, about the sizes at which a frame is written in another way.
SIZES = (8, 40, 64, 504, 512, 520, 1000, 4096, 8200, 100_000, 1 << 20)


def run_all_kinds(comm: Communicator) -> int:
    """Rounds with data that change; returns how many frames went past the caches."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for turn in range(6):
        for nbytes in SIZES:
            x = np.arange(nbytes // 8, dtype=np.int64) * (comm.rank + 1) + turn
            everyone = [
                np.arange(nbytes // 8, dtype=np.int64) * (rank + 1) + turn
                for rank in range(comm.size)
            ]
            assert np.array_equal(comm.all_reduce(x, out=np.empty_like(x)), sum(everyone))
            for algo in ("one_shot", "two_shot", "lend"):
                total = comm.all_reduce(x, out=np.empty_like(x), algo=algo, chunk_bytes=1024)
                assert np.array_equal(total, sum(everyone)), algo
            assert np.array_equal(comm.all_gather(x), np.concatenate(everyone))
            got = comm.all_to_all(np.repeat(x, comm.size).reshape(-1, comm.size).T.copy())
            assert np.array_equal(got, everyone)
            work = comm.isend(x, right)
            assert np.array_equal(comm.recv(np.empty_like(x), left), everyone[left])
            work.wait()
    return comm.counters()["frames_streamed"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_near_and_far_give_the_same(rank_pools: Pools, ranks: int) -> None:
    near = rank_pools(ranks, env={"JETSTREAM_CORES": "near"}).run(run_all_kinds)
    assert near == [0] * ranks
    far = rank_pools(ranks, env={"JETSTREAM_CORES": "far"}).run(run_all_kinds)
    assert all(count > 500 for count in far) or platform.machine() not in ("x86_64", "AMD64")
    rank_pools(ranks).run(run_all_kinds)  # whatever is learned
