"""What the two state machines of the rendezvous have in common: events, effects, the table.

Nothing here does I/O or reads a clock. ``control/protocol.py`` holds the machines themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jetstream.control.messages import Member, Message, Welcome
from jetstream.errors import JetstreamError, ProtocolError

__all__ = [
    "AllArrived",
    "AllReady",
    "AllTold",
    "Attach",
    "Attached",
    "CoordinatorState",
    "CreateSegment",
    "Effect",
    "Expired",
    "JoinerState",
    "LocalFailure",
    "Lost",
    "Machine",
    "Rejected",
    "SegmentCreated",
    "Send",
    "Table",
    "Unreadable",
    "Watch",
    "each",
]


# --- events that are not messages ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentCreated:
    """The segment exists and can be fetched at the Unix socket of that name.

    ``selection``: what all ranks choose algorithms by.
    """

    fd_socket: str
    selection: str = ""


@dataclass(frozen=True, slots=True)
class Attached:
    """This joiner has the segment and watches all others."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes came that are no acceptable message."""

    error: JetstreamError


@dataclass(frozen=True, slots=True)
class Lost:
    """The process of that rank ended."""

    rank: int


@dataclass(frozen=True, slots=True)
class LocalFailure:
    """Something went wrong in this process: creating or attaching the segment, an interrupt."""

    error: JetstreamError


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline of the present state has passed."""


@dataclass(frozen=True, slots=True)
class AllArrived:
    """Internal: the last rank said hello."""


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
class CreateSegment:
    """Create the segment and answer with SegmentCreated, or with LocalFailure."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Fetch the segment, watch the members and answer with Attached, or with LocalFailure."""

    welcome: Welcome


Effect = Send | Watch | CreateSegment | Attach
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
    CREATING = enum.auto()
    SHARING = enum.auto()
    REFUSING = enum.auto()
    JOINED = enum.auto()
    FAILED = enum.auto()


class JoinerState(enum.Enum):
    """States of the other ranks."""

    CALLING = enum.auto()
    ATTACHING = enum.auto()
    READY = enum.auto()
    ORPHANED = enum.auto()
    LEAVING = enum.auto()
    JOINED = enum.auto()
    FAILED = enum.auto()


class Machine:
    """What both machines share: the table, the deadline, the effects, the error it ended with.

    ``state``, ``deadline_s`` and ``error`` are to be read; ``error`` is None unless it failed.
    """

    TABLE: ClassVar[Table]

    def __init__(self, state: enum.Enum, *, deadline_s: float) -> None:
        self.state = state
        self.deadline_s = deadline_s
        self.error: JetstreamError | None = None
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
