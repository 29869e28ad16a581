"""What the two state machines of the rendezvous have in common: events, effects, the table.

Nothing here does I/O or reads a clock. ``coordinator.py`` and ``joiner.py`` hold the machines.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jetstream.control.messages import Assemble, Member, Message, Welcome
from jetstream.errors import JetstreamError, ProtocolError

__all__ = [
    "AllArrived",
    "AllOffered",
    "AllReady",
    "AllTold",
    "Attach",
    "Attached",
    "Bereaved",
    "CoordinatorState",
    "Effect",
    "Expired",
    "JoinerState",
    "LocalFailure",
    "Lost",
    "Machine",
    "Prepare",
    "Prepared",
    "Rejected",
    "Send",
    "Silent",
    "Table",
    "Unreadable",
    "Watch",
    "each",
]


# --- events that are not messages ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """This rank has what the others need of it.

    ``endpoint``: of its link, b"" on one host. ``fd_socket``: where the segment of its host can be
    fetched, "" unless it is the lowest rank there. ``selection``, at rank 0: what all ranks choose
    algorithms by.
    """

    endpoint: bytes = b""
    fd_socket: str = ""
    selection: str = ""


@dataclass(frozen=True, slots=True)
class Attached:
    """This joiner has the segment."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes came that are no acceptable message."""

    error: JetstreamError


@dataclass(frozen=True, slots=True)
class Lost:
    """The process of that rank ended."""

    rank: int


@dataclass(frozen=True, slots=True)
class Silent:
    """A rank of another host has not been heard of for long; internal."""

    rank: int


@dataclass(frozen=True, slots=True)
class LocalFailure:
    """Something went wrong in this process: the segment, the link, an interrupt."""

    error: JetstreamError


@dataclass(frozen=True, slots=True)
class Bereaved:
    """A neighbour that this joiner needs has gone or does not answer: why, rank 0 may know."""

    error: JetstreamError


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline of the present state has passed."""


@dataclass(frozen=True, slots=True)
class AllArrived:
    """Internal: the last rank said hello."""


@dataclass(frozen=True, slots=True)
class AllOffered:
    """Internal: the last rank has told what the others need of it."""


@dataclass(frozen=True, slots=True)
class AllReady:
    """Internal: the last rank is ready."""


@dataclass(frozen=True, slots=True)
class AllTold:
    """Internal: every rank knows about the failure."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Internal: a message was legible but not acceptable."""

    error: JetstreamError


# --- effects ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send `message` to `peer` (b"" from a joiner: to rank 0)."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Watch:
    """Report Lost when the process of that member ends."""

    member: Member


@dataclass(frozen=True, slots=True)
class Prepare:
    """Watch the ranks of this host, create its segment if this is the lowest of them, open a link
    if there are other hosts; and answer with Prepared, with LocalFailure, or with Bereaved.
    """

    assembly: Assemble


@dataclass(frozen=True, slots=True)
class Attach:
    """Fetch the segment and answer with Attached, with LocalFailure, or with Bereaved."""

    welcome: Welcome


Effect = Send | Watch | Prepare | Attach
Handler = Callable[[Any, Any, bytes], None]
Table = Mapping[tuple[enum.Enum, type], tuple[Handler, enum.Enum]]


def each(states: tuple[enum.Enum, ...], rows: Mapping[type, tuple[Handler, Any]]) -> Table:
    """Returns `rows`, event to (handler, next state), for each of `states`; None: it stays."""
    return {
        (state, event): (handler, state if target is None else target)
        for state in states
        for event, (handler, target) in rows.items()
    }


class CoordinatorState(enum.Enum):
    """States of rank 0."""

    COLLECTING = enum.auto()
    ASSEMBLING = enum.auto()
    SHARING = enum.auto()
    REFUSING = enum.auto()
    JOINED = enum.auto()
    FAILED = enum.auto()


class JoinerState(enum.Enum):
    """States of the other ranks."""

    CALLING = enum.auto()
    PREPARING = enum.auto()
    OFFERING = enum.auto()
    ATTACHING = enum.auto()
    READY = enum.auto()
    ORPHANED = enum.auto()
    LEAVING = enum.auto()
    JOINED = enum.auto()
    FAILED = enum.auto()


class Machine:
    """What both machines share: the table, the deadline, the effects, the error it ended with.

    To be read: ``state``, ``deadline_s``; ``error``, None unless it failed; ``assembly`` (who there
    is) and ``welcome`` (how they are reached), once they are known.
    """

    TABLE: ClassVar[Table]

    def __init__(self, state: enum.Enum, *, deadline_s: float) -> None:
        self.state = state
        self.deadline_s = deadline_s
        self.error: JetstreamError | None = None
        self.assembly: Assemble | None = None
        self.welcome: Welcome | None = None
        self.now_s = 0.0
        self._effects: list[Effect] = []

    @property
    def is_final(self) -> bool:
        """Whether the rendezvous is over for this rank."""
        return self.state.name in ("JOINED", "FAILED")

    @property
    def next_s(self) -> float:
        """When to call `tick` next."""
        return self.deadline_s

    def take_effects(self) -> list[Effect]:
        """Returns what is to be done, in order, once."""
        effects, self._effects = self._effects, []
        return effects

    def step(self, event: object, *, now_s: float, peer: bytes = b"") -> None:
        """Takes an event: a message that `peer` sent, or one of this module's local events."""
        self.now_s = now_s
        self.advance(event, peer)

    def tick(self, *, now_s: float) -> None:
        """Lets time pass; call it at `next_s` at the latest, more often does no harm."""
        if not self.is_final and now_s >= self.deadline_s:
            self.step(Expired(), now_s=now_s)

    def advance(self, event: object, peer: bytes = b"") -> None:
        """Looks the event up in the table; for handlers that raise an internal event."""
        entry = self.TABLE.get((self.state, type(event)))
        if entry is None:
            self.advance(Rejected(self.violation(event, peer)), peer)
            return
        handler, self.state = entry
        handler(self, event, peer)

    def violation(self, event: object, peer: bytes) -> ProtocolError:
        """Returns the error for an event that the table does not allow now."""
        return ProtocolError(f"unexpected {type(event).__name__} in state {self.state.name}")

    def ignore(self, event: object, peer: bytes) -> None:
        """Handler for what may come, but does not matter."""

    def do(self, effect: Effect) -> None:
        """Appends an effect."""
        self._effects.append(effect)
