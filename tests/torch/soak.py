"""Works torch.distributed for a long time: random operations, every result checked, leaks watched.

    python tests/torch/soak.py --minutes 30 --ranks 4 --seed 1

All ranks draw the same operations from one seed: collectives of every kind, dtype and size, alone
and several in flight, on the world and on groups that come and go, messages, objects, functional
and coalesced collectives. Each rank knows what the others contribute and checks each of its
results. A line every ten seconds says how far it is, and what memory, file descriptors, threads and
symmetric memory are in use when all groups are gone. A rank that is stuck for two minutes prints
the stacks of its threads and ends.

Exit status 0 if all results were right, no rank was stuck and nothing has grown; ``--backend gloo``
runs what that one can do as well.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

#: Arenas of threads and free lists would hold on to memory that nobody uses any more.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
#: What the other ranks may need to end by themselves when one has failed.
GRACE_S = 30.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--ranks", type=int, default=4, help="number of processes (4)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--backend", default="jetstream", help="jetstream (default) or gloo")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def start_ranks(options: argparse.Namespace) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = [f"--minutes={options.minutes}", f"--seed={options.seed}", f"--port={port}"]
    common += [f"--ranks={options.ranks}", f"--backend={options.backend}"]
    return [
        subprocess.Popen(
            [sys.executable, __file__, *common, f"--rank={rank}"], env={**os.environ, **MALLOC}
        )
        for rank in range(options.ranks)
    ]


def supervise(ranks: list[subprocess.Popen[bytes]], limit_s: float) -> int:
    """Waits for the ranks, at most so long; nothing is left behind. Returns the exit status."""
    deadline_s = time.monotonic() + limit_s
    try:
        while any(rank.poll() is None for rank in ranks):
            time.sleep(0.5)
            if any(rank.returncode for rank in ranks):
                deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
            if time.monotonic() > deadline_s:
                break
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    statuses = [rank.returncode for rank in ranks]
    print("right, and nothing has grown" if not any(statuses) else f"FAILED: {statuses}")
    return 1 if any(statuses) else 0


def main() -> int:
    options = parse_arguments()
    if options.rank is not None:
        sys.path.insert(0, str(Path(__file__).parent))
        from soak_rank import run_rank

        return run_rank(options)
    print(f"seed {options.seed}", flush=True)
    return supervise(start_ranks(options), options.minutes * 60 + 300)


if __name__ == "__main__":
    sys.exit(main())
