"""monitored_barrier: a barrier at which rank 0 says who has not come."""

from __future__ import annotations

import time

import numpy as np

from jetstream.communicator import Communicator
from jetstream.errors import TimedOutError
from jetstream.shapes import TAG_MAX

__all__ = ["monitored_barrier"]

#: Of messages that no user sends: torch's tags are ints of 32 bits with a sign.
_ARRIVED, _GO = TAG_MAX, TAG_MAX - 1


def monitored_barrier(
    comm: Communicator, number: int, timeout: float, wait_all_ranks: bool
) -> None:
    """Return when every rank has come, as ``torch.distributed.monitored_barrier``.

    ``number`` counts these barriers of the communicator, from 1: of one that has failed, messages
    may come during the next.
    Rank 0 raises RuntimeError after ``timeout`` seconds with the first rank that is missing, or
    with ``wait_all_ranks`` with all of them; the others then raise too. The texts are those of
    torch's gloo (ProcessGroupGloo.cpp), which programs may look for.
    """
    if comm.rank != 0:
        try:
            comm.send(np.array([number]), 0, _ARRIVED, timeout=timeout)
            _receive(comm, 0, _GO, number, time.monotonic() + timeout)
        except (TimedOutError, ConnectionError) as error:
            raise RuntimeError(
                f"Rank {comm.rank} successfully reached monitoredBarrier, but received errors "
                f"while waiting for send/recv from rank 0. Please check rank 0 logs for faulty "
                f"rank.\n Original exception: {error}"
            ) from error
        return
    missing, cause = _await_all(comm, number, timeout, wait_all_ranks)
    if not missing:
        missing, cause = _let_go(comm, number, timeout)
    if missing:
        which = "Ranks" if len(missing) > 1 else "Rank"
        raise RuntimeError(
            f"[Rank 0]: {which} {', '.join(map(str, missing))} failed to pass monitoredBarrier in "
            f"{1e3 * timeout:.0f} ms"
        ) from cause


def _receive(comm: Communicator, rank: int, tag: int, number: int, until_s: float) -> None:
    """Receive the message of the barrier ``number``; raises TimedOutError."""
    got = np.zeros(1, np.int64)
    while got[0] < number:
        comm.recv(got, rank, tag, timeout=max(1e-3, until_s - time.monotonic()))


def _await_all(
    comm: Communicator, number: int, timeout: float, wait_all_ranks: bool
) -> tuple[list[int], Exception | None]:
    """Who has not come, and how that showed."""
    until_s = time.monotonic() + timeout
    missing: list[int] = []
    cause: Exception | None = None
    for rank in range(1, comm.size):
        if not wait_all_ranks and time.monotonic() >= until_s:
            raise RuntimeError(
                f"[Rank 0]: Rank 0 timed out in monitoredBarrier after {1e3 * timeout:.0f} ms, "
                f"before rank {rank}; there were: {', '.join(map(str, range(rank)))}"
            )
        try:
            _receive(comm, rank, _ARRIVED, number, until_s)
        except (TimedOutError, ConnectionError) as error:
            missing.append(rank)
            cause = error
            if not wait_all_ranks:
                break
    return missing, cause


def _let_go(comm: Communicator, number: int, timeout: float) -> tuple[list[int], Exception | None]:
    """Tell all ranks that all have come; returns who cannot be told any more, and why."""
    lost: list[int] = []
    cause: Exception | None = None
    for rank in range(1, comm.size):
        try:
            comm.send(np.array([number]), rank, _GO, timeout=timeout)
        except (TimedOutError, ConnectionError) as error:  # the next ones still wait
            lost.append(rank)
            cause = error
    return lost, cause
