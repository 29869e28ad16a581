"""Starts the ranks of test_rendezvous*.py and reads what came of them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("rendezvous_rank.py")
#: Bounds what a broken test may take; nothing is expected to take long.
PATIENCE_S = 60.0


class Job:
    """Ranks of one job as child processes, each with its plan."""

    def __init__(self) -> None:
        self.name = f"ipc://@test-{secrets.token_hex(8)}"
        self.secret = secrets.token_hex(32)
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self, rank: int, size: int, *, timeout_s: float = 30.0, env: Any = None, **plan: Any
    ) -> subprocess.Popen[str]:
        environ = dict(os.environ)
        environ |= {
            "JETSTREAM_RANK": str(rank),
            "JETSTREAM_WORLD_SIZE": str(size),
            "JETSTREAM_RENDEZVOUS": self.name,
            "JETSTREAM_JOB_SECRET": self.secret,
            "JETSTREAM_INIT_TIMEOUT": str(timeout_s),
            "PLAN": json.dumps(plan),
        }
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            env=environ | (env or {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def start_all(self, size: int, **plan: Any) -> list[subprocess.Popen[str]]:
        return [self.start(rank, size, **plan) for rank in range(size)]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(PATIENCE_S)
            assert process.stdout is not None
            process.stdout.close()


def running_job() -> Iterator[Job]:
    """A fixture's body: nothing is left of the job."""
    job = Job()
    with contextlib.closing(job):
        yield job
    assert job.name[6:] not in Path("/proc/net/unix").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def line_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"rank ended with {process.wait(PATIENCE_S)}"
    value: dict[str, Any] = json.loads(line)
    return value


def wait_for_hellos(zero: subprocess.Popen[str], count: int) -> None:
    """Waits until rank 0 watches the processes of `count` others: it has got their hellos."""
    deadline_s = time.monotonic() + PATIENCE_S
    watched = 0
    while watched < count or state_of(zero) != "S":  # and it waits for what comes next
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
        watched = 0
        for entry in Path(f"/proc/{zero.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                watched += "pidfd" in str(entry.readlink())


def state_of(process: subprocess.Popen[str]) -> str:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat[stat.rindex(")") + 2]


def wait_until_stopped(process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while state_of(process) != "T":
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The last line the process wrote."""
    text, _ = process.communicate(timeout=PATIENCE_S)
    value: dict[str, Any] = json.loads(text.splitlines()[-1])
    return value


def errors_of(processes: list[subprocess.Popen[str]]) -> set[tuple[str, str]]:
    results = [result_of(process) for process in processes]
    for result in results:
        assert "error" in result, result
        assert result["leaked"] == []
        assert result["threads"] == 1
    return {(result["error"], result["text"]) for result in results}


def pids_of(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [process.pid for process in processes]
