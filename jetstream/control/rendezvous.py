"""Joins this process to the others of its job: drives the protocol over zmq, in bounded time.

`join` is all that the rest of the package uses. When it returns, no socket and no thread of the
control plane is left in this process.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from jetstream.config import Config
from jetstream.control.agreement import describe_member
from jetstream.control.coordinator import Coordinator
from jetstream.control.fdpass import FdServer, fetch_fd
from jetstream.control.joiner import Joiner
from jetstream.control.links import LinkEnd, link_end
from jetstream.control.machine import (
    Attach,
    Attached,
    Bereaved,
    Effect,
    LocalFailure,
    Lost,
    Prepare,
    Prepared,
    Send,
    Watch,
)
from jetstream.control.messages import Assemble, Hello, Member
from jetstream.control.placement import Placement, place
from jetstream.control.process import cpus_from_bitmap, describe_self, open_pidfd
from jetstream.control.wire import Wire
from jetstream.errors import (
    ConfigurationError,
    JetstreamError,
    RendezvousError,
    UnsupportedError,
)

__all__ = [
    "Announce",
    "Membership",
    "OpenLink",
    "SegmentFactory",
    "SegmentHandle",
    "Select",
    "join",
]

#: Makes what all ranks choose algorithms by, from the cores that each of the ranks may use that run
#: on the machine of rank 0.
Select = Callable[[tuple[frozenset[int], ...]], str]
#: Opens the link of this rank and returns the address at which the other hosts reach it.
OpenLink = Callable[[LinkEnd], bytes]
#: Tells the other ranks where rank 0 listens, by a way of the caller's.
Announce = Callable[[str], None]

_log = logging.getLogger("jetstream.control")

#: How long a closing socket may take to pass its last messages to the kernel: to a rank that is
#: there it takes no time, one that is gone must not hold this rank up.
_FLUSH_MS = 1000

#: How long the last message of one that has gone may still be on its way through zmq's own thread.
_LAST_WORDS_S = 1.0
#: How long a process that was away hears what has come meanwhile.
_CATCH_UP_S = 0.5
#: After so much time in which it should have looked at its messages, a process was away: stopped,
#: or kept from running.
_ABSENT_S = 0.5
#: After so much silence of rank 0 a joiner says why that may be, if it can tell.
_WARN_S = 5.0
#: How long it tries to find out.
_TRY_S = 1.0


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
    """Who belongs to the job, and the segment of this host. Tuples are indexed by rank.

    ``host_index`` numbers the hosts in the order of their first ranks; ``hosts`` are their names,
    different for different hosts. ``machine_index`` likewise: hosts that are containers of one
    machine, or virtual, share its cores. ``endpoints``: where each rank's link is reached, b"" on
    one host. ``pidfds`` holds -1 for this rank and for those of other hosts. The segment is made
    for the ranks of all hosts. Whoever gets a Membership closes the pidfds and the segment, or
    calls `close`.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host_index: tuple[int, ...]
    machine_index: tuple[int, ...]
    hosts: tuple[str, ...]
    endpoints: tuple[bytes, ...]
    pids: tuple[int, ...]
    cpus: tuple[frozenset[int], ...]
    pidfds: tuple[int, ...]
    segment: Any
    selection: str = ""

    @property
    def cpus_here(self) -> tuple[frozenset[int], ...]:
        """The cores of those ranks that run on the machine of this one."""
        here = self.machine_index[self.rank]
        pairs = zip(self.cpus, self.machine_index, strict=True)
        return tuple(cpus for cpus, machine in pairs if machine == here)

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
    open_link: OpenLink | None = None,
    announce: Announce | None = None,
) -> Membership:
    """Waits until all ranks of the job are there and those of each host share a segment.

    `segments` and `build` (the build id all ranks must have in common) default to those of the
    data plane. `select` is called on rank 0, and what it returns is the same in the Membership of
    all ranks. `open_link` is called on every rank if there are several hosts, and what it returns
    is in the Membership of all ranks; a link that it has opened stays its owner's, also if joining
    fails. `announce` is called on rank 0 once it listens: then the port of ``config.rendezvous``
    may be 0. Takes at most ``config.init_timeout_s`` and a few seconds.

    Raises RendezvousError (someone missing, dead or doubled; the text says who is there and who is
    not), VersionMismatchError, ConfigurationError, UnsupportedError (several hosts, but no
    `open_link`), or what creating or attaching the segment or opening the link raised.
    """
    segments = _native_segments() if segments is None else segments
    me = describe_self(config, build=_native_build() if build is None else build)
    if config.world_size == 1:
        segment = segments.create(1, all_bytes=config.buffer_bytes, heap_bytes=config.heap_bytes)
        placement = place((me.member,))
        return _membership(config, (me.member,), placement, segment=segment, endpoints=(b"",))
    started_s = time.monotonic()
    session = _Session(config, me, segments, select, open_link)
    with contextlib.closing(session):
        membership = session.run(announce)
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
    placement: Placement,
    *,
    segment: SegmentHandle,
    endpoints: tuple[bytes, ...],
    pidfds: tuple[int, ...] = (-1,),
    selection: str = "",
) -> Membership:
    neighbours = placement.neighbours_of(config.rank)
    return Membership(
        rank=config.rank,
        size=config.world_size,
        local_rank=neighbours.index(config.rank),
        local_size=len(neighbours),
        host_index=placement.host_index,
        machine_index=placement.machine_index,
        hosts=tuple(placement.names[index] for index in placement.host_index),
        endpoints=endpoints,
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
        self,
        config: Config,
        me: Hello,
        segments: SegmentFactory,
        select: Select | None,
        open_link: OpenLink | None,
    ) -> None:
        self._config = config
        self._segments = segments
        self._select = select
        self._open_link = open_link
        self._members: tuple[Member, ...] = ()
        self._placement: Placement | None = None
        self._segment: SegmentHandle | None = None
        self._server: FdServer | None = None
        self._pidfds: dict[int, int] = {}
        self._lost: set[int] = set()
        self._wire = Wire(config)
        now_s, timeout_s = time.monotonic(), config.init_timeout_s
        self._due_s = now_s
        self._warn_s = now_s + _WARN_S
        self._machine: Coordinator | Joiner
        if self._wire.is_bound:
            self._machine = Coordinator(
                me,
                now_s=now_s,
                timeout_s=timeout_s,
                silence_s=config.link_timeout_s,
                buffer_bytes=config.buffer_bytes,
                heap_bytes=config.heap_bytes,
            )
        else:
            self._machine = Joiner(
                me,
                address=config.rendezvous,
                now_s=now_s,
                timeout_s=timeout_s,
                silence_s=config.link_timeout_s,
            )

    def run(self, announce: Announce | None) -> Membership:
        """Drives the machine to its end."""
        if announce is not None and self._wire.is_bound:
            announce(self._wire.address)
        try:
            while True:
                self._catch_up()
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
            raise self._explained(self._machine.error)
        assert self._segment is not None
        assert self._placement is not None
        welcome = self._machine.welcome
        assert welcome is not None
        pidfds = tuple(self._pidfds.pop(member.rank, -1) for member in self._members)
        segment, self._segment = self._segment, None
        return _membership(
            self._config,
            self._members,
            self._placement,
            segment=segment,
            endpoints=welcome.endpoints,
            pidfds=pidfds,
            selection=welcome.selection,
        )

    def _explained(self, error: JetstreamError) -> JetstreamError:
        """Adds what only the socket knows: first where all else is guessed, not so at rank 0."""
        if not isinstance(error, RendezvousError):
            return error
        if self._wire.count_refused():
            why = (
                "connections failed in the handshake: JETSTREAM_JOB_SECRET may differ between "
                "ranks, or two jobs use the same JETSTREAM_RENDEZVOUS"
            )
        else:
            why = self._wire.explain_silence(timeout_s=_TRY_S)
        if not why:
            return error
        return RendezvousError(f"{error}; {why}" if self._wire.is_bound else f"{why}; {error}")

    def close(self) -> None:
        """Closes what is not part of the result. Messages to those who listen still get out."""
        has_listener = self._wire.is_bound or (self._members and 0 not in self._lost)
        try:
            self._wire.close(linger_ms=_FLUSH_MS if has_listener else 0)
        finally:
            # Only now: who finds that the server has gone has been sent the reason already.
            if self._server is not None:
                self._server.close()
            _close_all(tuple(self._pidfds.values()))
            if self._segment is not None:
                self._segment.close()

    def _catch_up(self) -> None:
        """Hears the others before time counts against them, if it is this process that was away."""
        now_s = time.monotonic()
        if now_s > self._due_s + _ABSENT_S:
            if isinstance(self._machine, Coordinator):
                self._machine.absent_s += now_s - self._due_s
            self._listen(_CATCH_UP_S)
        if now_s > self._warn_s:
            self._warn_s = math.inf
            why = self._wire.explain_silence(timeout_s=_TRY_S)
            if why:
                _log.warning("rank %d waits for rank 0: %s", self._config.rank, why)

    def _poll(self) -> None:
        """Waits for the next thing to happen and feeds it to the machine."""
        machine = self._machine
        watched = {pidfd: rank for rank, pidfd in self._pidfds.items() if rank not in self._lost}
        if isinstance(machine, Joiner) and 0 in self._pidfds:
            # The others are rank 0's to watch until there is a communicator.
            watched = {pidfd: rank for pidfd, rank in watched.items() if rank == 0}
        server = [] if self._server is None else [self._server.fileno()]
        self._due_s = max(time.monotonic(), machine.next_s)
        readable = self._wire.wait([*watched, *server], timeout_s=machine.next_s - time.monotonic())
        self._receive()
        if self._server is not None and self._server.fileno() in readable:
            self._server.serve_one()
        dead = [rank for pidfd, rank in watched.items() if pidfd in readable]
        if dead:
            self._listen(_LAST_WORDS_S)
        for rank in dead:
            self._lost.add(rank)
            machine.step(self._loss_of(rank), now_s=time.monotonic())

    def _loss_of(self, rank: int) -> Lost | Bereaved:
        """What the death of that rank is to this one: rank 0 cannot see it on another host."""
        if isinstance(self._machine, Coordinator) or rank == 0:
            return Lost(rank)
        who = describe_member(self._members[rank])
        return Bereaved(RendezvousError(f"{who} died during the rendezvous"))

    def _receive(self) -> None:
        """Feeds the messages that are here to the machine."""
        for peer, event in self._wire.receive_all():
            self._machine.step(event, now_s=time.monotonic(), peer=peer)

    def _listen(self, for_s: float) -> None:
        """Takes what others have said and is still on its way through zmq's own thread: before they
        died, or before this process could run again.
        """
        until_s, machine = time.monotonic() + for_s, self._machine
        before = machine.error
        while machine.error is before and not machine.is_final and time.monotonic() < until_s:
            self._wire.wait([], timeout_s=until_s - time.monotonic())
            self._receive()

    def _perform(self) -> None:
        """Carries out what the machine wants; an effect may lead to further ones."""
        while effects := self._machine.take_effects():
            for effect in effects:
                try:
                    self._perform_one(effect)
                except RendezvousError as error:
                    # Another rank failed this one, perhaps because it has left already: then the
                    # reason is what rank 0 says, which may still be on its way.
                    self._listen(_LAST_WORDS_S)
                    if isinstance(self._machine, Joiner):
                        self._machine.step(Bereaved(error), now_s=time.monotonic())
                    elif self._machine.error is None:
                        raise

    def _perform_one(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self._wire.send(effect.peer, effect.message)
        elif isinstance(effect, Watch):
            self._watch(effect.member)
        elif isinstance(effect, Prepare):
            self._prepare(effect.assembly)
        elif isinstance(effect, Attach):
            self._attach(effect)

    def _watch(self, member: Member) -> bool:
        """Opens the pidfd of `member`; returns False if it has gone, which the machine is told."""
        try:
            self._pidfds[member.rank] = open_pidfd(member.pid, member.start_ticks)
        except RendezvousError:
            self._listen(_LAST_WORDS_S)
            self._machine.step(self._loss_of(member.rank), now_s=time.monotonic())
            return False
        return True

    def _prepare(self, assembly: Assemble) -> None:
        self._members = assembly.members
        placement = self._placement = place(assembly.members)
        config, rank = self._config, self._config.rank
        neighbours = [self._members[neighbour] for neighbour in placement.neighbours_of(rank)]
        for member in neighbours:
            is_known = member.rank == rank or member.rank in self._pidfds
            if not is_known and not self._watch(member):
                return
        fd_socket = ""
        if placement.leader_of(rank) == rank:
            self._segment = self._segments.create(
                config.world_size, all_bytes=assembly.buffer_bytes, heap_bytes=assembly.heap_bytes
            )
            self._server = FdServer(
                self._segment.fd,
                pids={member.rank: member.pid for member in neighbours},
                secret=config.job_secret,
            )
            fd_socket = self._server.name
        endpoint = self._endpoint(assembly.link, placement)
        selection = ""
        if self._select is not None and isinstance(self._machine, Coordinator):
            machines = zip(self._members, placement.machine_index, strict=True)
            selection = self._select(_cpus(tuple(one for one, index in machines if index == 0)))
        self._machine.step(Prepared(endpoint, fd_socket, selection), now_s=time.monotonic())

    def _endpoint(self, kind: str, placement: Placement) -> bytes:
        """Opens the link, where there is to be one; returns its address."""
        if not kind:
            return b""
        if self._open_link is None:
            raise UnsupportedError(f"the ranks are on several hosts: {', '.join(placement.names)}")
        if not self._config.job_secret and self._config.rendezvous.startswith("tcp:"):
            raise ConfigurationError(
                "the ranks are on several hosts and meet over TCP, where any user may call: "
                "JETSTREAM_JOB_SECRET is needed, the same for all"
            )
        return self._open_link(link_end(self._config, kind, placement))

    def _attach(self, effect: Attach) -> None:
        assert self._placement is not None
        rank = self._config.rank
        owner = self._placement.leader_of(rank)
        if owner != rank:
            fd = fetch_fd(
                effect.welcome.fd_sockets[self._placement.host_index[rank]],
                rank=rank,
                owner=owner,
                owner_pid=self._members[owner].pid,
                secret=self._config.job_secret,
                timeout_s=max(0.1, self._machine.deadline_s - time.monotonic()),
            )
            try:
                self._segment = self._segments.attach(fd)
            finally:
                os.close(fd)
        self._machine.step(Attached(), now_s=time.monotonic())

    def _fail(self, error: BaseException) -> None:
        """Tells the others about an exception in this process."""
        if not isinstance(error, JetstreamError):
            error = RendezvousError(f"{type(error).__name__}: {error}")
        self._machine.step(LocalFailure(error), now_s=time.monotonic())
        for effect in self._machine.take_effects():
            if isinstance(effect, Send):
                self._wire.send(effect.peer, effect.message)
