"""Handing over the descriptor: who gets it, who does not, and nothing left behind."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jetstream.control import fdpass
from jetstream.control.fdpass import FdServer, fetch_fd
from jetstream.control.messages import Claim, Go, seal
from jetstream.errors import RendezvousError

SECRET = b"k" * 32


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def memfd() -> Iterator[int]:
    before = open_fds()
    fd = os.memfd_create("test")
    os.write(fd, b"the segment")
    yield fd
    os.close(fd)
    assert open_fds() == before


def serving(server: FdServer, ask: Callable[[], int]) -> int:
    """Calls `ask` while `server` serves one connection in a thread."""
    thread = threading.Thread(target=lambda: (wait_for(server), server.serve_one()))
    thread.start()
    try:
        return ask()
    finally:
        thread.join(10)
        server.close()
        assert not thread.is_alive()


def wait_for(server: FdServer) -> None:
    assert select.select([server], [], [], 10)[0]


def server_for(memfd: int, pid: int | None = None) -> FdServer:
    pids = {0: os.getpid(), 1: os.getpid() if pid is None else pid}
    return FdServer(memfd, pids=pids, secret=SECRET)


def fetch(server: FdServer, **changes: object) -> int:
    arguments = {
        "rank": 1,
        "owner": 0,
        "owner_pid": os.getpid(),
        "secret": SECRET,
        "timeout_s": 10.0,
    }
    return fetch_fd(server.name, **(arguments | changes))  # type: ignore[arg-type]


def test_hand_over(memfd: int) -> None:
    server = server_for(memfd)
    fd = serving(server, lambda: fetch(server))
    try:
        assert os.pread(fd, 100, 0) == b"the segment"
        assert os.fstat(fd).st_ino == os.fstat(memfd).st_ino
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_names_are_not_guessable_and_leave_no_file(memfd: int) -> None:
    one, two = server_for(memfd), server_for(memfd)
    assert one.name != two.name
    assert f"@{one.name}" in Path("/proc/net/unix").read_text()
    one.close()
    two.close()
    assert one.name not in Path("/proc/net/unix").read_text()


def test_unannounced_process_is_refused(memfd: int) -> None:
    server = server_for(memfd, pid=1)
    with pytest.raises(RendezvousError, match=rf"rank 1 \(pid 1\) is claimed by pid {os.getpid()}"):
        serving(server, lambda: fetch(server))


def test_unknown_rank_is_refused(memfd: int) -> None:
    server = server_for(memfd)
    with pytest.raises(RendezvousError, match="rank 7"):
        serving(server, lambda: fetch(server, rank=7))


def test_other_secret_is_refused(memfd: int) -> None:
    server = server_for(memfd)
    with pytest.raises(RendezvousError, match="secret"):
        serving(server, lambda: fetch(server, secret=b"x"))


def test_server_of_another_process_is_not_trusted(memfd: int) -> None:
    server = server_for(memfd)
    with pytest.raises(RendezvousError, match=f"offered by pid {os.getpid()}"):
        serving(server, lambda: fetch(server, owner_pid=1))


def test_another_user_is_refused_by_both_sides(memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    real = fdpass._peer_credentials
    sides: list[int] = []

    def stranger_first(connection: socket.socket) -> tuple[int, int]:
        pid, uid = real(connection)
        is_client = threading.current_thread() is threading.main_thread()
        sides.append(is_client)
        return pid, other if is_client == client_lies else uid

    monkeypatch.setattr(fdpass, "_peer_credentials", stranger_first)
    for client_lies in (True, False):
        server = server_for(memfd)
        reason = f"user {other}" if client_lies else "did not hand over"
        with pytest.raises(RendezvousError, match=reason):
            serving(server, lambda server=server: fetch(server))  # type: ignore[misc]
    assert {True, False} == set(sides)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"noise" * 20,
        seal(Go(), secret=SECRET),
        seal(Claim(rank=1, pid=1), secret=SECRET),
    ],
)
def test_malformed_claims_are_refused(memfd: int, raw: bytes) -> None:
    server = server_for(memfd)

    def ask() -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(10)
            connection.connect("\0" + server.name)
            connection.send(raw)
            connection.shutdown(socket.SHUT_WR)
            _, fds, _, _ = socket.recv_fds(connection, 4096, 4)
            return len(fds)

    assert serving(server, ask) == 0


def test_silent_client_does_not_block(memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdpass, "_CLAIM_TIMEOUT_S", 0.05)
    server = server_for(memfd)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect("\0" + server.name)
        server.serve_one()
        silent.settimeout(10)
        assert silent.recv(10) == b""
    server.serve_one()  # nobody there: returns at once
    server.close()


def test_late_claim_is_made_again(memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that was kept from running between connecting and claiming gets its segment."""
    monkeypatch.setattr(fdpass, "_CLAIM_TIMEOUT_S", 0.05)
    real, given_up = fdpass._peer_credentials, threading.Event()
    server = server_for(memfd)

    def late(connection: socket.socket) -> tuple[int, int]:
        if threading.current_thread() is threading.main_thread():
            assert given_up.wait(10)
        return real(connection)

    def serve() -> None:
        wait_for(server)
        server.serve_one()  # of whom nothing comes
        fdpass._CLAIM_TIMEOUT_S = 10  # monkeypatch puts it back
        given_up.set()
        wait_for(server)
        server.serve_one()

    monkeypatch.setattr(fdpass, "_peer_credentials", late)
    thread = threading.Thread(target=serve)
    thread.start()
    os.close(fetch(server))
    thread.join(10)
    assert not thread.is_alive()
    server.close()


def test_answer_without_descriptor_is_refused(memfd: int) -> None:
    with pytest.raises(RendezvousError, match="Go with 1 descriptors"):
        fdpass._one_fd(Go(), [3], 0)


def test_no_answer_in_time(memfd: int) -> None:
    server = server_for(memfd)
    with pytest.raises(RendezvousError, match="did not hand over the segment"):
        fetch(server, timeout_s=0.05)
    server.close()


def test_no_server() -> None:
    with pytest.raises(RendezvousError, match="did not hand over the segment"):
        fetch_fd("jetstream-nobody", rank=1, owner=0, owner_pid=1, secret=b"", timeout_s=1)


def test_rank_0_dies_before_it_answers() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dying:
        dying.bind("\0jetstream-test-" + os.urandom(8).hex())
        dying.listen()
        name = dying.getsockname().decode()[1:]

        def die() -> None:
            with dying.accept()[0] as connection:
                connection.recv(1000)

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(RendezvousError, match=rf"rank 0 \(pid {os.getpid()}\) ended"):
            fetch_fd(name, rank=1, owner=0, owner_pid=os.getpid(), secret=SECRET, timeout_s=10)
        thread.join(10)
