"""One rank of soak.py: draws operations, carries them out, watches what the process holds."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import faulthandler
import gc
import random
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from soak_operations import Operations, Place

OPERATIONS_BETWEEN_VOTES = 50
GROUPS_MAX = 6
WATCHDOG_S = 120.0
PROGRESS_S = 10.0
#: What is in use then is compared with the end: a share of the time, in seconds at most.
WARM_SHARE, WARM_MAX_S = 0.2, 240.0
GROWTH_MAX_BYTES = 24 << 20
#: Of the threads that complete futures there are one or two, as it happens.
THREADS_MORE_MAX = 1


@dataclass
class Holdings:
    """What a process has in use."""

    memory_bytes: int
    descriptors: int
    threads: int
    heap_bytes: int

    def grown_since(self, then: Holdings) -> list[str]:
        grown = []
        if self.memory_bytes > then.memory_bytes + GROWTH_MAX_BYTES:
            grown.append(f"memory {then.memory_bytes >> 20} to {self.memory_bytes >> 20} MiB")
        for name, more in (("descriptors", 0), ("threads", THREADS_MORE_MAX), ("heap_bytes", 0)):
            if getattr(self, name) > getattr(then, name) + more:
                grown.append(f"{name} {getattr(then, name)} to {getattr(self, name)}")
        return grown

    def __str__(self) -> str:
        return (
            f"{self.memory_bytes / (1 << 20):.1f} MiB, {self.descriptors} descriptors, "
            f"{self.threads} threads, {self.heap_bytes} B of the heap"
        )


def measure(group: Any) -> Holdings:
    """What this process holds, after a collection."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but not yet given back, is no leak
    pages = Path("/proc/self/smaps_rollup").read_text()
    heap = getattr(group, "heap", None)
    return Holdings(
        memory_bytes=int(pages.split("Anonymous:")[1].split()[0]) * 1024,
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        threads=len(list(Path("/proc/self/task").iterdir())),
        heap_bytes=heap.used_bytes if heap is not None else 0,
    )


class Rank:
    """One rank's part. ``plan`` draws the same on all ranks, ``own`` does not."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rank, self.size = options.rank, options.ranks
        self.plan = random.Random(options.seed)
        self.own = random.Random(options.seed + 1 + options.rank)
        self.places = [Place(None, list(range(self.size)), self.rank)]
        self.operations = Operations(self.plan, self.own, options.backend)
        self.made = 0
        self.first: Holdings | None = None
        self.next_progress_s = 0.0

    def run(self, seconds: float) -> list[str]:
        """Returns what has grown."""
        start_s = time.monotonic()
        warm_s = start_s + min(seconds * WARM_SHARE, WARM_MAX_S)
        while self.vote(time.monotonic() < start_s + seconds):
            for _ in range(OPERATIONS_BETWEEN_VOTES):
                faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
                self.step()
            if self.vote(time.monotonic() > self.next_progress_s):
                self.report(time.monotonic() - start_s, self.vote(time.monotonic() > warm_s))
        last = self.holdings()
        return last.grown_since(self.first) if self.first is not None else []

    def vote(self, wish: bool) -> bool:
        """True if all ranks want it: none may do what another does not."""
        ballot = torch.tensor([int(wish)])
        dist.all_reduce(ballot, dist.ReduceOp.MIN)
        return bool(ballot.item())

    def step(self) -> None:
        draw = self.plan.random()
        if draw < 0.03:
            self.make_group()
        elif draw < 0.06 and len(self.places) > 1:
            self.end_group(self.plan.randrange(1, len(self.places)))
        elif draw < 0.17:
            count = self.plan.randint(2, 5)
            self.operations.in_flight([self.plan.choice(self.places) for _ in range(count)])
        else:
            self.operations.one(self.plan.choice(self.places))
        if self.plan.random() < 0.02:  # somebody is late
            time.sleep(self.own.random() * 0.005)

    def make_group(self) -> None:
        if len(self.places) > GROUPS_MAX:
            self.end_group(self.plan.randrange(1, len(self.places)))
        members = sorted(self.plan.sample(range(self.size), self.plan.randint(1, self.size)))
        group = dist.new_group(members, timeout=datetime.timedelta(seconds=WATCHDOG_S))
        self.places.append(Place(group, members, self.rank))
        self.made += 1

    def end_group(self, index: int) -> None:
        place = self.places.pop(index)
        if place.is_member:
            dist.destroy_process_group(place.group)

    def holdings(self) -> Holdings:
        while len(self.places) > 1:
            self.end_group(self.own.randrange(1, len(self.places)))  # in any order
        dist.barrier()
        gc.collect()
        dist.barrier()
        return measure(dist.group.WORLD)

    def report(self, seconds: float, is_warm: bool) -> None:
        now = self.holdings()
        if is_warm and self.first is None:
            self.first = now
        self.next_progress_s = time.monotonic() + PROGRESS_S
        if self.rank == 0:
            done = self.operations
            print(
                f"{seconds:5.0f} s: {done.count} operations, {done.checked_bytes / 1e6:.0f} MB "
                f"checked, {self.made} groups made; rank 0: {now}",
                flush=True,
            )


def run_rank(options: argparse.Namespace) -> int:
    """Exit status of this process."""
    warnings.simplefilter("ignore")  # of torch, about names that it wants to be rid of
    torch.set_num_threads(1)
    faulthandler.enable()
    dist.init_process_group(
        options.backend,
        init_method=f"tcp://127.0.0.1:{options.port}",
        rank=options.rank,
        world_size=options.ranks,
        timeout=datetime.timedelta(seconds=WATCHDOG_S),
    )
    rank = Rank(options)
    try:
        grown = rank.run(options.minutes * 60)
    except BaseException:
        print(f"rank {options.rank}, after {rank.operations.last}:", flush=True)
        traceback.print_exc()
        return 1
    faulthandler.dump_traceback_later(WATCHDOG_S, exit=True)
    counts: list[Any] = [None] * options.ranks
    dist.all_gather_object(counts, (options.rank, grown))
    if options.rank == 0:
        for number, what in counts:
            if what:
                print(f"rank {number} has grown: {', '.join(what)}")
        print("by kind:", dict(sorted(rank.operations.kinds_done.items())), flush=True)
    dist.destroy_process_group()
    return 1 if any(what for _, what in counts) else 0
