"""One rank of the harness as the parent sees it: a process, a connection, a file for stacks."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from jetstream.testing.outcomes import Outcome
from jetstream.testing.worker import DUMP_SIGNAL, Job, Report

__all__ = ["RankProcess"]

# The search path comes with the command line: what the parent can import, the rank can.
_BOOT = (
    "import sys; numbers, *sys.path[:] = sys.argv[1:]; from jetstream.testing.worker import main; "
    "main(*map(int, numbers.split(',')))"
)
_DUMP_PATIENCE_S = 2.0


class RankProcess:
    """A rank's process, from its start to its end. ``fds`` are to be polled for `take`."""

    def __init__(
        self,
        rank: int,
        *,
        env: Mapping[str, str],
        cpu: int | None,
        namespaces: tuple[int, ...] = (),
    ) -> None:
        """``namespaces``: descriptors of those that the rank enters."""
        self.rank = rank
        ours, theirs = socket.socketpair()
        with theirs:
            self._connection = Connection(ours.detach())
            self._dump_fd = os.memfd_create(f"jetstream-stacks-{rank}", os.MFD_CLOEXEC)
            fds = (theirs.fileno(), self._dump_fd)
            numbers = ",".join(map(str, (rank, *fds, os.getpid(), *namespaces)))
            # A session of its own: what the rank starts is killed with it, and Ctrl-C comes to
            # the parent alone, which knows what to do.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, numbers, *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=(*fds, *namespaces),
                env=env,
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self.pid)
        if cpu is not None:
            os.sched_setaffinity(self.pid, {cpu})

    @property
    def pid(self) -> int:
        """Process id of the rank."""
        return self._process.pid

    @property
    def fds(self) -> tuple[int, int]:
        """Descriptors of which one becomes readable when there is something to `take`."""
        return self._connection.fileno(), self._pidfd

    def send(self, job: Job) -> None:
        """Gives the rank its next job. A rank that is dead shows that in `take`."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(pickle.dumps(job))

    def take(self, order: int) -> Outcome | None:
        """Returns how the job ended, or None if it has not."""
        has_ended = self._process.poll() is not None
        try:
            if self._connection.poll():
                return self._read(pickle.loads(self._connection.recv_bytes()), order)
        except (EOFError, OSError):
            self._process.wait()
            has_ended = True
        if not has_ended:
            return None
        failure = _describe_end(self._process.returncode)
        return Outcome(
            self.rank, failure=failure, details=self._read_dump(), has_died=True, order=order
        )

    def _read(self, report: Report, order: int) -> Outcome:
        failure, details, value, error = report.failure, report.details, None, None
        try:
            value = pickle.loads(report.value) if report.value else None
            error = pickle.loads(report.error) if report.error else None
        except Exception as reason:
            failure = failure or f"its result cannot be read here: {reason}"
        return Outcome(self.rank, value, failure, details, error, order=order)

    def request_stacks(self) -> None:
        """Asks the rank to write the stacks of its threads."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, DUMP_SIGNAL)

    def give_up(self, ran_s: float, order: int) -> Outcome:
        """The outcome of a rank that has been asked for its stacks and is still running."""
        deadline_s = time.monotonic() + _DUMP_PATIENCE_S
        while not _is_whole(stacks := self._read_dump()) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        details = stacks or f"no stacks: {_describe_state(self.pid)}"
        return Outcome(
            self.rank,
            failure=f"still running after {ran_s:.1f} s (pid {self.pid})",
            details=details,
            has_ended=False,
            order=order,
        )

    def _read_dump(self) -> str:
        size = os.fstat(self._dump_fd).st_size
        return os.pread(self._dump_fd, size, 0).decode("utf-8", "replace")

    def stop(self) -> None:
        """Asks the rank to end."""
        self._connection.close()

    def end(self, *, timeout_s: float) -> None:
        """Waits for the rank to end, at most so long; kills it and whatever it has started."""
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if timeout_s > 0:
                self._process.wait(timeout_s)
        # The group may have members that outlive their leader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)
        os.close(self._dump_fd)


def _is_whole(stacks: str) -> bool:
    """Has all been written? It comes line by line, the main thread last, outermost frame last.

    Of a deep stack there are three dots in place of the outer frames.
    """
    return stacks.endswith((" in <module>\n", "  ...\n"))


def _describe_end(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code} before the function returned"


def _describe_state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return "it has ended"
    state = stat[stat.rindex(")") + 2]
    return "the process is stopped" if state in "tT" else f"the process is in state {state}"
