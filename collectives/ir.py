"""The plan as data: what the algorithms build, the verifier proves and lowering writes.

An operation's id is its index in the plan, so equal input gives equal plans, byte for byte.
``docs/plans.md`` explains lanes, chunks, streams and edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from jetstream.collectives.calls import Call
from jetstream.collectives.parts import Splits
from jetstream.collectives.placement import Placement, place

__all__ = [
    "AFTER_MAX",
    "LANES_MAX",
    "OPS_MAX",
    "PARTIAL_ALIGN",
    "REDUCE_SOURCES_MAX",
    "REFER_NEVER_BYTES",
    "SOURCES_MAX",
    "After",
    "AfterMode",
    "Buffer",
    "Copy",
    "FromAll",
    "FromLent",
    "FromPeer",
    "Op",
    "Range",
    "RankPlan",
    "Reduce",
    "Refer",
    "Send",
    "Source",
    "Stream",
    "ToAll",
    "ToPeer",
    "step_bytes",
    "step_count",
]

# js_plan.h and js_op.def
AFTER_MAX = 4
LANES_MAX = 256
OPS_MAX = 1024
SOURCES_MAX = 4096
PARTIAL_ALIGN = 64
REDUCE_SOURCES_MAX = 256

#: ``RankPlan.refer_bytes`` of a plan that copies whatever it sends.
REFER_NEVER_BYTES = 2**64 - 1


class Buffer(IntEnum):
    """Relocatable memory; the values are ``enum js_plan_buffer``."""

    INPUT = 0
    OUTPUT = 1
    SCRATCH = 2


class AfterMode(IntEnum):
    """What an edge waits for; the values are ``JS_PLAN_AFTER_*``."""

    CHUNK = 0
    DONE = 1


class Refer(IntEnum):
    """When a SEND may publish its source by reference, where that lies in the segment.

    Then the peers read the array itself, until the end of the plan, so no operation may write to
    it once the SEND has begun: APART promises this for INPUT and OUTPUT that do not overlap,
    ALWAYS also for calls in place.
    """

    NEVER = 0
    APART = 1
    ALWAYS = 2


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes ``offset`` to ``offset + bytes`` of one of this rank's buffers.

    With a ``scale`` it holds partial folds, each so many times as large as an element: then
    ``bytes`` are those of the elements that they stand for, and it ends at ``offset + size_bytes``.
    """

    buffer: Buffer
    offset: int
    bytes: int
    scale: int = 0

    @property
    def size_bytes(self) -> int:
        """What the range occupies."""
        return self.bytes * max(1, self.scale)

    def part(self, offset: int, size_bytes: int) -> Range:
        """The part that stands for ``size_bytes`` bytes of elements from ``offset`` on."""
        start = self.offset + offset * max(1, self.scale)
        return Range(self.buffer, start, size_bytes, self.scale)


@dataclass(frozen=True, slots=True)
class FromAll:
    """The next frame of the stream that ``peer`` sends to all other ranks of its host."""

    peer: int


@dataclass(frozen=True, slots=True)
class FromPeer:
    """The next frame of the stream that ``peer`` sends to this rank alone."""

    peer: int


@dataclass(frozen=True, slots=True)
class FromLent:
    """The oldest frame lent to ``peer`` and not yet taken back, once it is given back."""

    peer: int


@dataclass(frozen=True, slots=True)
class ToAll:
    """This rank's stream to all other ranks of its host."""


@dataclass(frozen=True, slots=True)
class ToPeer:
    """This rank's stream to ``peer`` alone."""

    peer: int


Stream: TypeAlias = FromAll | FromPeer
Source: TypeAlias = Range | FromAll | FromPeer | FromLent


@dataclass(frozen=True, slots=True)
class After:
    """An edge: wait for an earlier operation, step by step (CHUNK) or as a whole (DONE)."""

    op_index: int
    mode: AfterMode = AfterMode.CHUNK


@dataclass(frozen=True, slots=True)
class Send:
    """Append ``source`` to a stream, one frame per chunk.

    With ``back`` the frames are lent: the peer's REDUCE writes its result over them, and a COPY
    of this rank takes them back into ``back``. The link may let the peer work on ``back`` itself,
    so from this operation to that COPY the range belongs to the two of them.
    """

    lane: int
    source: Range
    to: ToAll | ToPeer
    after: tuple[After, ...] = ()
    back: Range | None = None
    refer: Refer = Refer.NEVER

    @property
    def bytes(self) -> int:
        """Bytes the operation works on."""
        return self.source.bytes

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the operation reads."""
        return (self.source,)


@dataclass(frozen=True, slots=True)
class Reduce:
    """Fold ``sources``, in the order listed and rounding once, into ``target``.

    With ``gives_back`` the result is also written over the frames consumed, which were lent. A
    target of partial folds is neither rounded nor divided; ``partials`` says that all sources are
    such folds, frames included.
    """

    lane: int
    target: Range
    sources: tuple[Source, ...]
    after: tuple[After, ...] = ()
    gives_back: bool = False
    partials: bool = False

    @property
    def bytes(self) -> int:
        """Bytes the operation works on."""
        return self.target.bytes


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy ``source`` into ``target``; of zero bytes from a stream it is a pure wait."""

    lane: int
    target: Range
    source: Source
    after: tuple[After, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes the operation works on."""
        return self.target.bytes

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the operation reads."""
        return (self.source,)


Op: TypeAlias = Send | Reduce | Copy


@dataclass(frozen=True, slots=True)
class RankPlan:
    """The schedule of one collective for one rank."""

    call: Call
    rank: int
    ops: tuple[Op, ...]
    input_bytes: int
    output_bytes: int
    scratch_bytes: int
    divisor: int
    #: an all_to_all with splits: this rank's
    splits: Splits | None = None
    #: SENDs of fewer bytes are copied even where they may be published by reference
    refer_bytes: int = REFER_NEVER_BYTES
    #: the host of each rank, empty where all share one; not part of the binary form
    hosts: tuple[int, ...] = ()

    @property
    def placement(self) -> Placement:
        """Which ranks share a host."""
        return place(self.hosts, self.call.world)

    @property
    def lane_count(self) -> int:
        """Lanes in use: one more than the highest lane."""
        return max((op.lane for op in self.ops), default=-1) + 1

    def buffer_bytes(self, buffer: Buffer) -> int:
        """Size of a buffer in bytes."""
        return (self.input_bytes, self.output_bytes, self.scratch_bytes)[buffer]


def step_count(op_bytes: int, chunk_bytes: int) -> int:
    """Steps of an operation: one per chunk, and one for the empty frame of zero bytes."""
    return max(1, -(-op_bytes // chunk_bytes))


def step_bytes(op_bytes: int, chunk_bytes: int, step: int) -> int:
    """Bytes that step ``step`` works on, from ``step * chunk_bytes`` on."""
    return min(chunk_bytes, op_bytes - step * chunk_bytes)
