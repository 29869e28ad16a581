"""The rendezvous as two state machines without I/O: Coordinator (rank 0) and Joiner (the others).

    joiner                         coordinator
    CALLING    -- Hello -->        COLLECTING   waits for all ranks
                                   CREATING     makes the segment
    ATTACHING  <-- Welcome --      SHARING      hands the segment out
    READY      -- Ready -->                     waits for all ranks
    JOINED     <-- Go --           JOINED

Events go in through `step`, what is to be done comes out of `take_effects`, time is an argument.
Each machine is a table; an event that is not in it for the present state ends the rendezvous. When
it ends badly at one rank, rank 0 tells every rank why (Refuse), those that come late included.
"""

from __future__ import annotations

from typing import ClassVar

from jetstream import errors
from jetstream.control.machine import (
    AllArrived,
    AllReady,
    AllTold,
    Attach,
    Attached,
    CoordinatorState,
    CreateSegment,
    Expired,
    JoinerState,
    LocalFailure,
    Lost,
    Machine,
    Rejected,
    SegmentCreated,
    Send,
    Table,
    Unreadable,
    Watch,
    each,
)
from jetstream.control.messages import TEXT_MAX, Failed, Go, Hello, Member, Ready, Refuse, Welcome
from jetstream.errors import JetstreamError, ProtocolError, RendezvousError, VersionMismatchError

__all__ = ["Coordinator", "Joiner", "describe_member"]

#: How long rank 0 stays after a failure, to tell those who arrive late.
REFUSE_GRACE_S = 2.0
#: How long a joiner that gives up waits for rank 0 to say who else is missing.
LEAVE_GRACE_S = 1.0
#: How long a joiner waits for the last message of a rank 0 that has ended.
ORPHAN_GRACE_S = 0.5
#: A Hello may be lost with the previous rendezvous at the same address; so it is repeated.
HELLO_INTERVAL_S = 0.2


class Coordinator(Machine):
    """Rank 0: collects the ranks, hands out the segment, starts all of them at once."""

    def __init__(self, me: Hello, *, now_s: float, timeout_s: float) -> None:
        super().__init__(CoordinatorState.COLLECTING, deadline_s=now_s + timeout_s)
        self._me = me
        self._timeout_s = timeout_s
        self._arrived: dict[int, Member] = {0: me.member}
        self._peers: dict[int, bytes] = {}
        self._ready: set[int] = {0}
        self._told: set[int] = {0}

    @property
    def members(self) -> tuple[Member, ...]:
        """The ranks that have arrived, in order."""
        return tuple(self._arrived[rank] for rank in sorted(self._arrived))

    # --- collecting -----------------------------------------------------------------------

    def _admit(self, hello: Hello, peer: bytes) -> None:
        member = hello.member
        known = self._arrived.get(member.rank)
        if known == member and member.rank in self._peers:
            self._peers[member.rank] = peer
            return
        error = _objection(self._me, hello, known)
        if error is not None:
            self.advance(Rejected(error), peer)
            return
        self._arrived[member.rank] = member
        self._peers[member.rank] = peer
        self.do(Watch(member))
        if len(self._arrived) == self._me.world_size:
            self.advance(AllArrived())

    def _readmit(self, hello: Hello, peer: bytes) -> None:
        if self._peers.get(hello.member.rank) != peer:
            who = describe_member(hello.member)
            error = RendezvousError(f"{who} arrived when all ranks were there already")
            self.advance(Rejected(error), peer)

    def _create(self, event: AllArrived, peer: bytes) -> None:
        self.do(CreateSegment())

    def _welcome(self, event: SegmentCreated, peer: bytes) -> None:
        welcome = Welcome(
            members=self.members, fd_socket=event.fd_socket, selection=event.selection
        )
        for target in self._peers.values():
            self.do(Send(target, welcome))

    # --- sharing --------------------------------------------------------------------------

    def _count_ready(self, ready: Ready, peer: bytes) -> None:
        if self._peers.get(ready.rank) != peer or ready.rank in self._ready:
            self.advance(Rejected(self.violation(ready, peer)), peer)
            return
        self._ready.add(ready.rank)
        if len(self._ready) == self._me.world_size:
            self.advance(AllReady())

    def _go(self, event: AllReady, peer: bytes) -> None:
        for target in self._peers.values():
            self.do(Send(target, Go()))

    # --- ending badly ---------------------------------------------------------------------

    def _refuse(self, event: Rejected | Unreadable, peer: bytes) -> None:
        self._tell_all(event.error, peer)

    def _pass_on(self, failed: Failed, peer: bytes) -> None:
        member = self._arrived.get(failed.rank)
        who = describe_member(member) if member else f"rank {failed.rank}"
        text = f"{who} failed: {failed.text}; {self._roster()}"
        self._tell_all(_error_from(failed.error, text), peer)

    def _mourn(self, lost: Lost, peer: bytes) -> None:
        who = describe_member(self._arrived[lost.rank])
        self._tell_all(RendezvousError(f"{who} died during the rendezvous; {self._roster()}"))

    def _own_failure(self, failure: LocalFailure, peer: bytes) -> None:
        text = f"{describe_member(self._me.member)} failed: {failure.error}"
        self._tell_all(_error_from(type(failure.error).__name__, text))

    def _time_out(self, event: Expired, peer: bytes) -> None:
        text = f"the ranks did not come together within {self._timeout_s:g} s; {self._roster()}"
        self._tell_all(RendezvousError(text))
        # Whoever is still missing has had its time.
        self.deadline_s = self.now_s

    def _tell_all(self, error: JetstreamError, offender: bytes = b"") -> None:
        self.error = error
        self.deadline_s = self.now_s + REFUSE_GRACE_S
        targets = list(self._peers.values())
        if offender and offender not in targets:
            targets.append(offender)
        for target in targets:
            self.do(Send(target, _refusal(error)))
        self._mark_told(set(self._peers))

    def _tell_late(self, event: Hello | Unreadable, peer: bytes) -> None:
        assert self.error is not None
        self.do(Send(peer, _refusal(self.error)))
        if isinstance(event, Hello):
            self._mark_told({event.member.rank})

    def _mark_told(self, ranks: set[int]) -> None:
        self._told |= ranks & set(range(self._me.world_size))
        if len(self._told) == self._me.world_size:
            self.advance(AllTold())

    # --- texts ----------------------------------------------------------------------------

    def _roster(self) -> str:
        missing = [rank for rank in range(self._me.world_size) if rank not in self._arrived]
        arrived = ", ".join(map(describe_member, self.members))
        if missing:
            return f"arrived: {arrived}; not arrived: {_describe_ranks(missing)}"
        waiting = [member for member in self.members if member.rank not in self._ready]
        return f"arrived: {arrived}; not ready: {', '.join(map(describe_member, waiting))}"

    def violation(self, event: object, peer: bytes) -> ProtocolError:
        """Names the sender as well."""
        sender = next((rank for rank, known in self._peers.items() if known == peer), None)
        who = "an unknown sender" if sender is None else describe_member(self._arrived[sender])
        return ProtocolError(
            f"unexpected {type(event).__name__} from {who} in state {self.state.name}"
        )

    _S = CoordinatorState
    _LIVE = (_S.COLLECTING, _S.CREATING, _S.SHARING)
    TABLE: ClassVar[Table] = {
        (_S.COLLECTING, Hello): (_admit, _S.COLLECTING),
        (_S.COLLECTING, AllArrived): (_create, _S.CREATING),
        (_S.CREATING, Hello): (_readmit, _S.CREATING),
        (_S.CREATING, SegmentCreated): (_welcome, _S.SHARING),
        (_S.SHARING, Hello): (_readmit, _S.SHARING),
        (_S.SHARING, Ready): (_count_ready, _S.SHARING),
        (_S.SHARING, AllReady): (_go, _S.JOINED),
        **each(
            _LIVE,
            {
                Rejected: (_refuse, _S.REFUSING),
                Unreadable: (_refuse, _S.REFUSING),
                Failed: (_pass_on, _S.REFUSING),
                Lost: (_mourn, _S.REFUSING),
                LocalFailure: (_own_failure, _S.REFUSING),
                Expired: (_time_out, _S.REFUSING),
            },
        ),
        (_S.REFUSING, Hello): (_tell_late, _S.REFUSING),
        (_S.REFUSING, Unreadable): (_tell_late, _S.REFUSING),
        (_S.REFUSING, AllTold): (Machine.ignore, _S.FAILED),
        (_S.REFUSING, Expired): (Machine.ignore, _S.FAILED),
        **each(
            (_S.REFUSING,),
            dict.fromkeys((Rejected, Failed, Lost, LocalFailure, Ready), (Machine.ignore, None)),
        ),
        **each(
            (_S.JOINED, _S.FAILED),
            dict.fromkeys((Rejected, Unreadable, Failed, Hello), (Machine.ignore, None)),
        ),
    }


class Joiner(Machine):
    """Any rank but 0 (and a second rank 0, which learns here that it is one)."""

    def __init__(self, me: Hello, *, address: str, now_s: float, timeout_s: float) -> None:
        super().__init__(JoinerState.CALLING, deadline_s=now_s + timeout_s)
        self._me = me
        self._address = address
        self._timeout_s = timeout_s
        self._hello_s = now_s

    @property
    def next_s(self) -> float:
        """When to call `tick` next: also to say hello again."""
        if self.state is JoinerState.CALLING:
            return min(self._hello_s, self.deadline_s)
        return self.deadline_s

    def tick(self, *, now_s: float) -> None:
        """Lets time pass, and says hello as long as nobody answers."""
        super().tick(now_s=now_s)
        if self.state is JoinerState.CALLING and now_s >= self._hello_s:
            self._hello_s = now_s + HELLO_INTERVAL_S
            self.do(Send(b"", self._me))

    # --- the good way ---------------------------------------------------------------------

    def _attach(self, welcome: Welcome, peer: bytes) -> None:
        ranks = [member.rank for member in welcome.members]
        mine = self._me.member
        if ranks == list(range(self._me.world_size)) and welcome.members[mine.rank] == mine:
            self.do(Attach(welcome))
        else:
            text = f"rank 0 welcomed the ranks {ranks} of {self._me.world_size}, or not this one"
            self.advance(Rejected(ProtocolError(text)))

    def _ready(self, event: Attached, peer: bytes) -> None:
        self.do(Send(b"", Ready(rank=self._me.member.rank)))

    # --- ending badly ---------------------------------------------------------------------

    def _refused(self, refuse: Refuse, peer: bytes) -> None:
        self.error = _error_from(refuse.error, refuse.text)

    def _fail(self, event: Rejected | Unreadable | LocalFailure, peer: bytes) -> None:
        self.error = event.error
        refusal = _refusal(event.error)
        rank = self._me.member.rank
        self.do(Send(b"", Failed(rank=rank, error=refusal.error, text=refusal.text)))

    def _orphan(self, lost: Lost, peer: bytes) -> None:
        # Its last word, Go or Refuse, may still be on the way.
        self.deadline_s = self.now_s + ORPHAN_GRACE_S

    def _mourn(self, event: Expired, peer: bytes) -> None:
        self.error = RendezvousError("rank 0 died during the rendezvous")

    def _give_up(self, event: Expired, peer: bytes) -> None:
        self._fail(Rejected(RendezvousError(f"gave up after {self._timeout_s:g} s")), peer)
        self.deadline_s = self.now_s + LEAVE_GRACE_S

    def _leave(self, event: Expired, peer: bytes) -> None:
        if self._me.member.rank == 0:
            text = f"{self._address} is in use by another process, which does not answer"
            self.error = RendezvousError(text)
            return
        self.error = RendezvousError(
            f"rank {self._me.member.rank} heard nothing from rank 0 at {self._address} within "
            f"{self._timeout_s:g} s: rank 0 is not running, has not called jetstream.init, "
            "is stopped, belongs to another user or has another JETSTREAM_RENDEZVOUS"
        )

    _S = JoinerState
    TABLE: ClassVar[Table] = {
        (_S.CALLING, Welcome): (_attach, _S.ATTACHING),
        (_S.ATTACHING, Attached): (_ready, _S.READY),
        (_S.READY, Go): (Machine.ignore, _S.JOINED),
        **each(
            (_S.CALLING, _S.ATTACHING, _S.READY),
            {
                Refuse: (_refused, _S.FAILED),
                Rejected: (_fail, _S.FAILED),
                Unreadable: (_fail, _S.FAILED),
                LocalFailure: (_fail, _S.FAILED),
                Lost: (_orphan, _S.ORPHANED),
                Expired: (_give_up, _S.LEAVING),
            },
        ),
        (_S.ORPHANED, Go): (Machine.ignore, _S.JOINED),
        (_S.ORPHANED, Refuse): (_refused, _S.FAILED),
        (_S.ORPHANED, Expired): (_mourn, _S.FAILED),
        **each(
            (_S.ORPHANED,),
            dict.fromkeys((Welcome, Rejected, Unreadable, LocalFailure), (Machine.ignore, None)),
        ),
        (_S.LEAVING, Refuse): (_refused, _S.FAILED),
        (_S.LEAVING, Lost): (_orphan, _S.ORPHANED),
        (_S.LEAVING, Expired): (_leave, _S.FAILED),
        (_S.LEAVING, LocalFailure): (_fail, _S.FAILED),
        **each(
            (_S.LEAVING,),
            dict.fromkeys((Welcome, Go, Rejected, Unreadable, Attached), (Machine.ignore, None)),
        ),
        **each(
            (_S.JOINED, _S.FAILED),
            dict.fromkeys((Refuse, Rejected, Unreadable), (Machine.ignore, None)),
        ),
    }


def describe_member(member: Member) -> str:
    """Returns "rank 3 (pid 4711)"."""
    return f"rank {member.rank} (pid {member.pid})"


def _error_from(name: str, text: str) -> JetstreamError:
    """Makes the error of that class name; a name that is not one of ours gives RendezvousError."""
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if isinstance(kind, type) and issubclass(kind, JetstreamError):
        return kind(text)
    return RendezvousError(text)


def _refusal(error: JetstreamError) -> Refuse:
    # Texts may hold lone surrogates (from file names), which msgpack cannot encode.
    text = str(error).encode("utf-8", "replace").decode()
    return Refuse(error=type(error).__name__, text=text[:TEXT_MAX])


def _describe_ranks(ranks: list[int]) -> str:
    """Returns "1, 3-7" for ascending ranks."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _objection(me: Hello, hello: Hello, known: Member | None) -> JetstreamError | None:
    """Returns why the rank behind `hello` cannot join rank 0 (`me`), or None if it can.

    `known` is who has that rank already.
    """
    rank, zero = hello.member.rank, describe_member(me.member)
    who = describe_member(hello.member)
    if hello.build != me.build:
        return VersionMismatchError(
            f"{zero} runs build {me.build} of jetstream, {who} runs {hello.build}; "
            "install the same build for all ranks"
        )
    if (hello.boot_id, hello.pid_namespace) != (me.boot_id, me.pid_namespace):
        return RendezvousError(
            f"{zero} on {me.member.host} and {who} on {hello.member.host} are on different hosts "
            "or in different PID namespaces; this version joins the ranks of one host only"
        )
    if hello.world_size != me.world_size:
        return RendezvousError(
            f"{zero} expects {me.world_size} ranks, {who} expects {hello.world_size}; "
            "give all ranks the same JETSTREAM_WORLD_SIZE"
        )
    if rank >= me.world_size:
        return RendezvousError(f"{who} is out of range: there are {me.world_size} ranks")
    if known is not None:
        return RendezvousError(
            f"two processes are rank {rank}: pid {known.pid} and pid {hello.member.pid}; "
            "give every rank its own JETSTREAM_RANK"
        )
    if hello.algorithms != me.algorithms:
        return RendezvousError(
            f"{zero} has JETSTREAM_ALGO={me.algorithms!r}, {who} has {hello.algorithms!r}; "
            "give all ranks the same"
        )
    return None
