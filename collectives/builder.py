"""A small language to write algorithms in: operations are appended, each call returns its index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from jetstream.collectives.calls import PREFIXES, Call
from jetstream.collectives.ir import (
    PARTIAL_ALIGN,
    REFER_NEVER_BYTES,
    After,
    Buffer,
    Copy,
    FromAll,
    FromPeer,
    Op,
    Range,
    RankPlan,
    Reduce,
    Refer,
    Send,
    Source,
    ToAll,
    ToPeer,
)
from jetstream.collectives.parts import Splits
from jetstream.collectives.placement import Placement
from jetstream.collectives.refer import REFER_BYTES
from jetstream.errors import PlanError

__all__ = ["PlanBuilder"]

# A plan has 256 lanes, and two-shot needs two of its own and one per peer for either direction;
# over hosts also some for partial folds.
_PEER_LANES_MAX = 127
_PEER_LANES_MAX_REMOTE = 63
_PARTIAL_LANES_MAX = 128


class PlanBuilder:
    """The plan of ``rank`` for ``call`` and the ranks' ``placement``, in the making."""

    def __init__(
        self, call: Call, rank: int, placement: Placement, splits: Splits | None = None
    ) -> None:
        self.call = call
        self.rank = rank
        self.placement = placement
        self.splits = splits
        self.input_bytes = call.input_bytes(rank, splits)
        self.output_bytes = call.output_bytes(rank, splits)
        self._scratch_bytes = 0
        self.peers = tuple(peer for peer in range(call.world) if peer != rank)
        #: the peers on this host, and those on others
        self.neighbours = placement.neighbours(rank)
        self.remote = placement.remote(rank)
        #: this rank's host, the others, and the ranks there that this rank deals with
        self.host = placement.hosts[rank]
        self.other_hosts = tuple(host for host in range(placement.host_count) if host != self.host)
        self.dependants = placement.dependants(rank)
        self._ops: list[Op] = []
        self._lane_count = 0

    def input(self, offset: int = 0, size_bytes: int | None = None) -> Range:
        """A range of INPUT; all of it by default."""
        return Range(Buffer.INPUT, offset, self.input_bytes if size_bytes is None else size_bytes)

    def output(self, offset: int = 0, size_bytes: int | None = None) -> Range:
        """A range of OUTPUT; all of it by default."""
        whole = self.output_bytes
        return Range(Buffer.OUTPUT, offset, whole if size_bytes is None else size_bytes)

    def scratch(self, size_bytes: int) -> Range:
        """A new range of SCRATCH."""
        self._scratch_bytes += size_bytes
        return Range(Buffer.SCRATCH, self._scratch_bytes - size_bytes, size_bytes)

    def partial(self, size_bytes: int) -> Range:
        """A new range of SCRATCH for partial folds of so many bytes of elements."""
        self._scratch_bytes += -self._scratch_bytes % PARTIAL_ALIGN
        scale = self.call.partial_scale
        span = Range(Buffer.SCRATCH, self._scratch_bytes, size_bytes, scale)
        self._scratch_bytes += span.size_bytes
        return span

    def contributions(
        self,
        own: Range,
        stream: Callable[[int], FromAll | FromPeer],
        ranks: Iterable[int],
    ) -> tuple[Source, ...]:
        """One source per rank, in this order: ``own`` here, ``stream(peer)`` for the others."""
        return tuple(own if rank == self.rank else stream(rank) for rank in ranks)

    def from_any(self, peer: int) -> FromAll | FromPeer:
        """The stream on which what ``peer`` sends to everyone arrives."""
        is_local = self.placement.is_local(self.rank, peer)
        return FromAll(peer) if is_local else FromPeer(peer)

    def lane(self) -> int:
        """A new lane."""
        self._lane_count += 1
        return self._lane_count - 1

    def peer_lanes(self, peers: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """Each of some peers, of all by default, with a new lane to itself, in the order given.

        Above 127 peers some share a lane; as every rank takes its peers in the same order, no
        rank waits for one that waits for it.
        """
        peers = self.peers if peers is None else peers
        most = _PEER_LANES_MAX if self.placement.is_one_host else _PEER_LANES_MAX_REMOTE
        lanes = [self.lane() for _ in peers[:most]]
        return [(peer, lanes[i % len(lanes)]) for i, peer in enumerate(peers)]

    def send(
        self,
        lane: int,
        source: Range,
        to: ToAll | ToPeer,
        *,
        after: Iterable[After] = (),
        back: Range | None = None,
        refer: Refer = Refer.NEVER,
    ) -> int:
        """Append a SEND, one that lends if it has ``back``; returns its index.

        What goes to another host is never published by reference.
        """
        if isinstance(to, ToPeer) and not self.placement.is_local(self.rank, to.peer):
            refer = Refer.NEVER
        return self._append(Send(lane, source, to, tuple(after), back, refer))

    def send_all(
        self,
        source: Range,
        *,
        after: Iterable[After] = (),
        refer: Refer = Refer.NEVER,
        lanes: dict[int, int] | None = None,
    ) -> list[After]:
        """Append the SENDs of one range to all peers: to those of other hosts one by one, first.

        ``lanes``: those to use for remote peers, by peer; new ones by default. Returns the edges,
        up to two, that say that all of it is out: an operation waits for few others, so each
        chunk goes to the remote peers in turn.
        """
        after = list(after)
        out: list[After] = []
        for peer, new_lane in self.peer_lanes(self.remote) if lanes is None else lanes.items():
            sent = self.send(new_lane, source, ToPeer(peer), after=[*after, *out])
            out = [After(sent)]
        if self.neighbours:
            sent = self.send(self.lane(), source, ToAll(), after=after, refer=refer)
            out.append(After(sent))
        return out

    def reduce(
        self,
        lane: int,
        target: Range,
        sources: Iterable[Source],
        *,
        after: Iterable[After] = (),
        gives_back: bool = False,
    ) -> int:
        """Append a REDUCE; returns its index."""
        sources = tuple(sources)
        is_partial = any(isinstance(source, Range) and source.scale for source in sources)
        return self._append(Reduce(lane, target, sources, tuple(after), gives_back, is_partial))

    def fold(
        self,
        target: Range,
        own: Range,
        stream: Callable[[int], FromAll | FromPeer],
        *,
        ranks: Iterable[int] | None = None,
        after: Iterable[After] = (),
    ) -> int:
        """Append the fold of the contributions of ``ranks``, of all by default; returns its index.

        It goes by host, and by rank within a host. Where that makes a difference to the bits each
        host is folded on its own first, and only what comes of that is rounded: then the index is
        that of the last REDUCE. Sources are as in ``contributions``. Raises PlanError for a prefix
        over more than 128 hosts of which some have several ranks.
        """
        groups = self.placement.by_host(range(self.call.world) if ranks is None else ranks)
        if self.call.is_exact or all(len(group) == 1 for group in groups[1:]):
            everyone = [rank for group in groups for rank in group]
            sources = self.contributions(own, stream, everyone)
            return self.reduce(self.lane(), target, sources, after=after)
        if len(groups) > _PARTIAL_LANES_MAX and self.call.kind in PREFIXES:
            # In a shared lane a fold waits for all of the one before, and that for its senders,
            # who take their receivers in turn.
            raise PlanError(f"{self.call.describe()}: {len(groups)} hosts are too many")
        lanes = [self.lane() for _ in groups[:_PARTIAL_LANES_MAX]]
        spans = [self.partial(target.bytes) for _ in groups]
        # Chunk by chunk and one after the other, so that one edge speaks for all of them.
        edges: list[After] = []
        for i, (group, span) in enumerate(zip(groups, spans, strict=True)):
            sources = self.contributions(own, stream, group)
            edges = [After(self.reduce(lanes[i % len(lanes)], span, sources, after=edges))]
        return self.reduce(self.lane(), target, spans, after=[*after, *edges])

    def copy(self, lane: int, target: Range, source: Source, *, after: Iterable[After] = ()) -> int:
        """Append a COPY; returns its index."""
        return self._append(Copy(lane, target, source, tuple(after)))

    def build(self) -> RankPlan:
        """The finished plan, without lanes that nothing is in."""
        call = self.call
        ops = self._ops
        used = sorted({op.lane for op in ops})
        if len(used) < self._lane_count:
            ops = [replace(op, lane=used.index(op.lane)) for op in ops]
        return RankPlan(
            call=call,
            rank=self.rank,
            ops=tuple(ops),
            input_bytes=self.input_bytes,
            output_bytes=self.output_bytes,
            scratch_bytes=self._scratch_bytes,
            divisor=call.divisor,
            splits=self.splits,
            refer_bytes=REFER_BYTES.get(call.kind, REFER_NEVER_BYTES),
            hosts=() if self.placement.is_one_host else self.placement.hosts,
        )

    def _append(self, op: Op) -> int:
        self._ops.append(op)
        return len(self._ops) - 1
