"""Runs the processes of a job side by side: output, signals, failures, and an end without remains.

Every rank leads a session of its own. So a signal from the terminal reaches only the launcher,
which passes it on, and what a rank has started can be ended with it. If the launcher itself is
killed, the kernel kills the ranks (PR_SET_PDEATHSIG) and ``guard.py`` what they have started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from jetstream.cli import guard

__all__ = ["Supervisor", "report"]

_TIMED_OUT = 124
#: All that a pipe holds. So the last words of a rank are read before its end is looked at.
_READ_BYTES = 1 << 16
#: A line longer than this is cut, so that memory stays bounded.
_LINE_BYTES_MAX = 1 << 20
#: What a rank has started may live on this long after it, for instance to clean up.
_LEFTOVER_S = 1.0
_LEFTOVER_POLL_S = 0.02
#: How long to wait for the rest of the output when no rank is left.
_DRAIN_S = 0.5
_PR_SET_PDEATHSIG = 1


def report(text: str) -> None:
    """Writes a line of the launcher's own to stderr."""
    with contextlib.suppress(OSError):
        _write_all(sys.stderr.fileno(), f"jetstream run: {text}\n".encode(errors="replace"))


class Labeller:
    """Puts a label before each line of a stream and writes whole lines only."""

    def __init__(self, label: bytes, target: int) -> None:
        self._label = label
        self._target = target
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Writes the lines that `data` completes; b"" means that the stream has ended."""
        text = self._rest + data
        if text and not text.endswith(b"\n") and (not data or len(text) > _LINE_BYTES_MAX):
            text += b"\n"
        whole, newline, self._rest = text.rpartition(b"\n")
        if newline:
            lines = (self._label + line + b"\n" for line in whole.split(b"\n"))
            _write_all(self._target, b"".join(lines))


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            # Whoever shares this terminal or pipe with us has made it non-blocking.
            select.select([], [target], [])


@dataclass(slots=True)
class _Rank:
    rank: int
    process: subprocess.Popen[bytes]
    pidfd: int

    @property
    def name(self) -> str:
        return f"rank {self.rank} (pid {self.process.pid})"


class Supervisor:
    """One job. `run` starts it and returns its exit status."""

    def __init__(
        self,
        command: list[str],
        environments: list[dict[str, str]],
        *,
        cpus: list[int],
        is_labelled: bool,
        timeout_s: float | None,
        grace_s: float,
        first_rank: int = 0,
    ) -> None:
        """Ranks are numbered as `environments`, from `first_rank`.

        `cpus`, unless empty, holds the CPU of each.
        """
        self._command = command
        self._environments = environments
        self._cpus = cpus
        self._is_labelled = is_labelled
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._first_rank = first_rank
        self._status: int | None = None
        self._ranks: dict[int, _Rank] = {}
        self._leftovers: dict[int, float] = {}
        #: What to do when: (time, action), in order of time.
        self._agenda: list[tuple[float, Callable[[], None]]] = []
        self._interrupts = 0
        self._selector = selectors.DefaultSelector()
        self._streams: dict[int, Labeller] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Starts all ranks and returns the exit status when nothing of them is left."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._clean_up)
            self._catch_signals(stack)
            self._start()
            while self._ranks or self._leftovers:
                self._turn()
            self._drain()
        return self._status or 0

    # --- starting -------------------------------------------------------------------------

    def _start(self) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guard.__file__))],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            for index in range(len(self._environments)):
                self._start_rank(index)
        except OSError as error:
            report(f"cannot start {self._command[0]}: {error.strerror}")
            self._status = 126
            self._signal_all(signal.SIGKILL)
        if self._timeout_s is not None:
            self._agenda.append((time.monotonic() + self._timeout_s, self._time_out))

    def _start_rank(self, index: int) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        rank = self._first_rank + index
        pipe = subprocess.PIPE if self._is_labelled else None
        # A terminal cannot be read from another session than its own.
        is_reader = rank == 0 and sys.stdin is not None and not sys.stdin.isatty()
        process = subprocess.Popen(
            self._command,
            env=self._environments[index],
            stdin=None if is_reader else subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
            preexec_fn=_prepare(self._cpus[index : index + 1], self._guard.stdin.fileno()),
        )
        entry = _Rank(rank, process, os.pidfd_open(process.pid))
        self._ranks[rank] = entry
        self._selector.register(entry.pidfd, selectors.EVENT_READ)
        for stream, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            if stream is not None:
                self._streams[stream.fileno()] = Labeller(b"[%d] " % rank, target.fileno())
                self._selector.register(stream, selectors.EVENT_READ)

    # --- one turn of the loop -------------------------------------------------------------

    def _turn(self) -> None:
        ready = {key.fd for key, _ in self._selector.select(self._patience_s())}
        for fd in ready & self._streams.keys():
            self._read(fd)
        if self._signals_out in ready:
            for number in os.read(self._signals_out, 100):
                self._pass_on(signal.Signals(number))
        self._bury([entry for entry in self._ranks.values() if entry.pidfd in ready])
        now_s = time.monotonic()
        while self._agenda and self._agenda[0][0] <= now_s:
            self._agenda.pop(0)[1]()
        self._end_leftovers(now_s)

    def _patience_s(self) -> float | None:
        if self._leftovers:
            return _LEFTOVER_POLL_S
        if self._agenda:
            return max(0.0, self._agenda[0][0] - time.monotonic())
        return None

    def _read(self, fd: int) -> None:
        """Passes on what a readable stream holds."""
        data = os.read(fd, _READ_BYTES)
        if not data:
            self._selector.unregister(fd)
        labeller = self._streams[fd] if data else self._streams.pop(fd)
        try:
            labeller.feed(data)
        except BrokenPipeError:
            self._lose_output()

    def _lose_output(self) -> None:
        """Whoever read our output has gone: the job ends as a program writing there would."""
        if self._status is None:
            self._status = 128 + signal.SIGPIPE
            self._end_all(after_s=0.0)

    def _bury(self, ended: list[_Rank]) -> None:
        """Reaps the ranks that have ended and notes the first failure."""
        for entry in ended:
            self._selector.unregister(entry.pidfd)
            os.close(entry.pidfd)
            entry.process.wait()
            del self._ranks[entry.rank]
            self._leftovers[entry.process.pid] = time.monotonic() + _LEFTOVER_S
        # A rank that was killed is the cause when others fail in the same instant.
        for entry in sorted(ended, key=lambda entry: (entry.process.returncode >= 0, entry.rank)):
            if entry.process.returncode != 0 and self._status is None:
                self._fail(entry)

    def _fail(self, entry: _Rank) -> None:
        code = entry.process.returncode
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            self._status = 128 - code
        else:
            how = f"exited with status {code}"
            self._status = code
        others = len(self._ranks)
        rest = f"; the other {others} get {self._grace_s:g} s to end" if others else ""
        report(f"{entry.name} {how}{rest}")
        self._end_all(after_s=self._grace_s)

    # --- ending ---------------------------------------------------------------------------

    def _end_all(self, *, after_s: float) -> None:
        """Plans to end all ranks: politely after `after_s`, by force a grace period later."""
        now_s = time.monotonic() + after_s
        self._agenda = [
            (now_s, lambda: self._signal_all(signal.SIGTERM)),
            (now_s + self._grace_s, lambda: self._signal_all(signal.SIGKILL)),
        ]

    def _time_out(self) -> None:
        names = ", ".join(entry.name for entry in self._ranks.values())
        report(f"ending the job after {self._timeout_s:g} s; still running: {names}")
        self._status = _TIMED_OUT
        self._end_all(after_s=0.0)

    def _pass_on(self, number: signal.Signals) -> None:
        if number is signal.SIGINT:
            self._interrupts += 1
        self._signal_all(signal.SIGKILL if self._interrupts > 1 else number)

    def _signal_all(self, number: signal.Signals) -> None:
        for entry in self._ranks.values():
            _signal_group(entry.process.pid, number)

    def _end_leftovers(self, now_s: float) -> None:
        """Forgets groups that have ended, and kills those that had their time."""
        for group, deadline_s in list(self._leftovers.items()):
            if now_s >= deadline_s:
                _signal_group(group, signal.SIGKILL)
            if now_s >= deadline_s or not _signal_group(group, 0):
                self._tell_guard(f"-{group}")
                del self._leftovers[group]

    def _drain(self) -> None:
        """Waits for the end of the streams, unless someone who got away holds them open."""
        end_s = time.monotonic() + _DRAIN_S
        is_over = False
        while self._streams and not is_over:
            # Late as it may be: what is there already is read.
            is_over = (left_s := end_s - time.monotonic()) <= 0
            for key, _ in self._selector.select(max(0.0, left_s)):
                if key.fd in self._streams:
                    self._read(key.fd)
        for labeller in self._streams.values():
            with contextlib.suppress(BrokenPipeError):
                labeller.feed(b"")

    def _clean_up(self) -> None:
        """Leaves nothing, also after an exception."""
        self._signal_all(signal.SIGKILL)
        for entry in self._ranks.values():
            entry.process.wait()
            os.close(entry.pidfd)
        self._selector.close()
        if self._guard is not None:
            assert self._guard.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
            self._guard.wait()

    def _tell_guard(self, line: str) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(line.encode() + b"\n")
            self._guard.stdin.flush()

    # --- signals --------------------------------------------------------------------------

    def _catch_signals(self, stack: contextlib.ExitStack) -> None:
        """Makes the signals to be passed on readable at a pipe, as long as `stack` lives."""
        self._signals_out, signals_in = os.pipe()
        stack.callback(os.close, self._signals_out)
        stack.callback(os.close, signals_in)
        os.set_blocking(signals_in, False)
        self._selector.register(self._signals_out, selectors.EVENT_READ)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(signals_in))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # What was ignored before (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, _note))


def _note(number: int, frame: FrameType | None) -> None:
    """A handler has to be there for the number to arrive at the wakeup pipe."""


def _signal_group(group: int, number: int) -> bool:
    """Sends a signal to a process group; returns False if there is none of that number."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _prepare(cpus: list[int], guard_fd: int) -> Callable[[], None]:
    """Returns what a new rank does between fork and exec: bind itself, and not outlive us.

    It tells the guard of its group itself: what it starts may be there before we run again.
    """
    prctl: Any = ctypes.CDLL(None, use_errno=True).prctl
    launcher = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)
        # Without a guard, which may have been killed, it goes on all the same.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        with contextlib.suppress(BrokenPipeError):
            os.write(guard_fd, b"+%d\n" % os.getpid())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if cpus:
            os.sched_setaffinity(0, cpus)

    return prepare
