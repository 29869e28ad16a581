"""Runs programs under ``jetstream run`` for test_launcher*.py, and looks for what they leave."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0
MARK = "LAUNCHER_TEST_MARK"
PRELUDE = """
import json, os, signal, subprocess, sys, time
rank = int(os.environ["JETSTREAM_RANK"])
def say(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()
"""


class Bench:
    """Runs scripts under the launcher; every process of a test carries the test's mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(8)
        self.started: list[subprocess.Popen[bytes]] = []

    def script(self, body: str) -> str:
        path = self.folder / f"script{len(list(self.folder.iterdir()))}.py"
        path.write_text(PRELUDE + body)
        return str(path)

    def start(self, *arguments: str, **popen: Any) -> subprocess.Popen[bytes]:
        popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | popen
        popen = {"stderr": subprocess.PIPE} | popen
        process = subprocess.Popen(
            [sys.executable, "-m", "jetstream", "run", *arguments],
            env=os.environ | {MARK: self.mark} | popen.pop("env", {}),
            **popen,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **popen: Any) -> tuple[int, str, str]:
        process = self.start(*arguments, **popen)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out.decode(), err.decode()

    def processes(self) -> list[int]:
        """Pids of living processes of this test, except for ours."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                # A zombie has no environment any more; nobody but its parent can help it.
                is_ours = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                if entry.name.isdecimal() and is_ours:
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        try:
            wait_until(lambda: not self.processes())
        finally:
            self.kill()
            for process in self.started:
                process.wait(PATIENCE_S)
                for stream in (process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()


def running_bench(folder: Path) -> Iterator[Bench]:
    """A fixture's body: nothing is left of what it starts."""
    bench = Bench(folder)
    with contextlib.closing(bench):
        yield bench


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "condition not reached in time"
        time.sleep(0.02)


def wait_for_lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().decode() for _ in range(count)]


def lines_of(text: str, rank: int) -> list[str]:
    label = f"[{rank}] "
    return [line[len(label) :] for line in text.splitlines() if line.startswith(label)]
