"""What a process says about itself, and pidfds that cannot name the wrong process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.config import Config, load_config
from jetstream.control.process import (
    bitmap_from_cpus,
    cpus_from_bitmap,
    describe_self,
    has_ended,
    open_pidfd,
)
from jetstream.errors import RendezvousError


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@given(st.sets(st.integers(0, 1000), min_size=1))
def test_bitmap_round_trip(cpus: set[int]) -> None:
    assert cpus_from_bitmap(bitmap_from_cpus(cpus)) == cpus


def test_describe_self() -> None:
    config = load_config(
        {
            "JETSTREAM_RANK": "2",
            "JETSTREAM_WORLD_SIZE": "3",
            "JETSTREAM_RENDEZVOUS": "ipc://@x",
            "JETSTREAM_ALGO": "broadcast:direct;all_reduce:one_shot",
        }
    )
    me = describe_self(config, build="b1")
    assert (me.member.rank, me.member.local_rank, me.world_size) == (2, 2, 3)
    assert me.member.pid == os.getpid()
    assert cpus_from_bitmap(me.member.cpus) == os.sched_getaffinity(0)
    assert me.algorithms == "all_reduce:one_shot;broadcast:direct"
    assert me == describe_self(config, build="b1")


def test_pidfd_of_a_living_process() -> None:
    me = describe_self(Config(), build="").member
    pidfd = open_pidfd(me.pid, me.start_ticks)
    try:
        assert not has_ended(pidfd)
        assert not os.get_inheritable(pidfd)
    finally:
        os.close(pidfd)


def test_pid_in_use_again_is_noticed() -> None:
    me = describe_self(Config(), build="").member
    before = open_fds()
    with pytest.raises(RendezvousError, match=f"pid {me.pid} has ended"):
        open_pidfd(me.pid, me.start_ticks + 1)
    assert open_fds() == before


def test_zombies_and_missing_processes_have_ended() -> None:
    parent = describe_self(Config(), build="").member
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    before = open_fds()
    with pytest.raises(RendezvousError, match=f"pid {pid} has ended"):
        open_pidfd(pid, parent.start_ticks)
    os.waitpid(pid, 0)
    with pytest.raises(RendezvousError, match=f"pid {pid} has ended"):
        open_pidfd(pid, parent.start_ticks)
    assert open_fds() == before
