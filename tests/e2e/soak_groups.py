"""Works communicators of some of the ranks for a long time, results checked, memory watched.

    python tests/e2e/soak_groups.py --seconds 600 --ranks 2..8

Like soak.py, but each round makes and closes communicators at random and runs all collectives and
messages on them: one after the other, several at once in threads of their own, and in flight in
several while their ranks wait for others. All ranks draw the same from a common seed.
"""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from soak import KINDS, Soak, Tally, anonymous_bytes, soak_main

from jetstream.communicator import Communicator
from jetstream.testing.reference import fold

GROUPS_MAX = 10
THREADS_MAX = 3
THREAD_LIMIT_S = 100.0


class GroupSoak(Soak):
    """All collectives and messages, on one communicator."""

    kinds = (*KINDS, "all_to_all", "rooted", "prefix")

    def do_all_to_all(self) -> None:
        arrays = self.arrays(self.comm.size)
        mine = self.place(arrays[self.comm.rank])
        got = self.comm.all_to_all(mine, out=self.room(mine))
        parts = [np.split(array, self.comm.size)[self.comm.rank] for array in arrays]
        self.check(got, np.concatenate(parts), "all_to_all", got.dtype, got.size)

    def do_rooted(self) -> None:
        arrays = self.arrays(self.comm.size)
        root = self.plan.randrange(self.comm.size)
        op = self.choose_op(arrays)
        mine = self.place(arrays[self.comm.rank])
        expected = np.split(arrays[root], self.comm.size)[self.comm.rank]
        part = self.comm.scatter(mine, root, out=self.place(np.zeros_like(expected)))
        self.check(part, expected, "scatter", mine.dtype, mine.size, root)
        gathered = self.comm.gather(mine, root)
        reduced = self.comm.reduce(mine, root, op)
        if self.comm.rank == root:
            self.check(gathered, np.concatenate(arrays), "gather", mine.dtype, mine.size, root)
            self.check(reduced, fold(arrays, op), "reduce", mine.dtype, mine.size, op, root)

    def do_prefix(self) -> None:
        arrays = self.arrays()
        op = self.choose_op(arrays)
        while op == "avg":  # has no prefixes
            op = self.choose_op(arrays)
        mine = self.place(arrays[self.comm.rank])
        got = self.comm.scan(mine.copy(), op)
        self.check(got, fold(arrays[: self.comm.rank + 1], op), "scan", got.dtype, got.size, op)
        before = self.comm.exscan(mine, op)
        if self.comm.rank > 0:
            self.check(before, fold(arrays[: self.comm.rank], op), "exscan", op)

    def work(self, count: int) -> None:
        for _ in range(count):
            getattr(self, f"do_{self.plan.choice(self.kinds)}")()
            self.tally.operations += 1


@dataclass
class Group:
    """A communicator: all ranks know of it, the members have it."""

    members: list[int]
    soak: GroupSoak | None


class Forest:
    """One rank's part of one round."""

    def __init__(self, comm: Communicator, seed: int) -> None:
        self.comm = comm
        self.plan = random.Random(seed)
        self.own = random.Random(seed + 1 + comm.rank)
        self.groups = [Group(list(range(comm.size)), self._soak(comm))]
        self.done: list[Tally] = []

    def _soak(self, comm: Communicator) -> GroupSoak:
        return GroupSoak(comm, self.plan.randrange(2**31))

    def run(self, seconds: float) -> Tally:
        deadline_s = time.monotonic() + seconds
        while self.comm.all_reduce(np.array([time.monotonic() < deadline_s]), "min")[0]:
            getattr(self, f"do_{self.plan.choice(('make', 'work', 'threads', 'flight'))}")()
            while len(self.groups) > GROUPS_MAX:
                self.close(self.plan.randrange(1, len(self.groups)))
        while len(self.groups) > 1:
            self.close(self.own.randrange(1, len(self.groups)))  # each rank in its own order
        tallies = [*self.done, *(group.soak.tally for group in self.groups if group.soak)]
        return Tally(
            operations=sum(tally.operations for tally in tallies),
            checked_bytes=sum(tally.checked_bytes for tally in tallies),
        )

    def close(self, index: int) -> None:
        soak = self.groups.pop(index).soak
        if soak is not None:
            self.done.append(soak.tally)
            if self.own.random() < 0.8:
                soak.comm.close()  # otherwise when it is collected

    def do_make(self) -> None:
        """Splits one of the communicators, or makes its double."""
        parent = self.plan.choice(self.groups)
        members = parent.members
        is_double = self.plan.random() < 0.3
        if is_double:
            colors, keys = dict.fromkeys(members, 0), {r: i for i, r in enumerate(members)}
        else:
            colors = {rank: self.plan.randrange(-1, 3) for rank in members}
            keys = {rank: self.plan.randrange(3) for rank in members}
        child, me = None, self.comm.rank
        if parent.soak is not None:
            comm = parent.soak.comm
            child = comm.dup() if is_double else comm.split(colors[me], keys[me])
        by_key = sorted(members, key=lambda rank: (keys[rank], members.index(rank)))
        for color in range(3):
            group = Group([rank for rank in by_key if colors[rank] == color], None)
            seed = self.plan.randrange(2**31)
            if not group.members:
                continue
            if child is not None and me in group.members:
                assert child.all_gather(np.array([me])).tolist() == group.members
                group.soak = GroupSoak(child, seed)
            self.groups.append(group)

    def choose(self) -> list[GroupSoak]:
        """Some of the communicators, for all ranks the same; those this rank is a member of."""
        count = self.plan.randint(1, THREADS_MAX)
        chosen = self.plan.sample(self.groups, min(count, len(self.groups)))
        return [group.soak for group in chosen if group.soak is not None]

    def do_work(self) -> None:
        count = self.plan.randrange(1, 10)
        for soak in self.choose():
            soak.work(count)

    def do_threads(self) -> None:
        """Each communicator in a thread of its own, the last one in this thread."""
        count = self.plan.randrange(1, 10)
        errors: list[BaseException] = []

        def guarded(work: Callable[[int], None]) -> None:
            try:
                work(count)
            except BaseException as error:
                errors.append(error)

        works = [soak.work for soak in self.choose()]
        threads = [threading.Thread(target=guarded, args=(work,)) for work in works[1:]]
        for thread in threads:
            thread.start()
        if works:
            guarded(works[0])
        for thread in threads:
            thread.join(THREAD_LIMIT_S)
            assert not thread.is_alive()
        if errors:
            raise errors[0]

    def do_flight(self) -> None:
        """Starts in all of them, and waits, in an order that no two ranks share."""
        soaks = self.choose()
        self.own.shuffle(soaks)
        flight = []
        for soak in soaks:
            size, rank = soak.comm.size, soak.comm.rank
            x = np.full(soak.plan.choice((1, 5000, 300_000)), rank + 1, np.int64)
            receive = soak.comm.irecv(np.zeros(3000), (rank - 1) % size)
            send = soak.comm.isend(np.full(3000, float(rank)), (rank + 1) % size)
            total = soak.comm.all_reduce(x, async_op=True)
            flight.append((soak, x.size, total, receive, send))
        self.own.shuffle(flight)
        for soak, count, total, receive, send in flight:
            size, rank = soak.comm.size, soak.comm.rank
            expected = np.full(count, size * (size + 1) // 2)
            soak.check(total.wait(), expected, "all_reduce in flight", count)
            soak.check(receive.wait(), np.full(3000, float((rank - 1) % size)), "message")
            send.wait()
            soak.tally.operations += 2


def run_round(comm: Communicator, seed: int, seconds: float) -> Tally:
    tally = Forest(comm, seed).run(seconds)
    gc.collect()
    comm.barrier()
    alone = comm.split(comm.rank)  # frees what this rank made and all have left
    assert alone is not None
    alone.close()
    assert comm.heap.used_bytes == 0, comm.heap
    tally.memory_bytes = anonymous_bytes()
    return tally


if __name__ == "__main__":
    sys.exit(soak_main(run_round, str(__doc__)))
