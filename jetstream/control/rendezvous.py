"""Joins this process to the others of its job: drives the protocol over zmq, in bounded time.

`join` is all that the rest of the package uses. When it returns, no socket and no thread of the
control plane is left in this process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import zmq

from jetstream.config import Config
from jetstream.control.fdpass import FdServer, fetch_fd
from jetstream.control.machine import (
    Attach,
    Attached,
    CreateSegment,
    Effect,
    LocalFailure,
    Lost,
    SegmentCreated,
    Send,
    Unreadable,
    Watch,
)
from jetstream.control.messages import (
    LIMIT_BYTES,
    ForeignBytesError,
    Hello,
    Member,
    Message,
    open_sealed,
    seal,
)
from jetstream.control.process import cpus_from_bitmap, describe_self, open_pidfd
from jetstream.control.protocol import Coordinator, Joiner
from jetstream.errors import JetstreamError, RendezvousError

__all__ = ["Membership", "SegmentFactory", "SegmentHandle", "Select", "join"]

#: Makes what all ranks choose algorithms by, from the cores that each of them may use.
Select = Callable[[tuple[frozenset[int], ...]], str]

_log = logging.getLogger("jetstream.control")

#: How long a closing socket may take to pass its last messages to the kernel: to a rank that is
#: there it takes no time, one that is gone must not hold this rank up.
_FLUSH_MS = 1000

#: How long a message of a dead process may still be on its way through zmq's own thread.
_LAST_WORDS_S = 0.2


class SegmentHandle(Protocol):
    """A mapped segment, as the control plane sees it."""

    @property
    def fd(self) -> int:
        """The memfd; it belongs to the handle."""

    def close(self) -> None:
        """Unmaps the segment and closes the descriptor."""


class SegmentFactory(Protocol):
    """Where segments come from: the class ``jetstream._core.segment.Segment``, or a test's."""

    def create(self, world: int, *, all_bytes: int = 0, heap_bytes: int = 0) -> SegmentHandle:
        """Makes the segment of a job of `world` ranks; sizes of 0 take the default."""

    def attach(self, fd: int) -> SegmentHandle:
        """Maps the segment behind `fd` and validates it; keeps a duplicate of `fd`."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Who belongs to the job, and the segment they share. Tuples are indexed by rank.

    ``pidfds`` holds -1 for this rank. Whoever gets a Membership closes the pidfds and the segment,
    or calls `close`.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    hosts: tuple[str, ...]
    pids: tuple[int, ...]
    cpus: tuple[frozenset[int], ...]
    pidfds: tuple[int, ...]
    segment: Any
    selection: str = ""

    def close(self) -> None:
        """Closes the pidfds and the segment; once."""
        _close_all(self.pidfds)
        self.segment.close()


def join(
    config: Config,
    *,
    segments: SegmentFactory | None = None,
    build: str | None = None,
    select: Select | None = None,
) -> Membership:
    """Waits until all ranks of the job are there and share a segment.

    `segments` and `build` (the build id all ranks must have in common) default to those of the
    data plane. `select` is called on rank 0, with the cores that each rank may use, and what it
    returns is the same in the Membership of all ranks. Takes at most ``config.init_timeout_s`` and
    a few seconds.

    Raises RendezvousError (someone missing, dead, doubled or of another host; the text says who is
    there and who is not), VersionMismatchError, or what creating or attaching the segment raised.
    """
    segments = _native_segments() if segments is None else segments
    me = describe_self(config, build=_native_build() if build is None else build)
    if config.world_size == 1:
        segment = segments.create(1, all_bytes=config.buffer_bytes, heap_bytes=config.heap_bytes)
        return _membership(config, (me.member,), (-1,), segment, "")
    started_s = time.monotonic()
    with contextlib.closing(_Session(config, me, segments, select)) as session:
        membership = session.run()
    _log.info(
        "rank %d of %d joined at %s in %.1f ms",
        config.rank,
        config.world_size,
        config.rendezvous,
        1e3 * (time.monotonic() - started_s),
    )
    return membership


def _native_segments() -> SegmentFactory:
    # Imported here: a test with its own segments needs no built data plane.
    from jetstream._core.segment import Segment

    return Segment


def _native_build() -> str:
    from jetstream._core.native import ffi, lib

    return bytes(ffi.string(lib.js_build_id())).decode()


def _membership(
    config: Config,
    members: tuple[Member, ...],
    pidfds: tuple[int, ...],
    segment: SegmentHandle,
    selection: str,
) -> Membership:
    return Membership(
        rank=config.rank,
        size=config.world_size,
        local_rank=config.local_rank,
        local_size=len(members),
        hosts=tuple(member.host for member in members),
        pids=tuple(member.pid for member in members),
        cpus=_cpus(members),
        pidfds=pidfds,
        segment=segment,
        selection=selection,
    )


def _cpus(members: tuple[Member, ...]) -> tuple[frozenset[int], ...]:
    return tuple(cpus_from_bitmap(member.cpus) for member in members)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


class _Session:
    """One attempt to join: the machine, its socket, and what it has opened so far."""

    def __init__(
        self, config: Config, me: Hello, segments: SegmentFactory, select: Select | None
    ) -> None:
        self._config = config
        self._me = me
        self._segments = segments
        self._select = select
        self._selection = ""
        self._members: tuple[Member, ...] = ()
        self._segment: SegmentHandle | None = None
        self._server: FdServer | None = None
        self._pidfds: dict[int, int] = {}
        self._lost: set[int] = set()
        self._wire = _Wire(config)
        now_s, timeout_s = time.monotonic(), config.init_timeout_s
        self._machine: Coordinator | Joiner
        if self._wire.is_bound:
            self._machine = Coordinator(me, now_s=now_s, timeout_s=timeout_s)
        else:
            self._machine = Joiner(me, address=config.rendezvous, now_s=now_s, timeout_s=timeout_s)

    def run(self) -> Membership:
        """Drives the machine to its end."""
        try:
            while True:
                self._machine.tick(now_s=time.monotonic())
                self._perform()
                if self._machine.is_final:
                    break
                self._poll()
        except BaseException as error:
            # The others should not have to wait for their timeout to learn about it.
            self._fail(error)
            raise
        if self._machine.error is not None:
            raise self._machine.error
        assert self._segment is not None
        pidfds = tuple(self._pidfds.pop(member.rank, -1) for member in self._members)
        segment, self._segment = self._segment, None
        return _membership(self._config, self._members, pidfds, segment, self._selection)

    def close(self) -> None:
        """Closes what is not part of the result. Messages to those who listen still get out."""
        if self._server is not None:
            self._server.close()
        _close_all(tuple(self._pidfds.values()))
        if self._segment is not None:
            self._segment.close()
        self._wire.close(linger_ms=_FLUSH_MS if self._members or self._wire.is_bound else 0)

    def _poll(self) -> None:
        """Waits for the next thing to happen and feeds it to the machine."""
        machine = self._machine
        watched = {pidfd: rank for rank, pidfd in self._pidfds.items() if rank not in self._lost}
        if isinstance(machine, Joiner):
            # The others are rank 0's to watch until there is a communicator.
            watched = {pidfd: rank for pidfd, rank in watched.items() if rank == 0}
        server = [] if self._server is None else [self._server.fileno()]
        readable = self._wire.wait([*watched, *server], timeout_s=machine.next_s - time.monotonic())
        self._receive()
        if self._server is not None and self._server.fileno() in readable:
            self._server.serve_one()
        dead = [rank for pidfd, rank in watched.items() if pidfd in readable]
        if dead:
            self._hear_last_words()
        for rank in dead:
            self._lost.add(rank)
            machine.step(Lost(rank), now_s=time.monotonic())

    def _receive(self) -> None:
        """Feeds the messages that are here to the machine."""
        for peer, event in self._wire.receive_all():
            self._machine.step(event, now_s=time.monotonic(), peer=peer)

    def _hear_last_words(self) -> None:
        """Takes what a process said before it died, which may overtake its death only now."""
        until_s = time.monotonic() + _LAST_WORDS_S
        while (left_s := until_s - time.monotonic()) > 0:
            self._wire.wait([], timeout_s=left_s)
            self._receive()

    def _perform(self) -> None:
        """Carries out what the machine wants; an effect may lead to further ones."""
        while effects := self._machine.take_effects():
            for effect in effects:
                self._perform_one(effect)

    def _perform_one(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._wire.send(effect.peer, effect.message)
        elif isinstance(effect, Watch):
            self._watch(effect.member)
        elif isinstance(effect, CreateSegment):
            self._create()
        elif isinstance(effect, Attach):
            self._attach(effect)

    def _watch(self, member: Member) -> None:
        try:
            self._pidfds[member.rank] = open_pidfd(member.pid, member.start_ticks)
        except RendezvousError:
            self._machine.step(Lost(member.rank), now_s=time.monotonic())

    def _create(self) -> None:
        assert isinstance(self._machine, Coordinator)
        self._members = self._machine.members
        self._segment = self._segments.create(
            self._config.world_size,
            all_bytes=self._config.buffer_bytes,
            heap_bytes=self._config.heap_bytes,
        )
        self._server = FdServer(
            self._segment.fd,
            pids={member.rank: member.pid for member in self._members},
            secret=self._config.job_secret,
        )
        if self._select is not None:
            self._selection = self._select(_cpus(self._members))
        event = SegmentCreated(self._server.name, self._selection)
        self._machine.step(event, now_s=time.monotonic())

    def _attach(self, effect: Attach) -> None:
        self._members = effect.welcome.members
        self._selection = effect.welcome.selection
        fd = fetch_fd(
            effect.welcome.fd_socket,
            rank=self._config.rank,
            owner_pid=self._members[0].pid,
            secret=self._config.job_secret,
            timeout_s=max(0.1, self._machine.deadline_s - time.monotonic()),
        )
        try:
            self._segment = self._segments.attach(fd)
        finally:
            os.close(fd)
        for member in self._members:
            if member.rank != self._config.rank:
                self._pidfds[member.rank] = open_pidfd(member.pid, member.start_ticks)
        self._machine.step(Attached(), now_s=time.monotonic())

    def _fail(self, error: BaseException) -> None:
        """Tells the others about an exception in this process."""
        if not isinstance(error, JetstreamError):
            error = RendezvousError(f"{type(error).__name__}: {error}")
        self._machine.step(LocalFailure(error), now_s=time.monotonic())
        for effect in self._machine.take_effects():
            if isinstance(effect, Send):
                self._wire.send(effect.peer, effect.message)


class _Wire:
    """The zmq socket of one attempt: ROUTER, bound, at rank 0; DEALER, connected, elsewhere.

    A rank 0 that finds the address taken connects too: if another rank 0 listens there, both of
    them, and all others, get to know it.
    """

    def __init__(self, config: Config) -> None:
        self._secret = config.job_secret
        self._context = zmq.Context(io_threads=1)
        self.is_bound = config.rank == 0 and self._open(zmq.ROUTER, config.rendezvous)
        if not self.is_bound:
            self._open(zmq.DEALER, config.rendezvous)

    def _open(self, kind: int, address: str) -> bool:
        """Opens the socket; returns False if the address is taken."""
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LIMIT_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            if kind == zmq.ROUTER:
                if address.startswith("ipc:"):
                    self._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
                self._socket.bind(address)
            else:
                # One Hello may wait for the connection; more would only pile up.
                self._socket.setsockopt(zmq.SNDHWM, 2)
                self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
                self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
                self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close()
            if error.errno == zmq.EADDRINUSE:
                return False
            self._context.term()
            raise RendezvousError(
                f"cannot use {address} as JETSTREAM_RENDEZVOUS: {error}"
            ) from None
        return True

    def send(self, peer: bytes, message: Message) -> None:
        """Sends or, where nobody takes it, drops: what matters is repeated or times out."""
        frames = [peer] if self.is_bound else []
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(
                [*frames, seal(message, secret=self._secret)], flags=zmq.NOBLOCK
            )
        _log.debug("sent %s", type(message).__name__)

    def wait(self, fds: list[int], *, timeout_s: float) -> set[int]:
        """Waits for a message or until one of `fds` is readable; returns those that are."""
        poller = zmq.Poller()
        for source in (self._socket, *fds):
            poller.register(source, zmq.POLLIN)
        ready = poller.poll(max(0, int(1e3 * timeout_s) + 1))
        return {source for source, _ in ready if isinstance(source, int)}

    def receive_all(self) -> Iterator[tuple[bytes, Message | Unreadable]]:
        """Yields (peer, message) for everything that ranks have sent."""
        while True:
            try:
                frames = self._socket.recv_multipart(flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            peer = frames.pop(0) if self.is_bound else b""
            try:
                yield peer, open_sealed(b"".join(frames), secret=self._secret)
            except ForeignBytesError as error:
                _log.warning("ignored at the rendezvous: %s", error)
            except JetstreamError as error:
                yield peer, Unreadable(error)

    def close(self, *, linger_ms: int) -> None:
        """Closes the socket and ends zmq's threads; `linger_ms` is for messages not yet sent."""
        self._context.destroy(linger=linger_ms)
