"""Real processes that find each other, or all learn why not. The segment is a plain memfd here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
import zmq

from tests.e2e.rendezvous_job import (
    PATIENCE_S,
    Job,
    errors_of,
    free_port,
    line_of,
    pids_of,
    result_of,
    running_job,
    wait_for_hellos,
    wait_until_stopped,
)


@pytest.fixture
def job() -> Iterator[Job]:
    yield from running_job()


def check_joined(processes: list[subprocess.Popen[str]]) -> None:
    size = len(processes)
    for rank, process in enumerate(processes):
        result = result_of(process)
        assert "error" not in result, result
        assert (result["rank"], result["size"]) == (rank, size)
        assert result["local"] == [rank, size]
        assert result["pids"] == pids_of(processes)
        assert result["hosts"] == [socket.gethostname()] * size
        assert result["cpus"] == [sorted(os.sched_getaffinity(0))] * size
        assert result["own_pidfd"] == -1
        others = [name for peer, name in enumerate(result["pidfds"]) if peer != rank]
        assert all("pidfd" in name for name in others)
        assert result["segment"] == f"{processes[0].pid} {size} 0"
        assert (result["threads"], result["sockets"], result["leaked"]) == (1, 0, [])
        assert result["host_index"] == [0] * size
        assert result["endpoints"] == [""] * size


def check_joined_over(hosts: str, processes: list[subprocess.Popen[str]]) -> None:
    """`hosts[r]` is the name of the virtual host of rank r."""
    pids, names = pids_of(processes), list(dict.fromkeys(hosts))
    for rank, process in enumerate(processes):
        result = result_of(process)
        assert "error" not in result, result
        neighbours = [peer for peer, host in enumerate(hosts) if host == hosts[rank]]
        assert result["local"] == [neighbours.index(rank), len(neighbours)]
        assert result["hosts"] == list(hosts)
        assert result["host_index"] == [names.index(host) for host in hosts]
        assert result["machine_index"] == [0] * len(hosts)
        assert result["endpoints"] == [f"udp 127.0.0.1 {pid}" for pid in pids]
        assert result["pids"] == pids
        watched = [peer for peer, name in enumerate(result["pidfds"]) if name]
        assert watched == [peer for peer in neighbours if peer != rank]
        assert result["segment"] == f"{pids[neighbours[0]]} {len(hosts)} 262144"
        assert (result["threads"], result["sockets"], result["leaked"]) == (1, 0, [])


def test_world_of_one(job: Job) -> None:
    check_joined([job.start(0, 1)])


@pytest.mark.parametrize("size", [2, 3, 12])
def test_ranks_join(job: Job, size: int) -> None:
    check_joined(job.start_all(size))


@pytest.mark.parametrize(("hosts", "is_tcp"), [("ab", True), ("aab", False), ("abaca", True)])
def test_ranks_join_over_virtual_hosts(job: Job, hosts: str, is_tcp: bool) -> None:
    if is_tcp:
        job.name = f"tcp://127.0.0.1:{free_port()}"
    processes = []
    for rank, host in enumerate(hosts):
        # The size of the segments of all hosts is what rank 0 says.
        size = "256K" if rank == 0 else "512K"
        env = {"JETSTREAM_HOST": host, "JETSTREAM_BUFFSIZE": size}
        processes.append(job.start(rank, len(hosts), env=env))
    check_joined_over(hosts, processes)


def test_a_stopped_rank_0_blames_nobody(job: Job) -> None:
    """It hears what the others have said meanwhile before their silence counts."""
    hosts = [{"JETSTREAM_HOST": host, "JETSTREAM_LINK_TIMEOUT": "30"} for host in "abb"]
    more = {"JETSTREAM_LINK_TIMEOUT": "4", "JETSTREAM_BUFFSIZE": "256K"}
    zero = job.start(0, 3, env=hosts[0] | more)
    one = job.start(1, 3, env=hosts[1])
    for process in (zero, one):
        assert "starts" in line_of(process)
    time.sleep(1)  # rank 1 has arrived, and calls every second
    zero.send_signal(signal.SIGSTOP)
    time.sleep(4.5)
    zero.send_signal(signal.SIGCONT)
    check_joined_over("abb", [zero, one, job.start(2, 3, env=hosts[2])])


def test_a_rank_0_stopped_for_too_long_says_so(job: Job) -> None:
    one = job.start(1, 3)
    zero = job.start(0, 3, expires={"arrived": 2}, stops=True)
    wait_until_stopped(zero)
    time.sleep(0.7)
    zero.send_signal(signal.SIGCONT)
    ((_, text),) = errors_of([zero, one])
    assert "not arrived: 2; rank 0 itself was away for" in text


def test_late_rank_0(job: Job) -> None:
    one = job.start(1, 2)
    assert "starts" in line_of(one)
    time.sleep(0.3)
    check_joined([job.start(0, 2), one])


def test_hello_that_got_lost(job: Job) -> None:
    """The rank meets the socket of the rendezvous before, which closes without an answer."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as before:
        before.bind(job.name)
        one = job.start(1, 2)
        assert before.poll(1e3 * PATIENCE_S)
    check_joined([job.start(0, 2), one])


def test_over_tcp(job: Job) -> None:
    job.name = f"tcp://127.0.0.1:{free_port()}"
    check_joined(job.start_all(3))


def test_again_and_again_at_the_same_address(job: Job) -> None:
    check_joined(job.start_all(3, repeat=25))


def test_buffer_size_reaches_the_segment(job: Job) -> None:
    process = job.start(0, 1, env={"JETSTREAM_BUFFSIZE": "256K"})
    assert result_of(process)["segment"] == f"{process.pid} 1 262144"


def test_missing_rank_is_named(job: Job) -> None:
    others = [job.start(rank, 4) for rank in (1, 3)]
    processes = [job.start(0, 4, expires={"arrived": 3}), *others]
    ((error, text),) = errors_of(processes)
    assert error == "RendezvousError"
    for rank, process in zip((0, 1, 3), processes, strict=True):
        assert f"rank {rank} (pid {process.pid})" in text
    assert "not arrived: 2" in text


def test_missing_rank_0_is_named(job: Job) -> None:
    ((error, text),) = errors_of([job.start(1, 2, timeout_s=0.5)])
    assert error == "RendezvousError"
    assert "heard nothing from rank 0" in text
    assert job.name in text


def test_closed_port_is_named(job: Job) -> None:
    port = free_port()
    job.name = f"tcp://127.0.0.1:{port}"
    ((error, text),) = errors_of([job.start(1, 2, timeout_s=0.5)])
    assert error == "RendezvousError"
    assert "heard nothing from rank 0" in text
    assert f"a TCP connection to 127.0.0.1 port {port} is refused" in text


def test_port_of_another_program_is_named(job: Job) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        job.name = f"tcp://127.0.0.1:{port}"
        ((_, text),) = errors_of([job.start(1, 2, expires={"connected": 1})])
    assert f"127.0.0.1 port {port} comes up, but no rank 0 speaks there" in text


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_with_one_rank(job: Job, rank: int) -> None:
    zero, one = job.start(0, 3), job.start(1, 3)
    wait_for_hellos(zero, 1)
    first = one if rank else zero
    processes = [first, job.start(rank, 3), zero if rank else one]
    ((error, text),) = errors_of(processes)
    assert error == "RendezvousError"
    assert f"two processes are rank {rank}" in text
    assert f"pid {processes[0].pid}" in text
    assert f"pid {processes[1].pid}" in text


def test_different_builds(job: Job) -> None:
    zero, two = job.start(0, 3), job.start(2, 3)
    wait_for_hellos(zero, 1)
    processes = [zero, job.start(1, 3, build="b2"), two]
    ((error, text),) = errors_of(processes)
    assert error == "VersionMismatchError"
    assert f"rank 0 (pid {processes[0].pid}) runs build b1" in text
    assert f"rank 1 (pid {processes[1].pid}) runs b2" in text


def test_different_sizes(job: Job) -> None:
    ((_, text),) = errors_of([job.start(0, 2), job.start(1, 3)])
    assert "expects 2 ranks" in text
    assert "expects 3" in text


def test_different_secret(job: Job) -> None:
    zero, one = job.start(0, 3), job.start(1, 3)
    wait_for_hellos(zero, 1)
    wrong = job.start(2, 3, env={"JETSTREAM_JOB_SECRET": "00" * 32})
    ((error, text),) = errors_of([zero, one])
    assert error == "RendezvousError"
    assert f"calls itself rank 2 (pid {wrong.pid}) does not have this job's secret" in text
    ((error, text),) = errors_of([wrong])
    assert "JETSTREAM_JOB_SECRET differs" in text


def test_different_secret_over_tcp(job: Job) -> None:
    """Nobody gets a message through to anybody: the texts at the timeout have to say why."""
    job.name = f"tcp://127.0.0.1:{free_port()}"
    zero, one = job.start(0, 3, expires={"arrived": 2, "refused": 1}), job.start(1, 3)
    other = {"JETSTREAM_JOB_SECRET": "00" * 32}
    wrong = job.start(2, 3, env=other, expires={"refused": 1})
    texts = {text for _, text in errors_of([zero, one])}
    assert all("not arrived: 2" in text for text in texts)
    assert any("JETSTREAM_JOB_SECRET may differ" in text for text in texts)
    ((_, text),) = errors_of([wrong])
    assert "heard nothing from rank 0" in text
    assert "JETSTREAM_JOB_SECRET may differ" in text


def test_over_a_name_of_this_host(job: Job) -> None:
    """It may lead to a loopback address; rank 0 listens wherever it may lead."""
    job.name = f"tcp://{socket.gethostname()}:{free_port()}"
    check_joined(job.start_all(2))


def test_stopped_rank_is_named(job: Job) -> None:
    one, two = job.start(1, 3), job.start(2, 3, attach="stop")
    zero = job.start(0, 3, expires={"ready": 2})
    ((_, text),) = errors_of([zero, one])
    assert f"not ready: rank 2 (pid {two.pid})" in text


def connected(name: str, port: int) -> socket.socket:
    """Connects to a rendezvous once it listens."""
    family, address = (socket.AF_INET, ("127.0.0.1", port)) if port else (socket.AF_UNIX, name)
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        stranger = socket.socket(family)
        if stranger.connect_ex(address) == 0:
            return stranger
        stranger.close()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.parametrize("is_tcp", [False, True])
def test_strangers_do_not_disturb(job: Job, is_tcp: bool) -> None:
    port = free_port() if is_tcp else 0
    name = "\0" + job.name.removeprefix("ipc://@")
    if is_tcp:
        job.name = f"tcp://127.0.0.1:{port}"
    zero = job.start(0, 2)
    noises = [b"GET / HTTP/1.1\r\n\r\n", b"\x1d\x00" + b"x" * 99, os.urandom(500), b""]
    with contextlib.ExitStack() as stack:
        for noise in noises:
            stack.enter_context(connected(name, port)).sendall(noise)
        check_joined([zero, job.start(1, 2)])
