"""The rendezvous as the ranks other than 0 see it: the counterpart of coordinator.py."""

from __future__ import annotations

from typing import ClassVar

from jetstream.control.agreement import error_from, refusal_of
from jetstream.control.coordinator import SILENCE_S
from jetstream.control.machine import (
    Attach,
    Attached,
    Bereaved,
    Expired,
    JoinerState,
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
    each,
)
from jetstream.control.messages import (
    Alive,
    Assemble,
    Failed,
    Go,
    Hello,
    Offer,
    Ready,
    Refuse,
    Welcome,
)
from jetstream.control.placement import place
from jetstream.errors import JetstreamError, ProtocolError, RendezvousError

__all__ = [
    "ALIVE_INTERVAL_S",
    "ANSWER_GRACE_S",
    "HELLO_INTERVAL_S",
    "LEAVE_GRACE_S",
    "ORPHAN_GRACE_S",
    "Joiner",
]

#: How long a joiner that gives up waits for rank 0 to say who else is missing.
LEAVE_GRACE_S = 1.0
#: How long it waits for the answer of a rank 0 that it has heard before, which may be slow.
ANSWER_GRACE_S = 5.0
#: How long a joiner waits for the last message of a rank 0 that has ended.
ORPHAN_GRACE_S = 0.5
#: A Hello may be lost with the previous rendezvous at the same address; so it is repeated.
HELLO_INTERVAL_S = 0.2
#: How often it calls a rank 0 of another host that has answered.
ALIVE_INTERVAL_S = 1.0


class Joiner(Machine):
    """Any rank but 0 (and a second rank 0, which learns here that it is one)."""

    def __init__(
        self,
        me: Hello,
        *,
        address: str,
        now_s: float,
        timeout_s: float,
        silence_s: float = SILENCE_S,
    ) -> None:
        """If rank 0, on another host, is silent for `silence_s`, it is lost."""
        super().__init__(JoinerState.CALLING, deadline_s=now_s + timeout_s)
        self._me = me
        self._address = address
        self._endpoint = b""
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._hello_s = now_s
        #: Rank 0 is on another host and has answered.
        self._is_remote = False
        #: Since when what was said to it then has no answer.
        self._unanswered_s: float | None = None
        #: What this rank ends with unless rank 0 knows more.
        self._suspicion: JetstreamError | None = None

    @property
    def next_s(self) -> float:
        """When to call `tick` next: also to say hello again, or that this rank is alive."""
        times = [self.deadline_s]
        if self.state is JoinerState.CALLING or (self._is_remote and self.state in self._LIVE):
            times.append(self._hello_s)
            if self._is_remote and self._unanswered_s is not None:
                times.append(self._unanswered_s + self._silence_s)
        return min(times)

    def tick(self, *, now_s: float) -> None:
        """Lets time pass; says hello until rank 0 answers, and then, to a remote one, "alive"."""
        super().tick(now_s=now_s)
        is_calling = self.state is JoinerState.CALLING
        if not is_calling and not (self._is_remote and self.state in self._LIVE):
            return
        since_s = self._unanswered_s
        if self._is_remote and since_s is not None and now_s >= since_s + self._silence_s:
            self.step(Silent(0), now_s=now_s)
        elif now_s >= self._hello_s:
            alive_s = min(ALIVE_INTERVAL_S, self._silence_s / 4)
            self._hello_s = now_s + (alive_s if self._is_remote else HELLO_INTERVAL_S)
            self._unanswered_s = now_s if since_s is None else since_s
            self.do(Send(b"", self._me if is_calling else Alive(rank=self._me.member.rank)))

    def _hear(self, alive: Alive, peer: bytes) -> None:
        self._is_remote = True
        self._unanswered_s = None

    # --- the good way ---------------------------------------------------------------------

    def _prepare(self, assembly: Assemble, peer: bytes) -> None:
        ranks = [member.rank for member in assembly.members]
        mine = self._me.member
        is_whole = ranks == list(range(self._me.world_size))
        if not is_whole or assembly.members[mine.rank] != mine:
            text = f"rank 0 assembles the ranks {ranks} of {self._me.world_size}, or not this one"
            self.advance(Rejected(ProtocolError(text)))
        elif bool(assembly.link) != place(assembly.members).is_spread:
            text = f"rank 0 wants the link {assembly.link!r}, which does not fit the hosts"
            self.advance(Rejected(ProtocolError(text)))
        else:
            self.assembly = assembly
            self.do(Prepare(assembly))

    def _offer(self, event: Prepared, peer: bytes) -> None:
        rank = self._me.member.rank
        self._endpoint = event.endpoint
        offer = Offer(rank=rank, endpoint=event.endpoint, fd_socket=event.fd_socket)
        self.do(Send(b"", offer))

    def _attach(self, welcome: Welcome, peer: bytes) -> None:
        assert self.assembly is not None
        placement = place(self.assembly.members)
        endpoints = welcome.endpoints
        is_whole = (
            len(endpoints) == self._me.world_size
            and all(bool(endpoint) == placement.is_spread for endpoint in endpoints)
            and endpoints[self._me.member.rank] == self._endpoint
            and len(welcome.fd_sockets) == len(placement.names)
        )
        if is_whole:
            self.welcome = welcome
            self.do(Attach(welcome))
        else:
            text = (
                f"rank 0 welcomes to {len(endpoints)} endpoints on {len(welcome.fd_sockets)} hosts"
            )
            self.advance(Rejected(ProtocolError(f"{text}, or not to this one")))

    def _ready(self, event: Attached, peer: bytes) -> None:
        self.do(Send(b"", Ready(rank=self._me.member.rank)))

    # --- ending badly ---------------------------------------------------------------------

    def _refused(self, refuse: Refuse, peer: bytes) -> None:
        self.error = error_from(refuse.error, refuse.text)

    def _fail(self, event: Rejected | Unreadable | LocalFailure, peer: bytes) -> None:
        self.error = event.error
        self._tell(event.error)

    def _tell(self, error: JetstreamError) -> None:
        refusal = refusal_of(error)
        rank = self._me.member.rank
        self.do(Send(b"", Failed(rank=rank, error=refusal.error, text=refusal.text)))

    def _ask_why(self, event: Bereaved, peer: bytes) -> None:
        # Who has gone may have told rank 0 the reason, and rank 0 answers in any case.
        self._suspicion = event.error
        self._tell(event.error)
        self.deadline_s = self.now_s + ANSWER_GRACE_S

    def _miss(self, silent: Silent, peer: bytes) -> None:
        text = f"rank 0 has been silent for {self._silence_s:g} s: it has died or is out of reach"
        self._fail(Rejected(RendezvousError(text)), peer)

    def _orphan(self, lost: Lost, peer: bytes) -> None:
        # Its last word, Go or Refuse, may still be on the way.
        self.deadline_s = self.now_s + ORPHAN_GRACE_S

    def _mourn(self, event: Expired, peer: bytes) -> None:
        self.error = self._suspicion or RendezvousError("rank 0 died during the rendezvous")

    def _give_up(self, event: Expired, peer: bytes) -> None:
        self._fail(Rejected(RendezvousError(f"gave up after {self._timeout_s:g} s")), peer)
        self.deadline_s = self.now_s + (ANSWER_GRACE_S if self.assembly else LEAVE_GRACE_S)

    def _leave(self, event: Expired, peer: bytes) -> None:
        if self._suspicion is not None:
            self.error = self._suspicion
            return
        if self._me.member.rank == 0:
            text = f"{self._address} is in use by another process, which does not answer"
            self.error = RendezvousError(text)
            return
        self.error = RendezvousError(
            f"rank {self._me.member.rank} heard nothing from rank 0 at {self._address} within "
            f"{self._timeout_s:g} s: rank 0 is not running, has not called jetstream.init, "
            "is stopped, belongs to another user or has another JETSTREAM_RENDEZVOUS; on another "
            "host: the name leads elsewhere, or a firewall is in the way"
        )

    _S = JoinerState
    _LIVE = (_S.CALLING, _S.PREPARING, _S.OFFERING, _S.ATTACHING, _S.READY)
    TABLE: ClassVar[Table] = {
        (_S.CALLING, Assemble): (_prepare, _S.PREPARING),
        (_S.PREPARING, Prepared): (_offer, _S.OFFERING),
        (_S.OFFERING, Welcome): (_attach, _S.ATTACHING),
        (_S.ATTACHING, Attached): (_ready, _S.READY),
        (_S.READY, Go): (Machine.ignore, _S.JOINED),
        **each(
            _LIVE,
            {
                Alive: (_hear, None),
                Silent: (_miss, _S.FAILED),
                Refuse: (_refused, _S.FAILED),
                Rejected: (_fail, _S.FAILED),
                Unreadable: (_fail, _S.FAILED),
                LocalFailure: (_fail, _S.FAILED),
                Bereaved: (_ask_why, _S.LEAVING),
                Lost: (_orphan, _S.ORPHANED),
                Expired: (_give_up, _S.LEAVING),
            },
        ),
        (_S.ORPHANED, Go): (Machine.ignore, _S.JOINED),
        (_S.ORPHANED, Refuse): (_refused, _S.FAILED),
        (_S.ORPHANED, Expired): (_mourn, _S.FAILED),
        **each(
            (_S.ORPHANED,),
            dict.fromkeys(
                (Alive, Assemble, Welcome, Rejected, Unreadable, LocalFailure, Bereaved),
                (Machine.ignore, None),
            ),
        ),
        (_S.LEAVING, Refuse): (_refused, _S.FAILED),
        (_S.LEAVING, Lost): (_orphan, _S.ORPHANED),
        (_S.LEAVING, Expired): (_leave, _S.FAILED),
        (_S.LEAVING, LocalFailure): (_fail, _S.FAILED),
        **each(
            (_S.LEAVING,),
            dict.fromkeys(
                (
                    *(Alive, Assemble, Welcome, Go, Rejected, Unreadable, Prepared, Attached),
                    Bereaved,
                ),
                (Machine.ignore, None),
            ),
        ),
        **each(
            (_S.JOINED, _S.FAILED),
            dict.fromkeys((Alive, Refuse, Rejected, Unreadable), (Machine.ignore, None)),
        ),
    }
