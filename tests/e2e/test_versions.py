"""Ranks of different builds, and segments that are none: refused, with the reason, by all."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from pathlib import Path
from typing import Any

import pytest

from jetstream._core.native import build_id
from jetstream._core.segment import Segment
from jetstream.communicator import Communicator
from jetstream.config import load_config
from jetstream.control.rendezvous import join
from jetstream.errors import RendezvousError, SegmentError, VersionMismatchError
from jetstream.testing.plugin import Pools

# js_seg_header of js_seg.h
MAGIC_AT, ABI_AT, BUILD_AT, TOTAL_AT = 0, 8, 16, 56


def run_other_build(comm: Communicator, odd_one: int) -> str:
    """Joins again, at another address, one of the ranks with a build id of its own."""
    comm.barrier()
    os.environ["JETSTREAM_RENDEZVOUS"] += "-again"
    build = "0123456789abcdef" if comm.rank == odd_one else build_id()
    with pytest.raises(VersionMismatchError) as caught:
        join(load_config(), build=build)
    return str(caught.value)


@pytest.mark.parametrize("odd_one", [0, 1, 2])
def test_ranks_of_different_builds(rank_pools: Pools, odd_one: int) -> None:
    for text in rank_pools(3).run(run_other_build, odd_one):
        assert "0123456789abcdef" in text and build_id()[:12] in text
        assert "rank" in text


def run_other_settings(comm: Communicator, variables: dict[str, str]) -> str:
    """Joins again, the last rank with other variables."""
    comm.barrier()
    os.environ["JETSTREAM_RENDEZVOUS"] += "-again"
    if comm.rank == comm.size - 1:
        os.environ.update(variables)
    with pytest.raises(RendezvousError) as caught:
        join(load_config())
    return str(caught.value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JETSTREAM_ALGO": "two_shot"}, "JETSTREAM_ALGO"),
        ({"JETSTREAM_WORLD_SIZE": "4"}, "JETSTREAM_WORLD_SIZE"),
        ({"JETSTREAM_RANK": "1"}, "two processes are rank 1"),
    ],
    ids=["algorithm", "world", "rank"],
)
def test_ranks_with_different_settings(
    no_leaks: Any, variables: dict[str, str], expected: str
) -> None:
    pools = Pools(30.0)
    try:
        for text in pools(3).run(run_other_settings, variables):
            assert expected in text
    finally:
        pools.close()


# --- the segment ---------------------------------------------------------------------------------


def attach_changed(
    changes: dict[int, bytes], *, size_bytes: int | None = None, is_sealed: bool = True
) -> None:
    """Attaches a copy of a good segment with some bytes changed."""
    segment = Segment.create(2)
    try:
        with mmap.mmap(segment.fd, segment.nbytes) as whole:
            header = bytearray(whole[:8192])
        for offset, data in changes.items():
            header[offset : offset + len(data)] = data
        fd = os.memfd_create("changed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, segment.nbytes if size_bytes is None else size_bytes)
            os.pwrite(fd, header[: size_bytes if size_bytes is not None else None], 0)
            if is_sealed:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            Segment.attach(fd).close()
        finally:
            os.close(fd)
    finally:
        segment.close()


def test_an_unchanged_copy_is_good() -> None:
    attach_changed({})


def test_segment_of_another_build() -> None:
    with pytest.raises(VersionMismatchError, match="feedface"):
        attach_changed({BUILD_AT: b"feedface".ljust(40, b"\0")})
    with pytest.raises(VersionMismatchError):
        attach_changed({ABI_AT: (99).to_bytes(4, "little")})


def test_what_is_no_segment() -> None:
    with pytest.raises(SegmentError):
        attach_changed({MAGIC_AT: b"\x7fELF\0\0\0\0"})
    for size_bytes in (0, 1, 100, 4096, 8192):
        with pytest.raises(SegmentError):
            attach_changed({}, size_bytes=size_bytes)
    with pytest.raises(SegmentError):
        attach_changed({TOTAL_AT: (1 << 60).to_bytes(8, "little")})
    with pytest.raises(SegmentError, match="not a sealed memfd"):
        attach_changed({}, is_sealed=False)
    with Path("/dev/null").open() as nothing, pytest.raises((SegmentError, OSError)):
        Segment.attach(nothing.fileno())


def test_random_headers_are_refused_or_harmless() -> None:
    """A changed bit in the header never does more than raise."""
    plan = random.Random(3)
    refused = 0
    for _ in range(300):
        offset = plan.randrange(200)
        try:
            attach_changed({offset: plan.randbytes(plan.randint(1, 8))})
        except (SegmentError, VersionMismatchError):
            refused += 1
    assert refused > 100
