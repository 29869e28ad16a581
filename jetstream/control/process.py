"""Facts about this process that other ranks need, and watching another process by a pidfd."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

from jetstream.config import Config
from jetstream.control.links import own_choice
from jetstream.control.messages import Hello, Member
from jetstream.errors import RendezvousError

__all__ = ["bitmap_from_cpus", "cpus_from_bitmap", "describe_self", "has_ended", "open_pidfd"]


def describe_self(config: Config, *, build: str) -> Hello:
    """Returns what this process tells rank 0 about itself; `build` is the data plane's build id."""
    member = Member(
        rank=config.rank,
        local_rank=config.local_rank,
        pid=os.getpid(),
        start_ticks=_start_ticks(os.getpid()),
        host=(config.host or socket.gethostname())[:255],
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
        net_namespace=Path("/proc/self/ns/net").stat().st_ino,
        cpus=bitmap_from_cpus(os.sched_getaffinity(0)),
    )
    link_choice, link_reason = own_choice(config)
    return Hello(
        member=member,
        world_size=config.world_size,
        build=build,
        algorithms=";".join(":".join(pair) for pair in config.algorithms),
        link=config.link,
        link_choice=link_choice,
        link_reason=link_reason[:1024],
    )


def open_pidfd(pid: int, start_ticks: int) -> int:
    """Opens a pidfd of the process `pid` that started at `start_ticks`; the caller closes it.

    Raises RendezvousError if that process has ended, also if its number is in use again. The proof:
    the descriptor is open before the start time is read, and its process is alive after.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise RendezvousError(f"the process with pid {pid} has ended") from None
    try:
        is_same = _start_ticks(pid) == start_ticks
    except OSError:
        is_same = False
    if not is_same or has_ended(pidfd):
        os.close(pidfd)
        raise RendezvousError(f"the process with pid {pid} has ended")
    return pidfd


def has_ended(pidfd: int) -> bool:
    """Says whether the process behind `pidfd` has ended, also as a zombie."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def cpus_from_bitmap(bitmap: bytes) -> frozenset[int]:
    """Returns the numbers of the bits set in `bitmap`, lowest first in the first byte."""
    return frozenset(
        8 * index + bit for index, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1
    )


def bitmap_from_cpus(cpus: set[int]) -> bytes:
    """Returns the inverse of `cpus_from_bitmap`."""
    mask = sum(1 << cpu for cpu in cpus)
    return mask.to_bytes(max(cpus) // 8 + 1, "little")


def _start_ticks(pid: int) -> int:
    # The command name, in parentheses, may hold anything; field 22 is counted from behind it.
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat[stat.rindex(")") + 2 :].split()[19])
