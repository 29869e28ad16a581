"""The rendezvous as rank 0 sees it: a state machine without I/O, the counterpart of joiner.py.

    joiner                         coordinator
    CALLING    -- Hello -->        COLLECTING   waits for all ranks
    PREPARING  <-- Assemble --     ASSEMBLING   opens links, makes segments, as the others do
    OFFERING   -- Offer -->                     waits for all ranks
    ATTACHING  <-- Welcome --      SHARING
    READY      -- Ready -->                     waits for all ranks
    JOINED     <-- Go --           JOINED

Events go in through `step`, what is to be done comes out of `take_effects`, time is an argument.
Each machine is a table; an event that is not in it for the present state ends the rendezvous. When
it ends badly at one rank, rank 0 tells every rank why (Refuse), those that come late included.
"""

from __future__ import annotations

from typing import ClassVar

from jetstream.control.agreement import (
    describe_member,
    describe_ranks,
    error_from,
    objection_to,
    refusal_of,
)
from jetstream.control.links import choose_kind
from jetstream.control.machine import (
    AllArrived,
    AllOffered,
    AllReady,
    AllTold,
    CoordinatorState,
    Expired,
    LocalFailure,
    Lost,
    Machine,
    Prepare,
    Prepared,
    Rejected,
    Send,
    Silent,
    Table,
    Unreadable,
    Watch,
    each,
)
from jetstream.control.messages import (
    Alive,
    Assemble,
    Failed,
    Go,
    Hello,
    Member,
    Offer,
    Ready,
    Welcome,
)
from jetstream.control.placement import Placement, are_neighbours, place
from jetstream.errors import JetstreamError, ProtocolError, RendezvousError

__all__ = ["REFUSE_GRACE_S", "SILENCE_S", "Coordinator"]

#: How long rank 0 stays after a failure, to tell those who arrive late.
REFUSE_GRACE_S = 5.0
#: Silence after which a rank of another host is lost (JETSTREAM_LINK_TIMEOUT).
SILENCE_S = 10.0


class Coordinator(Machine):
    """Rank 0: collects the ranks, tells them of each other, starts all of them at once."""

    def __init__(
        self,
        me: Hello,
        *,
        now_s: float,
        timeout_s: float,
        silence_s: float = SILENCE_S,
        buffer_bytes: int = 0,
        heap_bytes: int = 0,
    ) -> None:
        """The sizes, 0 for the default, are those of the segments of all hosts.

        A rank of another host that is silent for `silence_s` is lost.
        """
        super().__init__(CoordinatorState.COLLECTING, deadline_s=now_s + timeout_s)
        self._me = me
        self._sizes = (buffer_bytes, heap_bytes)
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        #: When each rank of another host was last heard of.
        self._heard_s: dict[int, float] = {}
        self._arrived: dict[int, Member] = {0: me.member}
        self._choices = {0: (me.link_choice, me.link_reason)}
        self._peers: dict[int, bytes] = {}
        self._placement: Placement | None = None
        self._offers: dict[int, Offer] = {}
        self._selection = ""
        self._ready: set[int] = {0}
        self._told: set[int] = {0}
        #: How long this process was away, stopped or kept from running, in seconds.
        self.absent_s = 0.0

    @property
    def members(self) -> tuple[Member, ...]:
        """The ranks that have arrived, in order."""
        return tuple(self._arrived[rank] for rank in sorted(self._arrived))

    @property
    def next_s(self) -> float:
        """When to call `tick` next."""
        if self.state not in self._LIVE or not self._heard_s:
            return self.deadline_s
        return min(self.deadline_s, min(self._heard_s.values()) + self._silence_s)

    def tick(self, *, now_s: float) -> None:
        """Lets time pass, and misses those who are silent."""
        super().tick(now_s=now_s)
        silent = [rank for rank, at_s in self._heard_s.items() if now_s >= at_s + self._silence_s]
        if silent and self.state in self._LIVE:
            self.step(Silent(silent[0]), now_s=now_s)

    def step(self, event: object, *, now_s: float, peer: bytes = b"") -> None:
        """Takes an event; whoever sent it is alive."""
        for rank in self._heard_s:
            if self._peers[rank] == peer:
                self._heard_s[rank] = now_s
        super().step(event, now_s=now_s, peer=peer)

    # --- collecting -----------------------------------------------------------------------

    def _admit(self, hello: Hello, peer: bytes) -> None:
        member = hello.member
        known = self._arrived.get(member.rank)
        if known == member and member.rank in self._peers:
            self._peers[member.rank] = peer
            self._answer(Alive(rank=member.rank), peer)
            return
        error = objection_to(self._me, hello, known)
        if error is not None:
            self.advance(Rejected(error), peer)
            self._mark_told({member.rank})
            return
        self._arrived[member.rank] = member
        self._choices[member.rank] = (hello.link_choice, hello.link_reason)
        self._peers[member.rank] = peer
        if are_neighbours(self._me.member, member):
            self.do(Watch(member))
        else:
            self._heard_s[member.rank] = self.now_s
            self._answer(Alive(rank=member.rank), peer)
        if len(self._arrived) == self._me.world_size:
            self.advance(AllArrived())

    def _answer(self, alive: Alive, peer: bytes) -> None:
        if alive.rank in self._heard_s and self._peers[alive.rank] == peer:
            self.do(Send(peer, Alive(rank=0)))

    def _readmit(self, hello: Hello, peer: bytes) -> None:
        if self._peers.get(hello.member.rank) != peer:
            who = describe_member(hello.member)
            error = RendezvousError(f"{who} arrived when all ranks were there already")
            self.advance(Rejected(error), peer)

    # --- assembling -----------------------------------------------------------------------

    def _assemble(self, event: AllArrived, peer: bytes) -> None:
        members = self.members
        self._placement = place(members)
        buffer_bytes, heap_bytes = self._sizes
        self.assembly = Assemble(
            members=members,
            link=choose_kind([self._choices[one.rank] for one in members], self._placement),
            buffer_bytes=buffer_bytes,
            heap_bytes=heap_bytes,
        )
        for target in self._peers.values():
            self.do(Send(target, self.assembly))
        self.do(Prepare(self.assembly))

    def _offer_own(self, event: Prepared, peer: bytes) -> None:
        self._selection = event.selection
        self._take_offer(Offer(rank=0, endpoint=event.endpoint, fd_socket=event.fd_socket))

    def _count_offer(self, offer: Offer, peer: bytes) -> None:
        if self._peers.get(offer.rank) != peer or offer.rank in self._offers:
            self.advance(Rejected(self.violation(offer, peer)), peer)
            return
        assert self._placement is not None
        is_leader = self._placement.leader_of(offer.rank) == offer.rank
        if bool(offer.endpoint) != self._placement.is_spread or bool(offer.fd_socket) != is_leader:
            who = self._who(self._arrived[offer.rank])
            text = f"{who} offers what is not its to offer, or not what is"
            self.advance(Rejected(ProtocolError(text)), peer)
            return
        self._take_offer(offer)

    def _take_offer(self, offer: Offer) -> None:
        self._offers[offer.rank] = offer
        if len(self._offers) == self._me.world_size:
            self.advance(AllOffered())

    def _welcome(self, event: AllOffered, peer: bytes) -> None:
        offers = [self._offers[rank] for rank in sorted(self._offers)]
        self.welcome = Welcome(
            endpoints=tuple(offer.endpoint for offer in offers),
            fd_sockets=tuple(offer.fd_socket for offer in offers if offer.fd_socket),
            selection=self._selection,
        )
        for target in self._peers.values():
            self.do(Send(target, self.welcome))

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
        who = self._who(member) if member else f"rank {failed.rank}"
        text = f"{who} failed: {failed.text}; {self._roster()}"
        self._tell_all(error_from(failed.error, text), peer)

    def _mourn(self, lost: Lost, peer: bytes) -> None:
        who = self._who(self._arrived[lost.rank])
        self._tell_all(RendezvousError(f"{who} died during the rendezvous; {self._roster()}"))

    def _miss(self, silent: Silent, peer: bytes) -> None:
        who = self._who(self._arrived[silent.rank])
        text = f"{who} has been silent for {self._silence_s:g} s: it has died or is out of reach"
        self._tell_all(RendezvousError(f"{text}; {self._roster()}"))

    def _own_failure(self, failure: LocalFailure, peer: bytes) -> None:
        text = f"{describe_member(self._me.member)} failed: {failure.error}"
        self._tell_all(error_from(type(failure.error).__name__, text))

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
            self.do(Send(target, refusal_of(error)))
        self._mark_told(set(self._peers))

    def _tell_late(self, event: Hello | Unreadable, peer: bytes) -> None:
        assert self.error is not None
        self.do(Send(peer, refusal_of(self.error)))
        if isinstance(event, Hello):
            self._mark_told({event.member.rank})

    def _mark_told(self, ranks: set[int]) -> None:
        self._told |= ranks & set(range(self._me.world_size))
        if len(self._told) == self._me.world_size and self.state is CoordinatorState.REFUSING:
            self.advance(AllTold())

    # --- texts ----------------------------------------------------------------------------

    def _who(self, member: Member) -> str:
        """Describes a member; names its host if it is not that of rank 0."""
        home = "" if are_neighbours(self._me.member, member) else member.host
        return describe_member(member, home)

    def _roster(self) -> str:
        missing = [rank for rank in range(self._me.world_size) if rank not in self._arrived]
        arrived = ", ".join(map(self._who, self.members))
        away = f"; rank 0 itself was away for {self.absent_s:.1f} s" if self.absent_s else ""
        if missing:
            return f"arrived: {arrived}; not arrived: {describe_ranks(missing)}{away}"
        done = self._ready if self.welcome else self._offers.keys()
        waiting = [member for member in self.members if member.rank not in done]
        return f"arrived: {arrived}; not ready: {', '.join(map(self._who, waiting))}{away}"

    def violation(self, event: object, peer: bytes) -> ProtocolError:
        """Names the sender as well."""
        sender = next((rank for rank, known in self._peers.items() if known == peer), None)
        who = "an unknown sender" if sender is None else self._who(self._arrived[sender])
        return ProtocolError(
            f"unexpected {type(event).__name__} from {who} in state {self.state.name}"
        )

    _S = CoordinatorState
    _LIVE = (_S.COLLECTING, _S.ASSEMBLING, _S.SHARING)
    TABLE: ClassVar[Table] = {
        (_S.COLLECTING, Hello): (_admit, _S.COLLECTING),
        (_S.COLLECTING, AllArrived): (_assemble, _S.ASSEMBLING),
        (_S.ASSEMBLING, Hello): (_readmit, _S.ASSEMBLING),
        (_S.ASSEMBLING, Prepared): (_offer_own, _S.ASSEMBLING),
        (_S.ASSEMBLING, Offer): (_count_offer, _S.ASSEMBLING),
        (_S.ASSEMBLING, AllOffered): (_welcome, _S.SHARING),
        (_S.SHARING, Hello): (_readmit, _S.SHARING),
        (_S.SHARING, Ready): (_count_ready, _S.SHARING),
        (_S.SHARING, AllReady): (_go, _S.JOINED),
        **each(
            _LIVE,
            {
                Rejected: (_refuse, _S.REFUSING),
                Unreadable: (_refuse, _S.REFUSING),
                Failed: (_pass_on, _S.REFUSING),
                Alive: (_answer, None),
                Lost: (_mourn, _S.REFUSING),
                Silent: (_miss, _S.REFUSING),
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
            dict.fromkeys(
                (Rejected, Alive, Failed, Lost, LocalFailure, Offer, Ready),
                (Machine.ignore, None),
            ),
        ),
        **each(
            (_S.JOINED, _S.FAILED),
            dict.fromkeys((Rejected, Unreadable, Alive, Failed, Hello), (Machine.ignore, None)),
        ),
    }
