"""A rank of test_rendezvous*.py: joins as PLAN says and prints, line by line, what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from jetstream.config import load_config
from jetstream.control import coordinator, joiner, rendezvous
from jetstream.control.process import has_ended
from jetstream.control.rendezvous import join
from jetstream.errors import ConfigurationError, SegmentError

PLAN = json.loads(os.environ["PLAN"])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])


class Memfd:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.text = os.pread(fd, 99, 0).decode()

    @classmethod
    def create(cls, world: int, *, all_bytes: int = 0, heap_bytes: int = 0) -> Memfd:
        if PLAN.get("create") == "fail":
            raise SegmentError("no room")
        fd = os.memfd_create("test")
        os.write(fd, f"{os.getpid()} {world} {all_bytes}".encode())
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Memfd:
        if PLAN.get("attach") == "fail":
            raise SegmentError("bad magic")
        if PLAN.get("attach") == "hang":
            say({"hangs": True})
            time.sleep(120)
        if PLAN.get("attach") == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        return cls(os.dup(fd))

    def close(self) -> None:
        os.close(self.fd)


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def fds() -> dict[int, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(path.name)] = str(path.readlink())
    return found


def threads() -> int:
    """Threads of this process, once those that have been joined are gone from the kernel, too."""
    deadline_s = time.monotonic() + 5
    tasks = Path("/proc/self/task")
    while (count := len(list(tasks.iterdir()))) > 1 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return count


def open_link(settings: Any) -> bytes:
    if PLAN.get("link") == "fail":
        raise ConfigurationError(f"no interface {settings.interface}")
    if PLAN.get("link") == "hang":
        say({"hangs": True})
        time.sleep(120)
    if PLAN.get("link") == "wait":
        signal.sigwait([signal.SIGUSR1])
    return f"{settings.kind} {settings.address} {os.getpid()}".encode()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so() and time.monotonic() < deadline_s:
        time.sleep(0.01)


def fetch_late(name: str, **how: Any) -> int:
    """Asks for the segment only when whoever has it is gone."""
    wait_until(lambda: name not in Path("/proc/net/unix").read_text())
    return fetch_fd(name, **how)


def watch_late(pid: int, start_ticks: int) -> int:
    """Begins to watch a process only when it is gone."""
    pidfd = os.pidfd_open(pid)
    say({"watches": pid})
    wait_until(lambda: has_ended(pidfd))
    os.close(pidfd)
    return open_pidfd(pid, start_ticks)


class Session(rendezvous._Session):
    """Its time is up when all that PLAN["expires"] counts has happened so often, not before."""

    has_expired = False

    def _poll(self) -> None:
        if not self.has_expired and self.has_happened():
            self.has_expired = True
            self._machine.deadline_s = self._due_s = time.monotonic()
            if PLAN.get("stops"):
                os.kill(os.getpid(), signal.SIGSTOP)
                return
        super()._poll()

    def has_happened(self) -> bool:
        machine: Any = self._machine
        counts = {
            "arrived": lambda: len(machine.members),
            "ready": lambda: len(machine._ready),
            "refused": self._wire.count_refused,
            "connected": lambda: self._wire._look()[zmq.EVENT_CONNECTED],
        }
        return all(counts[what]() >= least for what, least in PLAN["expires"].items())


class ImpatientWire(rendezvous.Wire):
    """Looks up often."""

    def wait(self, fds: list[int], *, timeout_s: float) -> set[int]:
        return super().wait(fds, timeout_s=min(timeout_s, 0.05))


fetch_fd, open_pidfd = rendezvous.fetch_fd, rendezvous.open_pidfd
if PLAN.get("fetch") == "late":
    rendezvous.fetch_fd = fetch_late
if PLAN.get("watch") == "late":
    rendezvous.open_pidfd = watch_late
if "expires" in PLAN:
    rendezvous._Session, rendezvous.Wire = Session, ImpatientWire
coordinator.REFUSE_GRACE_S = 2.0  # those that come at all are there when something fails
joiner.ANSWER_GRACE_S = PLAN.get("answer_s", joiner.ANSWER_GRACE_S)

before = set(fds())
say({"starts": os.getpid()})
try:
    for _ in range(PLAN.get("repeat", 1)):
        member = join(
            load_config(), segments=Memfd, build=PLAN.get("build", "b1"), open_link=open_link
        )
        result = {
            "rank": member.rank,
            "size": member.size,
            "local": [member.local_rank, member.local_size],
            "host_index": member.host_index,
            "machine_index": member.machine_index,
            "endpoints": [endpoint.decode() for endpoint in member.endpoints],
            "hosts": member.hosts,
            "pids": member.pids,
            "cpus": [sorted(c) for c in member.cpus],
            "own_pidfd": member.pidfds[member.rank],
            "pidfds": [fd >= 0 and fds()[fd] for fd in member.pidfds],
            "segment": member.segment.text,
            "threads": threads(),
            "sockets": sum("socket" in name for fd, name in fds().items() if fd not in before),
        }
        member.close()
        result["leaked"] = [name for fd, name in fds().items() if fd not in before]
        say(result)
except BaseException as error:
    leaked = [name for fd, name in fds().items() if fd not in before]
    say(
        {
            "error": type(error).__name__,
            "text": str(error),
            "leaked": leaked,
            "threads": threads(),
        }
    )
