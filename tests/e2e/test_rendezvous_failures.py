"""A rank fails, dies or falls silent while ranks join: all learn which, and why."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.rendezvous_job import (
    PATIENCE_S,
    Job,
    errors_of,
    line_of,
    running_job,
    wait_for_hellos,
)


@pytest.fixture
def job() -> Iterator[Job]:
    yield from running_job()


def test_link_that_cannot_be_opened_fails_all(job: Job) -> None:
    zero = job.start(0, 3, env={"JETSTREAM_HOST": "a"})
    one = job.start(1, 3, env={"JETSTREAM_HOST": "a"})
    two = job.start(2, 3, env={"JETSTREAM_HOST": "b"}, link="fail")
    assert errors_of([two]) == {("ConfigurationError", "no interface ")}
    ((error, text),) = errors_of([zero, one])
    assert error == "ConfigurationError"
    assert f"rank 2 (pid {two.pid} on b) failed: no interface" in text


def test_killed_on_another_host(job: Job) -> None:
    """Rank 0 cannot see it: the neighbour does."""
    hosts = {rank: {"JETSTREAM_HOST": "abb"[rank]} for rank in range(3)}
    processes = [job.start(rank, 3, env=hosts[rank]) for rank in (0, 1)]
    processes.append(job.start(2, 3, env=hosts[2], attach="hang"))
    while "hangs" not in line_of(processes[2]):
        pass
    processes[2].kill()
    texts = {text for _, text in errors_of(processes[:2])}
    assert all(f"rank 2 (pid {processes[2].pid}) died" in text for text in texts)


@pytest.mark.parametrize("rank", [0, 1])
def test_silent_on_another_host(job: Job, rank: int) -> None:
    """Nobody else can see the process: it is missed long before the time is up."""
    processes = [
        job.start(
            one,
            2,
            timeout_s=PATIENCE_S,
            env={
                "JETSTREAM_HOST": "ab"[one],
                "JETSTREAM_LINK_TIMEOUT": "30" if one == rank else "4",
            },
            link="hang" if one == rank else "",
        )
        for one in range(2)
    ]
    while "hangs" not in line_of(processes[rank]):
        pass
    started_s = time.monotonic()
    ((error, text),) = errors_of([processes[1 - rank]])
    assert time.monotonic() - started_s < PATIENCE_S / 2
    assert error == "RendezvousError"
    assert f"rank {rank}" in text
    assert "silent for 4 s" in text


@pytest.mark.parametrize("victim", [1, 2])
def test_killed_before_all_have_arrived(job: Job, victim: int) -> None:
    processes = [job.start(0, 4), job.start(1, 4), job.start(2, 4)]
    for process in processes:
        assert "starts" in line_of(process)
    wait_for_hellos(processes[0], 2)
    processes[victim].kill()
    survivors = [process for process in processes if process is not processes[victim]]
    ((error, text),) = errors_of(survivors)
    assert error == "RendezvousError"
    assert f"rank {victim} (pid {processes[victim].pid}) died" in text


@pytest.mark.parametrize("victim", [0, 2])
def test_killed_while_attaching(job: Job, victim: int) -> None:
    processes = [job.start(0, 3), job.start(1, 3), job.start(2, 3, attach="hang")]
    while "hangs" not in line_of(processes[2]):
        pass
    processes[victim].kill()
    texts = {
        text for _, text in errors_of([p for p in processes[:2] if p is not processes[victim]])
    }
    assert len(texts) == 1
    assert f"rank {victim}" in texts.pop()


def test_failing_attach_fails_all(job: Job) -> None:
    processes = [job.start(0, 3), job.start(1, 3), job.start(2, 3, attach="fail")]
    assert errors_of(processes[2:]) == {("SegmentError", "bad magic")}
    ((error, text),) = errors_of(processes[:2])
    assert error == "SegmentError"
    assert f"rank 2 (pid {processes[2].pid}) failed: bad magic" in text


def test_leader_that_has_left_is_not_the_reason(job: Job) -> None:
    """A rank that comes for the segment when rank 0 has gone tells why that has gone."""
    slow = job.start(1, 3, fetch="late")
    processes = [job.start(0, 3), slow, job.start(2, 3, attach="fail")]
    assert errors_of(processes[2:]) == {("SegmentError", "bad magic")}
    ((error, text),) = errors_of(processes[:2])
    assert error == "SegmentError"
    assert f"rank 2 (pid {processes[2].pid}) failed: bad magic" in text


def test_neighbour_that_has_left_is_not_the_reason(job: Job) -> None:
    """So does one that begins to watch rank 0 when that has gone."""
    slow = job.start(1, 2, watch="late")
    zero = job.start(0, 2, create="fail")
    ((error, text),) = errors_of([slow])
    assert error == "SegmentError"
    assert f"rank 0 (pid {zero.pid}) failed: no room" in text
    assert errors_of([zero]) == {("SegmentError", "no room")}


def test_neighbour_on_another_host_that_has_left_is_not_the_reason(job: Job) -> None:
    """A rank that finds its neighbour gone waits for a rank 0 that is slow to say why."""
    hosts = [{"JETSTREAM_HOST": host, "JETSTREAM_LINK_TIMEOUT": "60"} for host in "abb"]
    zero = job.start(0, 3, env=hosts[0], link="wait")
    one = job.start(1, 3, env=hosts[1], create="fail")
    two = job.start(2, 3, env=hosts[2], watch="late", answer_s=PATIENCE_S)
    assert errors_of([one]) == {("SegmentError", "no room")}
    time.sleep(1.5)  # by now rank 2 has seen that, and waits for rank 0
    zero.send_signal(signal.SIGUSR1)
    ((error, text),) = errors_of([zero, two])
    assert error == "SegmentError"
    assert f"rank 1 (pid {one.pid} on b) failed: no room" in text


def test_death_is_not_the_reason_of_one_that_has_failed(job: Job) -> None:
    """Rank 0 begins to watch a rank that has failed, has said so, and has ended."""
    zero, one = job.start(0, 3, watch="late"), job.start(1, 3)
    while "watches" not in line_of(zero):
        pass
    one.send_signal(signal.SIGINT)
    ((_, text),) = errors_of([zero])
    assert f"rank 1 (pid {one.pid}) failed: KeyboardInterrupt" in text


def test_failing_create_fails_all(job: Job) -> None:
    processes = [job.start(0, 3, create="fail"), job.start(1, 3), job.start(2, 3)]
    assert errors_of(processes[:1]) == {("SegmentError", "no room")}
    ((error, text),) = errors_of(processes[1:])
    assert error == "SegmentError"
    assert f"rank 0 (pid {processes[0].pid}) failed: no room" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_interrupt_is_told(job: Job, victim: int) -> None:
    processes = [job.start(0, 3), job.start(1, 3)]
    for process in processes:
        assert "starts" in line_of(process)
    wait_for_hellos(processes[0], 1)
    processes[victim].send_signal(signal.SIGINT)
    ((error, text),) = errors_of([processes[1 - victim]])
    assert error == "RendezvousError"
    assert f"rank {victim} (pid {processes[victim].pid})" in text
    assert {error for error, _ in errors_of([processes[victim]])} == {"KeyboardInterrupt"}
