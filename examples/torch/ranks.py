"""What the torch examples share: joining the other ranks, process groups, what rank 0 prints.

A rank is a process that `torchrun` or `jetstream run` has started. Both tell it who it is in the
same environment variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); without them it is alone.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

BACKENDS = ("gloo", "jetstream")
TIMEOUT = timedelta(minutes=5)


def give_up(why: object) -> NoReturn:
    """End the program with exit status 2; one rank says why."""
    if os.environ.get("RANK", "0") == "0":
        print(why, file=sys.stderr)
    sys.exit(2)


try:
    import torch
    import torch.distributed as dist
except ImportError as error:
    give_up(f"{error}: this example needs torch (pip install torch)")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the options that all examples have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, default="jetstream", help="who communicates (jetstream)"
    )
    parser.add_argument(
        "--compare", action="store_true", help="let gloo and jetstream do the same, in turn"
    )
    return parser


def backends_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The backends that the command line asks for."""
    return BACKENDS if arguments.compare else (arguments.backend,)


@dataclass
class Ranks:
    """The ranks of this job: who this one is, and the store in which all of them meet."""

    rank: int
    size: int
    store: Any  # a torch.distributed.Store: keys and values that all ranks can see
    _phases: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def process_group(self, backend: str) -> Iterator[None]:
        """A default process group for the duration of a block.

        A program that needs one group only says `dist.init_process_group(backend)`. Here several
        follow each other, so each has a corner of the store for itself.
        """
        store = dist.PrefixStore(f"group{next(self._phases)}", self.store)
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    def say(self, *words: object) -> None:
        """Print on rank 0."""
        if self.rank == 0:
            print(*words, flush=True)

    def wait_for_all(self, name: str) -> None:
        """Return when all ranks have come here; each place has a name of its own.

        Unlike a barrier it needs no process group, and no core while it waits.
        """
        if self.store.add(f"{name} reached", 1) == self.size:
            self.store.set(f"{name} passed", "")
        self.store.wait([f"{name} passed"], TIMEOUT)


def join() -> Ranks:
    """Meet the other ranks, and share the cores of this host with them."""
    if "RANK" in os.environ:
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    else:
        store, rank, size = dist.HashStore(), 0, 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
    return Ranks(rank, size, store)


def percentiles(times_us: Sequence[float] | torch.Tensor) -> str:
    """P50, p99 and p99.9 of some times in microseconds, as text."""
    values = torch.as_tensor(times_us, dtype=torch.float64).flatten()
    points = torch.tensor([0.5, 0.99, 0.999], dtype=torch.float64)
    p50, p99, p999 = values.quantile(points).tolist()
    return f"p50 {p50:.1f} us, p99 {p99:.1f} us, p99.9 {p999:.1f} us"
