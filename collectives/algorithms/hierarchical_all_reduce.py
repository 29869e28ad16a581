"""Hierarchical all-reduce of large arrays: reduce-scatter, exchange, all-gather, streamed.

The array is cut into one column for each rank of the smallest host. In every host one rank, the
column's owner, folds its host's contributions to it. The owners of a column exchange these partial
folds, round what comes of it, and send that to all of their host. With more than two hosts, or
where partial folds are larger than elements, a column is cut into pieces, one for each host: its
owner there folds it for all and sends them the result. Two hosts exchange columns whole: so they
send as much, and a message less deep.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jetstream.collectives.algorithms import two_shot
from jetstream.collectives.algorithms.hierarchical import is_flat
from jetstream.collectives.algorithms.two_shot import shards
from jetstream.collectives.builder import PlanBuilder
from jetstream.collectives.ir import (
    OPS_MAX,
    After,
    AfterMode,
    FromAll,
    FromPeer,
    Range,
    Refer,
    ToAll,
    ToPeer,
)

__all__ = ["all_reduce"]

# The whole is repeated for each segment of the array, so that its stages overlap. In one segment
# an operation of the next stage may have to wait for all of those before.
_SEGMENTS_MAX = 16
# Segments whose partial folds are in memory at a time: that of one is folded while that of the one
# before is on its way.
_SLOTS = 2

_Part = tuple[int, int]


def all_reduce(plan: PlanBuilder) -> None:
    """Build the plan segment by segment; the result of one goes out after the next one's fold.

    The stream between two owners so carries, in turn, the partial folds of a segment and the
    results of the one before, and there is always something on the wire.
    """
    ops_count = _ops_count(plan)
    if is_flat(plan) or ops_count > OPS_MAX:
        two_shot.all_reduce(plan)
        return
    work = _Work(plan)
    pieces = 1 if work.is_mutual else plan.placement.host_count
    least_bytes = plan.call.chunk_bytes * pieces * plan.placement.ranks_min
    most = min(_SEGMENTS_MAX, OPS_MAX // ops_count)
    count = max(1, min(most, plan.input_bytes // least_bytes))
    segments = [_Segment(work.cut(*span)) for span in shards(plan.input_bytes, count)]
    work.reserve(segments)
    for number, segment in enumerate(segments):
        work.fold(segment, number)
        if number > 0:
            work.spread(segments[number - 1])
    work.spread(segments[-1])


def _ops_count(plan: PlanBuilder) -> int:
    """At least as many operations as a segment has on any rank."""
    columns, hosts = plan.placement.ranks_min, plan.placement.host_count
    return 2 * columns * hosts + 5 * hosts


@dataclass(slots=True)
class _Segment:
    """``parts[column][piece]`` are (offset, bytes); with what has been built for it."""

    parts: list[list[_Part]]
    #: by owner and piece: the SEND of this rank's contribution
    sent: dict[tuple[int, int], int] = field(default_factory=dict)
    #: the REDUCE that makes this rank's result
    folded: int = -1
    #: by piece: the operations that read this rank's partial folds
    readers: dict[int, list[After]] = field(default_factory=dict)


class _Work:
    """What all segments of a rank's plan have in common."""

    def __init__(self, plan: PlanBuilder) -> None:
        placement = plan.placement
        self.plan = plan
        self.group = placement.groups[plan.host]
        self.owners = self.group[: placement.ranks_min]
        self.is_mutual = placement.host_count == 2 and plan.call.partial_scale == 1
        self.is_owner = plan.rank in self.owners
        #: the piece that owners on this host fold, and all pieces, that one last
        self.own = 0 if self.is_mutual else plan.host
        self.pieces = [0] if self.is_mutual else [*plan.other_hosts, plan.host]
        others = [owner for owner in self.owners if owner != plan.rank]
        self.send_lanes = plan.peer_lanes(others)
        self.copy_lanes = plan.peer_lanes(others)
        if self.is_owner:
            self.column = self.owners.index(plan.rank)
            peers = [placement.groups[host][self.column] for host in plan.other_hosts]
            self.wire_lanes = plan.peer_lanes(peers)
            self.fold_lane, self.last_lane, self.out_lane = plan.lane(), plan.lane(), plan.lane()

    def cut(self, low: int, size_bytes: int) -> list[list[_Part]]:
        """The columns of a segment and their pieces."""
        columns = shards(size_bytes, len(self.owners))
        return [
            [(low + column_low + piece_low, piece) for piece_low, piece in shards(column, count)]
            for column_low, column in columns
            for count in [len(self.pieces)]
        ]

    def reserve(self, segments: list[_Segment]) -> None:
        """Memory for partial folds of any segment, twice, and what has last been in it."""
        if not self.is_owner:
            return
        largest = {
            piece: max(segment.parts[self.column][piece][1] for segment in segments)
            for piece in self.pieces
        }
        self.slots = [
            {piece: self.plan.partial(size) for piece, size in largest.items()}
            for _ in segments[:_SLOTS]
        ]
        self.segments = segments

    def fold(self, segment: _Segment, number: int) -> None:
        """Up to the result of the own piece, and its way to all of the host."""
        plan = self.plan
        for owner, lane in self.send_lanes:
            for piece in self.pieces:
                part = plan.input(*segment.parts[self.owners.index(owner)][piece])
                sent = plan.send(lane, part, ToPeer(owner), refer=Refer.APART)
                segment.sent[owner, piece] = sent
        if self.is_owner:
            self._fold_column(segment, number)
        self._collect(segment, [self.own])

    def _fold_column(self, segment: _Segment, number: int) -> None:
        plan = self.plan
        slot = self.slots[number % _SLOTS]
        before = self.segments[number - _SLOTS].readers if number >= _SLOTS else {}
        spans: dict[int, Range] = {}
        after: dict[int, list[After]] = {}
        for piece in self.pieces:
            part = plan.input(*segment.parts[self.column][piece])
            spans[piece] = slot[piece].part(0, part.bytes)
            sources = plan.contributions(part, FromPeer, self.group)
            free = before.get(piece, [])
            folded = plan.reduce(self.fold_lane, spans[piece], sources, after=free)
            after[piece] = [After(folded)]
        for peer, lane in self.wire_lanes:
            piece = self._piece_of(peer)
            sent = plan.send(lane, spans[piece], ToPeer(peer), after=after[piece])
            segment.readers[piece] = [After(sent, AfterMode.DONE)]
        everyone = [
            spans[self.own] if host == plan.host else FromPeer(ranks[self.column])
            for host, ranks in enumerate(plan.placement.groups)
        ]
        result = plan.output(*segment.parts[self.column][self.own])
        segment.folded = plan.reduce(self.last_lane, result, everyone, after=after[self.own])
        readers = segment.readers.setdefault(self.own, [])
        readers.append(After(segment.folded, AfterMode.DONE))
        self._send_out(result, segment.folded)

    def spread(self, segment: _Segment) -> None:
        """The way of the results to the other hosts, and of theirs to all of this one."""
        plan = self.plan
        if self.is_mutual:
            return
        if self.is_owner:
            parts = segment.parts[self.column]
            for peer, lane in self.wire_lanes:
                result, after = plan.output(*parts[self.own]), [After(segment.folded)]
                plan.send(lane, result, ToPeer(peer), after=after)
            for peer, _ in self.wire_lanes:
                result = plan.output(*parts[self._piece_of(peer)])
                self._send_out(result, plan.copy(self.last_lane, result, FromPeer(peer)))
        self._collect(segment, self.pieces[:-1])

    def _send_out(self, result: Range, made: int) -> None:
        plan = self.plan
        if plan.neighbours:
            after = [After(made)]
            plan.send(self.out_lane, result, ToAll(), after=after, refer=Refer.ALWAYS)

    def _collect(self, segment: _Segment, pieces: list[int]) -> None:
        """Copy results from the other owners of the host, in the order in which they send them."""
        plan = self.plan
        for owner, lane in self.copy_lanes:
            for piece in pieces:
                target = plan.output(*segment.parts[self.owners.index(owner)][piece])
                # OUTPUT may be INPUT: a chunk is overwritten only after it has gone out.
                after = [After(segment.sent[owner, piece])]
                plan.copy(lane, target, FromAll(owner), after=after)

    def _piece_of(self, peer: int) -> int:
        """The piece that a counterpart folds."""
        return 0 if self.is_mutual else self.plan.placement.hosts[peer]
