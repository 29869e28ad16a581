"""Links whose paths are not what their interfaces promise."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import time

import numpy as np
import pytest

import jetstream
from jetstream.communicator import Communicator
from jetstream.errors import JetstreamError
from jetstream.testing import NoNetworkError, RankError, run_ranks

PATIENCE_S = 60.0
SEARCH_S = 20.0
SIOCSIFFLAGS = 0x8914


def check_sums(comm: Communicator) -> None:
    for count in (1, 1000, 100_000):
        x = np.arange(count, dtype=np.float32) + comm.rank
        expected = comm.size * np.arange(count, dtype=np.float32) + sum(range(comm.size))
        assert (comm.all_reduce(x) == expected).all()


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def sizes_and_words(comm: Communicator) -> tuple[int, int, list[str]]:
    """Frames of the first communicator are known; what is said of the path comes once."""
    check_sums(comm)
    counters = comm.link_counters()
    heard = Heard()
    logging.getLogger("jetstream.link").addHandler(heard)
    began_s = time.monotonic()
    again = comm.split(0)
    assert again is not None
    assert time.monotonic() - began_s < SEARCH_S
    check_sums(again)
    assert again.link_counters()["frame_bytes"] == counters["frame_bytes"]
    assert not heard.texts
    again.close()
    other = (comm.rank + 1) % comm.size
    assert comm.peer_counters(other)["frame_bytes"] == counters["frame_bytes"]
    return counters["mtu_bytes"], counters["frame_bytes"], heard.texts


@pytest.mark.parametrize(
    ("link", "is_ipv6", "path_mtu", "expected"),
    [
        ("packet", False, 1500, (9000, 1500)),
        ("udp", True, 1300, (8952, 1232)),
    ],
)
def test_a_path_that_carries_less_than_the_interfaces(
    link: str,
    is_ipv6: bool,
    path_mtu: int,
    expected: tuple[int, int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    try:
        results = run_ranks(
            sizes_and_words,
            2,
            link=link,
            namespaces=True,
            mtu=9000,
            path_mtu=path_mtu,
            is_ipv6=is_ipv6,
            env={"JETSTREAM_DEBUG": "WARN"},
            timeout_s=PATIENCE_S,
        )
    except NoNetworkError as error:
        pytest.skip(str(error))
    assert results == [(*expected, [])] * 2
    said = capfd.readouterr().err
    assert said.count(f"are cut to {expected[1]} bytes: the next longer size") == 2


def join_over_a_narrow_path(comm: Communicator) -> None:
    """A second job of ranks that have met: both begin at the same time."""
    key = comm.all_gather(np.array([os.getpid()])).tolist()[0]
    os.environ["JETSTREAM_RENDEZVOUS"] = f"ipc://@jetstream-narrow-{key}"
    os.environ["JETSTREAM_LINK_FAULT"] = "mtu=500"
    os.environ["JETSTREAM_INIT_TIMEOUT"] = "4"
    jetstream.init().close()


def test_a_path_that_carries_next_to_nothing() -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(join_over_a_narrow_path, 2, link="udp", timeout_s=PATIENCE_S)
    text = str(caught.value)
    assert "UnreachableError" in text
    assert "udp 127.0.0.1 port" in text
    assert "of lo within 4.0 s: nothing of it arrives here, not even frames of 548 bytes" in text


def frames_by_interface(comm: Communicator) -> dict[str, int]:
    check_sums(comm)
    again = comm.split(0)
    assert again is not None
    check_sums(again)
    again.close()
    rails = comm.rail_counters()
    total = comm.link_counters()
    for counter in ("frames_sent", "bytes_received", "system_calls"):
        assert 0 < sum(rail[counter] for rail in rails.values()) <= total[counter]
    return {name.rpartition(" ")[2]: rail["frames_sent"] for name, rail in rails.items()}


@pytest.mark.parametrize(("link", "is_ipv6"), [("udp", True), ("packet", False)])
def test_two_interfaces(link: str, is_ipv6: bool) -> None:
    """Ranks 0 and 1 of each host exchange slices with their like over one interface each."""
    try:
        found = run_ranks(
            frames_by_interface,
            4,
            hosts=2,
            link=link,
            namespaces=True,
            is_ipv6=is_ipv6,
            interfaces=2,
            timeout_s=PATIENCE_S,
        )
    except NoNetworkError as error:
        pytest.skip(str(error))
    for counts in found:
        assert sorted(counts) == ["eth0", "eth1"]
    for interface in ("eth0", "eth1"):
        assert sum(counts[interface] > 10 for counts in found) >= 2


def cut_the_second_link(comm: Communicator) -> str:
    """Its interface goes down on host 0: only ranks that meet over it notice."""
    check_sums(comm)
    if comm.rank == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            request = struct.pack("16sH14x", b"eth1", 0)
            fcntl.ioctl(control, SIOCSIFFLAGS, request)
    try:
        while True:
            check_sums(comm)
    except JetstreamError as error:
        return f"{type(error).__name__}: {error}"


def test_one_of_two_links_is_cut() -> None:
    try:
        said = run_ranks(
            cut_the_second_link,
            4,
            hosts=2,
            link="udp",
            namespaces=True,
            interfaces=2,
            env={"JETSTREAM_LINK_TIMEOUT": "3"},
            timeout_s=PATIENCE_S,
        )
    except NoNetworkError as error:
        pytest.skip(str(error))
    assert any("on eth1" in text for text in said), said


def test_as_many_links_everywhere() -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(uneven_links, 2, link="udp", timeout_s=PATIENCE_S)
    assert "links to other hosts" in str(caught.value)


def uneven_links(comm: Communicator) -> None:
    """A second job of the same ranks, of which one has two links by the loopback interface."""
    secret = comm.all_gather(np.array([os.getpid()])).tolist()[0]
    os.environ["JETSTREAM_RENDEZVOUS"] = f"ipc://@jetstream-uneven-{secret}"
    if comm.rank == 1:
        os.environ["JETSTREAM_LINK_ADDRESS"] = "127.0.0.1,127.0.0.2"
    jetstream.init().close()
